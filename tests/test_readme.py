"""What the README shows runs, and is equivalent to what it says it is."""

from __future__ import annotations

import dataclasses
import importlib
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import langevin_ext as lx

ROOT = Path(__file__).parents[1]


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)


def test_the_five_lines_sample() -> None:
    names: dict[str, Any] = {}
    exec(blocks()[0], names)
    assert names["samples"].x.shape == (1000, 2)
    assert not torch.equal(names["samples"].x, names["x0"])


def test_the_step_is_equivalent_to_the_lines_beside_it() -> None:
    x = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    grad = 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    grad[:32] *= 10  # norms of about 1.4 and 14: on either side of the clip, nearly
    fused: dict[str, Any] = {"lx": lx, "x": x.clone(), "grad": grad}
    exec(blocks()[1], fused)
    lines: dict[str, Any] = {"torch": torch, "x": x.clone(), "grad": grad, "noise": lx.Noise(0)}
    exec(blocks()[2], lines)
    torch.testing.assert_close(fused["x"], lines["x"], atol=1e-6, rtol=1e-5)
    assert fused["noise"].step == lines["noise"].step == 1
    assert (fused["x"] - x).abs().max() > 0.01


def test_the_tables_are_made_from_the_rows() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "table.py"), "--check"],
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_gpus_table_shows_shares_of_the_measured_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """1000 elements: a copy of 8 bytes each in 10 us, the exact step of 12 in 20: 75 %."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    rows, table = importlib.import_module("rows"), importlib.import_module("table")
    blank = {field.name: "" for field in dataclasses.fields(rows.Row)}
    times = {"ours": 20.0, "ours-bf16": 25.0, "copy": 10.0, "tuned": 90.0}
    blank |= {"shape": "10x100", "elements": 1000}
    made = [rows.Row(**blank | {"contender": c, "median_us": us}) for c, us in times.items()]
    line = table.table("step-cuda", made).splitlines()[4]
    values = [cell.strip() for cell in line.strip("|").split("|")]
    cells = dict(zip(table.GPU_COLUMNS, values, strict=True))
    assert (cells["exact"], cells["bf16 gradient"], cells["approximate"]) == ("75%", "50%", "-")
    assert (cells["tuned"], cells["µs"]) == ("4.50", "20.0")


def test_the_example_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="the trainers' extra is not installed")
    runpy.run_path(str(ROOT / "python/examples/quickstart.py"))["main"](str(tmp_path / "x.png"))
    assert (tmp_path / "x.png").stat().st_size > 10_000
    means = re.findall(r"mean \[(-?[\d.]+)", capsys.readouterr().out)
    assert len(means) == 2
    assert all(abs(float(m)) < 0.05 for m in means), "the banana is symmetric"
