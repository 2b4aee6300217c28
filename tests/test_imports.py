"""Imports run one way, and the package works where its optional parts do not."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import langevin_ext

PACKAGE = Path(langevin_ext.__file__).parent

# Lowest first: a module imports modules of lower layers, or of its own subpackage.
LAYERS = (
    {"errors", "_types"},
    {"philox"},
    {"backends", "backends._memory", "backends.native", "backends.reference"}
    | {f"backends.triton{part}" for part in ("", "._launch", ".kernels", ".noise")}
    | {
        f"backends.triton.kernels.{part}"
        for part in ("accept", "draw", "kinetic", "step", "tally", "tile")
    },
    {"_check", "_derivative", "_run", "_diagnostics", "_summary", "_arviz"},
    {"diagnostics"},
    {"plots"},
    {"ops"},
    {"noise"},
    {"step", "gradient", "_moves"}
    | {f"energies{part}" for part in ("", "._analytic", "._arguments", "._draws", ".curved")}
    | {f"energies.{part}" for part in ("gaussian", "mixture", "rings", "scaled", "separable")},
    {"samplers", "samplers._rule", "samplers._adapt", "samplers.langevin", "samplers.anila"}
    | {"samplers.mala", "samplers.hmc", "samplers.kinetic", "samplers.tula"},
    {"_watch", "_mlp"},
    {"_chain"},
    {"sample"},
    {"unroll"},
    {""},  # langevin_ext/__init__.py
    {"info"},
    {"testing", "testing._draws", "testing.bounds", "testing.checks", "testing.design"}
    | {"testing.independence", "testing.kernel", "testing.ranks"},
)
LAYER = {module: i for i, modules in enumerate(LAYERS) for module in modules}


def _name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


FILES = {_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def _at_run_time(node: ast.AST) -> Iterator[ast.AST]:
    """Every node below, but for blocks that only a type checker reads."""
    yield node
    for child in ast.iter_child_nodes(node):
        checked = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)
        if not checked:
            yield from _at_run_time(child)


def imports(module: str) -> set[str]:
    """The modules of the package that a module names in an import, anywhere in its code."""
    found = set()
    for node in _at_run_time(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
            found |= {".".join(name[1:]) for name in names if name[0] == "langevin_ext"}
        elif isinstance(node, ast.ImportFrom):
            base = (node.module or "").split(".") if node.module else []
            if node.level:
                package = module.split(".") if module else []
                if FILES[module].name != "__init__.py":
                    package = package[:-1]
                base = package[: len(package) - node.level + 1] + base
            elif base[:1] == ["langevin_ext"]:
                base = base[1:]
            else:
                continue
            for alias in node.names:
                name = ".".join([*base, alias.name])
                found.add(name if name in FILES or alias.name == "_C" else ".".join(base))
    return found


def test_every_module_has_its_layer() -> None:
    assert FILES.keys() == LAYER.keys()


@pytest.mark.parametrize("module", FILES)
def test_imports_run_one_way(module: str) -> None:
    for imported in imports(module) - {"_C"}:
        within = module.partition(".")[0] == imported.partition(".")[0] != ""
        assert within or LAYER[imported] < LAYER[module], f"{module} imports {imported}"


def test_backends_know_neither_one_another_nor_what_is_above() -> None:
    allowed = set().union(*LAYERS[:2]) | {"backends._memory"}
    own = {"native": {"_C"}, "triton": {name for name in FILES if "backends.triton." in name}}
    for module in LAYERS[2] - {"backends"}:
        backend = module.split(".")[1]
        assert imports(module) <= allowed | own.get(backend, set()), module
    assert imports("backends") <= allowed


def test_only_the_native_backend_knows_the_compiled_module() -> None:
    assert [module for module in FILES if "_C" in imports(module)] == ["backends.native"]
    named = [module for module, path in FILES.items() if "langevin_ext._C" in path.read_text()]
    assert named == []


WITHOUT = """
import sys, warnings
sys.modules["langevin_ext._C"] = sys.modules["triton"] = None
import torch
import langevin_ext
from langevin_ext import errors

def step(backend):
    x = torch.linspace(-1, 1, 12).view(3, 4)
    noise = langevin_ext.Noise(1)
    langevin_ext.langevin_step_(
        x, x.clone(), drift=0.1, diffusion=1.0, max_grad_norm=1.0, noise=noise, backend=backend
    )
    return x

try:
    step("native")
except errors.BackendError as error:
    message = str(error)
    assert "'native' cannot be used on cpu" in message and "_C" in message, message
else:
    raise AssertionError("an explicit backend fell back")

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    first, second = step("auto"), step("auto")
kinds = [w.category for w in caught]
assert kinds == [errors.FallbackWarning], kinds
assert "native" in str(caught[0].message), caught[0].message
assert caught[0].filename == "<string>", caught[0].filename
assert torch.equal(first, step("reference")) and torch.equal(first, second)
"""


def test_the_package_works_without_its_compiled_module_and_triton() -> None:
    """An explicit "native" says why it cannot be; "auto" warns once and is the reference."""
    path = os.pathsep.join([str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
