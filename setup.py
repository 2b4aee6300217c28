"""Builds langevin_ext._C from csrc/ and nothing else; the metadata is in pyproject.toml.

LANGEVIN_BUILD=auto (default)  build it if a C++ compiler works; if not, install without it
LANGEVIN_BUILD=cpu             build it or fail
LANGEVIN_BUILD=none            do not build it
LANGEVIN_ISAS=avx2,sse2        for these instruction sets and the generic one alone, in less time
LANGEVIN_SANITIZE=1            watch over memory and undefined behaviour (`make sanitize`)

What happened is written to langevin_ext/_build.json, because pip hides a build's output from the
person who will wonder why there is no native backend; `langevin-ext info` prints it.
"""

import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"

# Contraction of a*b+c would change the bits of the noise; -ffast-math would also switch off
# denormals for the whole process. -fwrapv: Philox shifts and negates signed words.
COMMON = ["-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-fwrapv", "-g0", "-Wall", "-Wextra"]
KERNEL = ["-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"]
KERNEL += ["-Wno-ignored-attributes", "-Wno-uninitialized", "-Wno-maybe-uninitialized"]  # GCC 12's
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-O1", "-g1"]
AVX2 = ["-mavx2", "-mfma", "-mf16c"]  # own AVX-512 header sets the last two off
AVX512 = ["-mavx512f", "-mavx512vl", "-mavx512dq", "-mavx512bw", "-mprefer-vector-width=512"]
ISAS: dict[str, tuple[int, int, list[str]]] = {  # name: (float lanes, intrinsics, flags)
    "generic": (4, 0, []),
    "sse2": (4, 1, []),
    "avx2": (8, 1, AVX2),
    "avx512": (16, 1, AVX2 + AVX512),
}
PER_ISA = (  # *_cpu.cpp
    "noise", "step", "step_backward", "kinetic", "accept", "elementary", "chain", "mlp",
)  # fmt: skip


class BuildError(RuntimeError):
    """The native part cannot be built here; the message says why."""


def find_compiler() -> list[str]:
    named = os.environ.get("CXX")
    if named:
        return shlex.split(named)
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name):
            return [name]
    raise BuildError(
        "no C++ compiler found: none of c++, g++, clang++ is on PATH and CXX is not set"
    )


