"""The suite notices a wrong sampler: every bug of `planted_bugs` is caught by the test it names."""

from __future__ import annotations

import ast
import importlib.util
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import NO_NATIVE, native
from .planted_bugs import BUGS, Bug

ROOT = Path(__file__).parents[1]
BUILT = "csrc/", "setup.py"
KERNELS = "tests/kernels/"  # in a process of their own, where Triton is its interpreter
NO_TRITON = importlib.util.find_spec("triton") is None


def test_every_bug_can_be_planted() -> None:
    """Its text occurs once in its file, and it changes something."""
    counts = {bug.name: (ROOT / bug.file).read_text().count(bug.old) for bug in BUGS}
    assert {name: n for name, n in counts.items() if n != 1} == {}
    assert [bug.name for bug in BUGS if bug.old == bug.new] == []
    assert [name for name, n in Counter(bug.name for bug in BUGS).items() if n > 1] == []


def test_every_named_test_exists() -> None:
    for bug in BUGS:
        file, _, name = bug.test.partition("::")
        tree = ast.parse((ROOT / file).read_text())
        names = [n.name for n in tree.body if isinstance(n, ast.FunctionDef)]
        assert names.count(name) == 1, bug.test


def _run(command: list[str], copy: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command in the copy, which comes before any installation of the package."""
    return subprocess.run(
        command,
        cwd=copy,
        env=os.environ
        | {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": os.pathsep.join([str(copy), str(copy / "python")]),
            "PYTHONDONTWRITEBYTECODE": "1",  # a file changed twice in a second keeps its old .pyc
        }
        | environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )


def _build(copy: Path) -> None:
    """For this machine's best instruction set and the generic one, in half the time of all."""
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    done = _run(command, copy, LANGEVIN_BUILD="cpu", LANGEVIN_ISAS=native.isas[0])
    assert done.returncode == 0, done.stdout


def _test(copy: Path, *nodes: str) -> subprocess.CompletedProcess[str]:
    options = ["-q", "-x", "-m", "", "-p", "no:cacheprovider"]
    interpreted = {"TRITON_INTERPRET": "1"} if nodes[0].startswith(KERNELS) else {}
    return _run([sys.executable, "-m", "pytest", *options, *nodes], copy, **interpreted)


WHERE = """
import langevin_ext, langevin_ext.backends as b, torch
print(langevin_ext.__file__)
if b.why_not("native", torch.device("cpu")) is None:
    from langevin_ext import _C
    print(_C.__file__)
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A built copy of the checkout, in which every named test passes."""
    git = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(git, capture_output=True, text=True, check=True).stdout
    copy = tmp_path_factory.mktemp("planted") / "checkout"
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).exists():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    if NO_NATIVE is None:
        _build(copy)
    where = _run([sys.executable, "-c", WHERE], copy).stdout.split()
    assert where, "nothing was imported"
    assert all(Path(file).is_relative_to(copy) for file in where), where
    nodes = sorted({bug.test for bug in BUGS})
    kernels = [node for node in nodes if node.startswith(KERNELS)]
    others = [node for node in nodes if not node.startswith(KERNELS)]
    for group in (others, [] if NO_TRITON else kernels):
        if group:
            done = _test(copy, *group)
            assert done.returncode == 0, done.stdout[-4000:]
    return copy


@pytest.fixture
def planted(copy: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Path, Bug]]:
    """The copy with one bug in it, for the time of a test."""
    bug: Bug = request.param
    if NO_NATIVE is not None and (bug.file.startswith(BUILT) or "native" in bug.file):
        pytest.skip(f"no native backend: {NO_NATIVE}")
    if NO_TRITON and (bug.test.startswith(KERNELS) or "triton" in bug.file):
        pytest.skip("triton is not installed")
    file = copy / bug.file
    text = file.read_text()
    file.write_text(text.replace(bug.old, bug.new))
    libraries = list((copy / "langevin_ext").glob("_C.*"))
    good = {library: library.read_bytes() for library in libraries}
    try:
        if bug.file.startswith(BUILT):
            _build(copy)
        yield copy, bug
    finally:
        file.write_text(text)
        for library, content in good.items():
            library.write_bytes(content)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("planted", BUGS, ids=[bug.name for bug in BUGS], indirect=True)
def test_a_planted_bug_is_caught(planted: tuple[Path, Bug]) -> None:
    copy, bug = planted
    done = _test(copy, bug.test)
    assert done.returncode == 1, f"{bug.test} passes with the bug: {done.stdout[-2000:]}"
