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

from .conftest import NO_NATIVE

ROOT = Path(__file__).parents[1]


def blocks(document: str = "README.md") -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.S)


def test_the_five_lines_sample() -> None:
    names: dict[str, Any] = {}
    exec(blocks()[0], names)
    assert names["samples"].x.shape == (1000, 2)
    assert not torch.equal(names["samples"].x, names["x0"])


def test_the_rules_have_diagnostics(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {"lx": lx}
    exec(blocks()[1], names)
    assert abs(float(names["samples"].stats.acceptance.mean()) - 0.574) < 0.05
    assert "rhat" in capsys.readouterr().out


@pytest.mark.skipif(NO_NATIVE is not None, reason=f"no native backend: {NO_NATIVE}")
def test_whole_chains_are_taken_by_themselves() -> None:
    names: dict[str, Any] = {"lx": lx, "torch": torch}
    exec(blocks()[2], names)
    rule, x0 = lx.Langevin(0.01), torch.zeros(100, 2)
    whole = lx.sample(names["energy"], x0, rule, 100, seed=0, whole_chain=True)
    assert torch.equal(names["samples"].x[:100], whole.x)


@pytest.mark.skipif(NO_NATIVE is not None, reason=f"no native backend: {NO_NATIVE}")
def test_whole_chains_are_as_documented() -> None:
    """The lines run, of an energy so flat that chains stay together; the error is that one."""
    names: dict[str, Any] = {}
    torch.manual_seed(0)
    exec(blocks("docs/WHOLE_CHAINS.md")[0], names)
    whole, single, network = (names[name] for name in ("whole", "single", "network"))
    torch.testing.assert_close(whole.x, single.x, atol=1e-5, rtol=1e-5)
    network[1] = torch.nn.GELU()
    said = re.search(r"ArgumentError: (.*)\n", (ROOT / "docs/WHOLE_CHAINS.md").read_text())
    assert said is not None
    with pytest.raises(lx.errors.ArgumentError, match=re.escape(said[1])):
        lx.sample(network, names["x0"], lx.Langevin(0.01), 100, whole_chain=True)


def test_the_step_is_equivalent_to_the_lines_beside_it() -> None:
    x = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    grad = 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    grad[:32] *= 10  # norms of about 1.4 and 14: on either side of the clip, nearly
    fused: dict[str, Any] = {"lx": lx, "x": x.clone(), "grad": grad}
    exec(blocks()[3], fused)
    lines: dict[str, Any] = {"torch": torch, "x": x.clone(), "grad": grad, "noise": lx.Noise(0)}
    exec(blocks()[4], lines)
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


def run_example(name: str, out: Path, *arguments: str, **smaller: Any) -> None:
    """An example's picture, with fewer chains or steps than a person would take."""
    pytest.importorskip("matplotlib", reason="the trainers' extra is not installed")
    main = runpy.run_path(str(ROOT / "python/examples" / f"{name}.py"))["main"]
    main.__globals__.update(smaller)
    main(str(out), *arguments)
    assert out.stat().st_size > 10_000


def test_quickstart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_example("quickstart", tmp_path / "x.png")
    means = re.findall(r"mean \[(-?[\d.]+)", capsys.readouterr().out)
    assert len(means) == 2
    assert all(abs(float(m)) < 0.05 for m in means), "the banana is symmetric"


def test_example_of_the_rules(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """MALA and HMC get the mean square radius of both targets, within 5 standard errors."""
    run_example("rules", tmp_path / "x.png", CHAINS=1000)
    out = capsys.readouterr().out
    radii = re.findall(r"(\w+): [\d.]+ s; \|x\|\^2 = ([\d.]+)", out)
    truth = re.findall(r"truth: \|x\|\^2 = ([\d.]+), deviation ([\d.]+)", out)
    assert len(radii) == 10
    for i, (rule, radius) in enumerate(radii):
        mean, deviation = map(float, truth[i // 5])
        if rule in ("MALA", "HMC"):
            assert abs(float(radius) - mean) < 5 * deviation / 1000**0.5, (i, rule)


def test_example_of_the_bias(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From draws of the target metropolis keeps it, and AniLA as written leaves it."""
    run_example("anila_bias", tmp_path / "x.png", CHAINS=4000, STEPS=800)
    shares = re.findall(r"(.+): ([\d.]+)%", capsys.readouterr().out)
    share = {name: float(number) / 100 for name, number in shares}
    error = 5 * (0.25 / 4000) ** 0.5
    assert abs(share["metropolis"] - share["the target"]) < error
    assert share["as written"] > share["the target"] + error
    assert share["AniLA's law"] == pytest.approx(0.613, abs=0.001)


def test_example_of_a_million(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """40,000 have the shares and the mean radius: 5 standard errors, and the bias of the step."""
    run_example("million", tmp_path / "x.png", CHAINS=40_000, BATCH=15_000)
    line = r"(chains|exact): modes ([\d. ]+), mean radius ([\d.]+)"
    found = re.findall(line, capsys.readouterr().out)
    assert [who for who, _, _ in found] == ["chains", "exact"] * 2
    for (_, got, radius), (_, want, mean) in (found[:2], found[2:]):
        for a, b in zip(map(float, got.split()), map(float, want.split()), strict=True):
            assert abs(a - b) < 5 * (b * (1 - b) / 40_000) ** 0.5 + 0.002
        assert abs(float(radius) - float(mean)) < 5 * 0.4 / 40_000**0.5 + 0.002


def test_a_million_is_the_same_in_any_batch() -> None:
    pytest.importorskip("matplotlib", reason="the trainers' extra is not installed")
    run = runpy.run_path(str(ROOT / "python/examples/million.py"))["run"]
    frames = []
    for batch in (100, 37):
        run.__globals__.update(CHAINS=100, BATCH=batch)
        frames.append(run(lx.energies.EightGaussians())[0])
    assert torch.equal(*frames)


def test_example_of_learning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """200 updates on two moons take the divergence from 1.03 to 0.06."""
    smaller = {"ITERATIONS": 200, "PICTURES": 1, "SAMPLES": 1000, "SAMPLE_STEPS": 50}
    run_example("train_2d", tmp_path / "x.png", "moons", **smaller)
    out = capsys.readouterr().out
    after, before = map(float, re.findall(r"KL\(target \| model\) = ([\d.]+)", out))
    assert after < 0.25 * before
