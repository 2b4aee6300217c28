"""The package installs wherever Python does, and says at run time what is missing and why."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytest.importorskip("setuptools", reason="a build backend is needed to test the build")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what a build reads, without anything built."""
    copy = tmp_path / "checkout"
    built = shutil.ignore_patterns("_C.*", "_build.json", "__pycache__")
    for name in ("csrc", "langevin_ext", "python"):
        shutil.copytree(ROOT / name, copy / name, ignore=built)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    return copy


def build(checkout: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    keep = {k: v for k, v in os.environ.items() if k not in ("CXX", "LANGEVIN_BUILD")}
    return subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        cwd=checkout,
        env=keep | environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )


INFO = """
import sys
# An editable installation answers for submodules that the copy lacks.
sys.meta_path = [f for f in sys.meta_path if not str(f.__module__).startswith("__editable__")]
import langevin_ext.info
print(langevin_ext.__file__, langevin_ext.info.report(), sep="\\n")
"""


def info(checkout: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", INFO],
        cwd=checkout,
        env=os.environ | {"PYTHONPATH": str(checkout)},
        text=True,
        capture_output=True,
        check=True,
    )
    assert done.stdout.startswith(str(checkout)), "the copy is what is imported"
    return done.stdout


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_no_compiler_is_no_obstacle(checkout: Path, tmp_path: Path) -> None:
    done = build(checkout, PATH=str(tmp_path / "empty"))
    assert done.returncode == 0, done.stdout
    assert "no C++ compiler" in done.stdout
    assert "not available" in info(checkout)
    assert "the native build failed at installation: no C++ compiler" in info(checkout)


def test_a_failing_compiler_is_quoted(checkout: Path, tmp_path: Path) -> None:
    broken = script(tmp_path / "bin" / "c++", "echo 'cc1plus: out of luck' >&2; exit 1")
    done = build(checkout, CXX=str(broken))
    assert done.returncode == 0, done.stdout
    assert (
        "cc1plus: out of luck"
        in json.loads((checkout / "langevin_ext" / "_build.json").read_text())["error"]
    )
    assert "cc1plus: out of luck" in info(checkout)


def test_an_explicit_build_fails_loudly(checkout: Path, tmp_path: Path) -> None:
    done = build(checkout, PATH=str(tmp_path / "empty"), LANGEVIN_BUILD="cpu")
    assert done.returncode != 0
    assert "langevin_ext._C could not be built: no C++ compiler" in done.stdout


def test_leaving_the_native_part_out(checkout: Path) -> None:
    assert build(checkout, LANGEVIN_BUILD="none").returncode == 0
    assert "left out at installation (LANGEVIN_BUILD=none)" in info(checkout)


def test_an_unknown_request_is_refused(checkout: Path) -> None:
    done = build(checkout, LANGEVIN_BUILD="gpu")
    assert done.returncode != 0
    assert "LANGEVIN_BUILD='gpu': give one of auto, cpu, none" in done.stdout


def test_an_unknown_instruction_set_is_refused(checkout: Path) -> None:
    done = build(checkout, LANGEVIN_BUILD="cpu", LANGEVIN_ISAS="generic, mmx")
    assert done.returncode != 0
    assert "LANGEVIN_ISAS='generic, mmx': give some of " in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("ninja", [True, False], ids=["ninja", "no ninja"])
def test_it_builds_with_a_broken_nvcc(checkout: Path, tmp_path: Path, ninja: bool) -> None:
    """There is no CUDA part yet, so a broken nvcc cannot matter; with and without ninja."""
    pytest.importorskip("pybind11", reason="a build in this environment needs it")
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler")
    script(tmp_path / "bin" / "nvcc", "exit 1")
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    if not ninja:
        hidden = tmp_path / "tools"
        hidden.mkdir()
        for name in ("c++", "as", "ld", "cc1plus", "collect2"):
            if found := shutil.which(name):
                (hidden / name).symlink_to(found)
        path = f"{tmp_path / 'bin'}:{hidden}"
    done = build(checkout, PATH=path, LANGEVIN_BUILD="cpu", LANGEVIN_ISAS="generic")
    assert done.returncode == 0, done.stdout
    assert (checkout / "build" / "native").exists()
    assert bool(list(checkout.glob("build/native/*/build.ninja"))) == ninja
    assert "native backend" in info(checkout)
    assert "; has generic\n" in info(checkout)


@pytest.mark.slow
def test_pip_builds_in_isolation_without_torch(checkout: Path, tmp_path: Path) -> None:
    """A wheel from the declared build requirements alone; it holds what the package needs."""
    out = tmp_path / "wheels"
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", str(out), str(checkout)]
    done = subprocess.run(command, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = out.glob("*.whl")
    listing = subprocess.run(
        [sys.executable, "-m", "zipfile", "-l", str(wheel)], text=True, capture_output=True
    ).stdout
    for file in ("langevin_ext/py.typed", "langevin_ext/_build.json", "ebm_trainers/short_run.py"):
        assert file in listing
    assert ("langevin_ext/_C." in listing) == (shutil.which("c++") is not None)