def instruction_sets() -> dict[str, tuple[int, int, list[str]]]:
    """Those of this machine's kind; of them what LANGEVIN_ISAS lists, and the generic one."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    known = {name: isa for name, isa in ISAS.items() if x86 or name == "generic"}
    listed = os.environ.get("LANGEVIN_ISAS") or ",".join(known)
    named = {name.strip() for name in listed.split(",")} | {"generic"}
    if not named <= known.keys():
        raise BuildError(f"LANGEVIN_ISAS={listed!r}: give some of {','.join(known)}")
    return {name: isa for name, isa in known.items() if name in named}


def sanitizers() -> list[str]:
    return SANITIZE if os.environ.get("LANGEVIN_SANITIZE") == "1" else []


def objects(compiler: list[str], out: Path) -> dict[Path, list[str]]:
    """Every object file and the command that makes it."""
    import pybind11

    isas = instruction_sets()
    openmp = [] if sys.platform == "darwin" else ["-fopenmp"]
    includes = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_paths()['include']}"]
    plan = {
        "bindings": ("bindings.cpp", openmp + includes),
        "plain_step": ("plain_step.cpp", includes),
        "kernels": ("kernels.cpp", [*openmp, *(f"-DLANGEVIN_HAS_{isa}" for isa in isas)]),
        "step": ("step.cpp", openmp),
        "step_backward": ("step_backward.cpp", openmp),
        "kinetic": ("kinetic.cpp", openmp),
        "accept": ("accept.cpp", openmp),
        "chain": ("chain.cpp", openmp),
        "mlp": ("mlp.cpp", openmp),
        "tally": ("tally.cpp", []),
    }
    for isa, (lanes, intrinsics, flags) in isas.items():
        defines = [
            f"-DLANGEVIN_ISA={isa}",
            f"-DLANGEVIN_LANES={lanes}",
            f"-DLANGEVIN_INTRINSICS={intrinsics}",
        ]
        for kernel in PER_ISA:
            plan[f"{kernel}_{isa}"] = (f"{kernel}_cpu.cpp", KERNEL + flags + defines)
    return {
        out / f"{name}.o": [*compiler, *COMMON, *flags, *sanitizers(), "-c",
                            str(CSRC / source), "-o", str(out / f"{name}.o")]
        for name, (source, flags) in plan.items()
    }  # fmt: skip


def run(command: list[str]) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise BuildError(f"{shlex.join(command)}\n{done.stdout[-4000:]}")


def ninja_text(compiles: dict[Path, list[str]], link: list[str], library: Path) -> str:
    def word(value: object) -> str:
        return str(value).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")

    def rule(name: str, command: list[str], more: str = "") -> str:
        return f"rule {name}\n  command = {shlex.join(command).replace('$', '$$')}\n{more}"

    lines = []
    for i, (target, command) in enumerate(compiles.items()):
        lines.append(rule(f"cc{i}", [*command, "-MMD", "-MF", f"{target}.d"],
                          f"  depfile = {word(target)}.d\n  deps = gcc\n"))  # fmt: skip
        lines.append(f"build {word(target)}: cc{i} {word(command[command.index('-c') + 1])}\n")
    lines.append(rule("link", link))
    lines.append(f"build {word(library)}: link {' '.join(map(word, compiles))}\n")
    return "\n".join(lines)


def build(library: Path, out: Path) -> None:
    compiler = find_compiler()
    out.mkdir(parents=True, exist_ok=True)
    compiles = objects(compiler, out)
    flags = ["-shared", "-fopenmp"] if sys.platform != "darwin" else ["-bundle", "-undefined",
                                                                      "dynamic_lookup"]  # fmt: skip
    link = [*compiler, *flags, *sanitizers(), *map(str, compiles), "-o", str(library)]
    ninja = shutil.which("ninja")
    if ninja:
        (out / "build.ninja").write_text(ninja_text(compiles, link, library))
        run([ninja, "-C", str(out)])
    else:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(run, compiles.values()))
        run(link)


class BuildNative(build_ext):
    """One shared library by our own commands: each instruction set has its own flags."""

    def run(self) -> None:
        wanted = os.environ.get("LANGEVIN_BUILD", "auto").strip().lower()
        if wanted not in ("auto", "cpu", "none"):
            raise SystemExit(f"LANGEVIN_BUILD={wanted!r}: give one of auto, cpu, none")
        package = ROOT if self.inplace or self.editable_mode else Path(self.build_lib).resolve()
        package = package / "langevin_ext"
        package.mkdir(parents=True, exist_ok=True)
        library = package / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
        library.unlink(missing_ok=True)  # a stale library is worse than none
        record: dict[str, object] = {"requested": wanted, "built": False, "error": None}
        if wanted != "none":
            try:
                build(library, ROOT / "build" / "native" / library.stem)
                record["built"] = True
            except (BuildError, OSError, ImportError) as error:
                if wanted == "cpu":
                    raise SystemExit(f"langevin_ext._C could not be built: {error}") from error
                record["error"] = str(error)
                print(f"langevin_ext: installing without _C: {error}", file=sys.stderr)
        info = package / "_build.json"
        info.write_text(json.dumps(record, indent=2) + "\n")
        self.made = [str(p) for p in (library, info) if p.exists()]

    def get_outputs(self) -> list[str]:
        return getattr(self, "made", [])

    def get_output_mapping(self) -> dict[str, str]:
        return {}


setup(
    ext_modules=[Extension("langevin_ext._C", sources=[])],
    cmdclass={"build_ext": BuildNative},
)
