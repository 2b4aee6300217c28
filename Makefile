# Every target sets itself up: `make demo` and `make test` work on a fresh clone.

PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
READY   = $(VENV)/.installed
CONSTRAINED = -c constraints.txt

# `make gpu` installs nothing: it takes the python3 at hand, with its torch, triton and pytest.
ON_GPU  = LANGEVIN_DEVICE=cuda PYTHONPATH=.:python $(PYTHON)

# The kernels compile one by one; with pytest-xdist at hand many do at a time.
PARALLEL = $(shell $(PYTHON) -c "import xdist; print('-n 8 --dist worksteal -p no:benchmark')" 2>/dev/null)
TRITON  = 3.6.0

# The sanitizers' libraries come first, and the C++ one, of which they take over the exceptions.
WATCHED  = $(patsubst %,tests/test_%.py,elementary chain_energies kinetic_chain metropolis_chain \
             mlp_chain moves network_chain step tally whole_chain)
WATCHERS = $(foreach library,libasan libubsan libstdc++,$(shell g++ -print-file-name=$(library).so))

.PHONY: demo test test-slow test-seeds test-triton sanitize bench gpu gpu-build gpu-test gpu-bench lint clean

demo: $(READY)  ## learn handwritten digits; pictures and numbers in runs/demo
	rm -rf runs/demo
	$(BIN)/langevin-ext train short-run --data digits --out runs/demo

test: $(READY)  ## the ordinary suite, and the Triton kernels in Triton's interpreter
	$(BIN)/python -m pytest tests
	TRITON_INTERPRET=1 $(BIN)/python -m pytest tests/kernels

test-slow: $(READY)  ## what is too long for every run: 1e8 normals, planted bugs, builds, the demo
	$(BIN)/python -m pytest tests -m slow --timeout 3600

test-seeds: $(READY)  ## every test of a law with 200 seeds: the false alarms that it states
	LANGEVIN_SEEDS=200 LANGEVIN_CHAINS=0.02 $(BIN)/python -m pytest tests -m "law and not slow"

test-triton: $(READY)  ## the kernels under another Triton: make test-triton TRITON=3.6.0
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target build/triton-$(TRITON) triton==$(TRITON)
	PYTHONPATH=build/triton-$(TRITON) TRITON_INTERPRET=1 $(BIN)/python -m pytest tests/kernels
	PYTHONPATH=build/triton-$(TRITON) $(BIN)/python -m pytest tests/test_codegen.py

sanitize: $(READY)  ## tests of the kernels under GCC's sanitizers, in a copy: build/sanitize
	mkdir -p build/sanitize
	cd build/sanitize && rm -rf csrc langevin_ext tests
	cp -Rp csrc langevin_ext tests pyproject.toml setup.py build/sanitize
	cd build/sanitize && CXX=g++ LANGEVIN_BUILD=cpu LANGEVIN_SANITIZE=1 \
	    $(abspath $(BIN))/python setup.py build_ext --inplace
	cd build/sanitize && LD_PRELOAD="$(WATCHERS)" ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=. \
	    UBSAN_OPTIONS=print_stacktrace=1 $(abspath $(BIN))/python -m pytest $(WATCHED) --timeout 3600

bench: $(READY)  ## steps, samplers and whole chains against what else there is; rows to benchmarks/results
	$(BIN)/python -m pip install --quiet $(CONSTRAINED) -e '.[bench]'
	mkdir -p build
	$(BIN)/python -m pytest benchmarks/test_step.py benchmarks/test_sample.py \
	    benchmarks/test_rules.py benchmarks/test_chains.py --benchmark-disable-gc \
	    --benchmark-columns=median,iqr,rounds --benchmark-json=build/bench.json
	$(BIN)/python benchmarks/rows.py build/bench.json
	$(BIN)/python benchmarks/table.py --write

gpu: gpu-build gpu-test gpu-bench  ## on a machine with CUDA; `make -k gpu` does all three whatever fails

gpu-build:
	$(PYTHON) setup.py build_ext --inplace

gpu-test:  ## the suite on CUDA tensors, the kernels compiled
	$(ON_GPU) -m pytest tests $(PARALLEL)

gpu-bench:  ## the step against a measured copy, and against what else there is
	mkdir -p build
	-$(ON_GPU) -m pytest benchmarks/test_step.py --benchmark-disable-gc --benchmark-max-time=0.2 \
	    --benchmark-columns=median,iqr,rounds --benchmark-json=build/gpu.json
	$(ON_GPU) benchmarks/rows.py build/gpu.json
	$(ON_GPU) benchmarks/table.py step-cuda

lint: $(READY)  ## what the pre-commit hooks check
	$(BIN)/python -m pip install --quiet $(CONSTRAINED) -e '.[dev]'
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror csrc/*

$(READY): pyproject.toml setup.py constraints.txt $(wildcard csrc/*)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install $(CONSTRAINED) -e '.[train,test]'
	touch $@

clean:
	rm -rf $(VENV) build runs *.egg-info langevin_ext/_C.* langevin_ext/_build.json
