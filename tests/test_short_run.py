"""Short-run training: the algorithm, the files it leaves, exact resume, signals."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

for package in ("matplotlib", "PIL", "safetensors", "skimage", "sklearn", "tyro"):
    pytest.importorskip(package, reason="the trainers' extra is not installed")

from ebm_trainers import __main__ as command, checkpoint, data, loop
from ebm_trainers.errors import ConfigError
from ebm_trainers.short_run import ShortRun, ShortRunConfig, train
from langevin_ext import Noise
from langevin_ext.errors import NonFiniteError

TINY = {"iterations": 6, "steps": 3, "batch": 16, "width": 4, "samples": 20, "progress": False}


def tiny(out: Path, **changes: object) -> ShortRunConfig:
    return ShortRunConfig(out=out, **(TINY | changes))  # type: ignore[arg-type]


def method(out: Path, **changes: object) -> ShortRun:
    return ShortRun(tiny(out, **changes), data.load("digits"), torch.device("cpu"))


def weights(out: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load(checkpoint.newest(out / "checkpoints"))[0]


def assert_same_run(a: Path, b: Path) -> None:
    """Weights, optimizer, noise, samples and log, to the bit; seconds apart."""
    (ta, ma), (tb, mb) = (checkpoint.load(checkpoint.newest(p / "checkpoints")) for p in (a, b))
    assert ma == mb
    assert ta.keys() == tb.keys()
    assert all(torch.equal(ta[k], tb[k]) for k in ta)
    assert np.array_equal(np.load(a / "samples.npy"), np.load(b / "samples.npy"))
    rows = [
        [{**json.loads(line), "seconds": 0} for line in (p / "log.jsonl").read_text().splitlines()]
        for p in (a, b)
    ]
    assert rows[0] == rows[1]


def test_an_iteration_is_algorithm_1(tmp_path: Path) -> None:
    """Against the algorithm written out by hand, with autograd's chain and the run's noise."""
    learner = method(tmp_path, autocast="none", width=2)
    network = learner.network
    twin = ShortRun(learner.config, learner.images, torch.device("cpu")).network
    optimizer = torch.optim.Adam(twin.parameters(), lr=2e-4)

    logged = learner.learn(0)

    noise = Noise(0)
    order = Noise(0, stream=7).uniform((1, 1438))[0].argsort(stable=True)
    x = 2 * Noise(0, stream=4).uniform((16, 1, 8, 8)) - 1
    positive = learner.images.train[order[:16]]
    positive = positive + 0.03 * Noise(0, stream=5).normal(positive.shape)
    norms = []
    for _ in range(3):
        x.requires_grad_()
        (grad,) = torch.autograd.grad(twin(x).sum(), x)
        norms.append(grad.flatten(1).norm(dim=1).mean())
        x = (x - grad + 0.01 * noise.normal(x.shape)).detach()
        noise.advance()
    gap = twin(positive).mean() - twin(x).mean()
    gap.backward()
    optimizer.step()

    assert logged["gap"] == pytest.approx(gap.item(), abs=1e-6)
    assert logged["grad_norm"] == pytest.approx(torch.stack(norms).mean().item(), rel=1e-5)
    for ours, by_hand in zip(network.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, by_hand.grad, atol=1e-6, rtol=1e-3)
        # Adam's first update is the rate times the gradient's sign, wherever there is a gradient.
        sure = by_hand.grad.abs() > 1e-4
        torch.testing.assert_close(ours[sure], by_hand[sure], atol=1e-6, rtol=0)
    assert learner.noise.step == 3


def test_every_image_is_seen_once_an_epoch(tmp_path: Path) -> None:
    learner = method(tmp_path, batch=100)
    # Tag every image with its own number, so that equal digits are told apart.
    learner.train = learner.train.clone()
    learner.train[:, 0, 0, 0] = torch.arange(1438.0)
    seen = torch.cat([learner.batch(t) for t in range(14)])[:, 0, 0, 0]
    assert len(seen.unique()) == len(seen) == 1400
    again = torch.cat([learner.batch(t) for t in range(14, 28)])[:, 0, 0, 0]
    assert len(again.unique()) == 1400
    assert not torch.equal(learner.batch(0), learner.batch(14))


def test_a_run_leaves_what_it_promises(tmp_path: Path) -> None:
    from PIL import Image

    report = train(tiny(tmp_path / "run"))
    out = tmp_path / "run"
    samples = np.load(out / "samples.npy")
    assert samples.shape == (20, 1, 8, 8)
    assert samples.dtype == np.float32
    assert np.abs(samples).max() <= 1
    for name in ("samples.png", "chains.png", "curves.png"):
        with Image.open(out / name) as picture:
            assert picture.width >= 300
            assert len(set(picture.convert("L").tobytes())) > 20, f"{name} is blank"
    assert json.loads((out / "config.json").read_text())["settings"]["steps"] == 3
    assert [json.loads(r)["iteration"] for r in (out / "log.jsonl").read_text().splitlines()] == [6]
    judged = json.loads((out / "report.json").read_text())
    assert judged.keys() == report.keys()
    assert judged["real, held out"]["nearest"] < judged["fitted Gaussian"]["nearest"]
    assert judged["this model"]["mmd2"] > 0.1, "six iterations make no digits"


def test_two_runs_with_one_seed_are_one_run(tmp_path: Path) -> None:
    train(tiny(tmp_path / "a"))
    torch.manual_seed(99)  # the global generator has no part in it
    train(tiny(tmp_path / "b"))
    assert_same_run(tmp_path / "a", tmp_path / "b")
    train(tiny(tmp_path / "c", seed=1))
    assert not torch.equal(
        weights(tmp_path / "a")["network.head.weight"],
        weights(tmp_path / "c")["network.head.weight"],
    )


@pytest.mark.parametrize("at", [1, 4])
def test_resume_goes_on_bitwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """A signal in iteration ``at``, then --resume, against a run that nobody interrupted."""
    train(tiny(tmp_path / "whole"))
    learn = ShortRun.learn

    def interrupted(self: ShortRun, iteration: int) -> dict[str, float]:
        if iteration == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return learn(self, iteration)

    with monkeypatch.context() as patch:
        patch.setattr(ShortRun, "learn", interrupted)
        with pytest.raises(loop.Stopped) as stop:
            train(tiny(tmp_path / "parts"))
    assert stop.value.code == 128 + signal.SIGTERM
    assert checkpoint.newest(tmp_path / "parts" / "checkpoints").name == f"step-{at + 1:08d}"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    # Only the folder and --resume are given: the settings are those the run began with.
    train(ShortRunConfig(out=tmp_path / "parts", resume=True))
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_ctrl_c_from_a_terminal_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = "train short-run --iterations 100000 --steps 2 --batch 16 --width 4 --out"
    command_line = [sys.executable, "-m", "ebm_trainers", *arguments.split(), str(out)]
    with subprocess.Popen(command_line, stderr=subprocess.PIPE, text=True) as run:
        deadline = time.monotonic() + 60
        while not (out / "log.jsonl").exists() or not (out / "log.jsonl").read_text():
            assert time.monotonic() < deadline, "the run did not start"
            assert run.poll() is None
            time.sleep(0.05)
        run.send_signal(signal.SIGINT)
        _, said = run.communicate(timeout=60)
    assert run.returncode == 130
    assert f"--out {out} --resume" in said
    step = int(checkpoint.newest(out / "checkpoints").name[5:])
    assert step >= 10
    assert "Traceback" not in said


def test_a_run_killed_before_its_first_checkpoint_begins_again(tmp_path: Path) -> None:
    train(tiny(tmp_path / "whole"))
    train(tiny(tmp_path / "killed"))
    for name in ("checkpoints", "samples.npy", "report.json"):
        path = tmp_path / "killed" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    train(ShortRunConfig(out=tmp_path / "killed", resume=True, progress=False))
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_a_dozen_images_are_enough_to_run(tmp_path: Path) -> None:
    """The models it is compared with must not fail where it does not."""
    np.save(tmp_path / "few.npy", np.random.RandomState(0).rand(15, 1, 8, 8) * 2 - 1)
    report = train(tiny(tmp_path / "run", data=str(tmp_path / "few.npy"), batch=8))
    assert "6 diagonal Gaussians" in report
    assert report["this model"].confident is None


def test_a_torn_log_line_is_dropped_on_resume(tmp_path: Path) -> None:
    train(tiny(tmp_path / "run", iterations=20))
    log = tmp_path / "run" / "log.jsonl"
    whole = log.read_text()
    log.write_text(whole + '{"iteration": 30, "gap"')
    train(ShortRunConfig(out=tmp_path / "run", resume=True, progress=False))
    assert [json.loads(r)["iteration"] for r in log.read_text().splitlines()] == [10, 20]


def test_a_loss_that_is_not_finite_never_reaches_the_weights(tmp_path: Path) -> None:
    learner = method(tmp_path)
    with torch.no_grad():
        learner.network.head.bias.fill_(float("inf"))
    before = {k: v.clone() for k, v in learner.network.state_dict().items()}
    with pytest.raises(NonFiniteError):
        learner.learn(0)
    assert all(torch.equal(before[k], v) for k, v in learner.network.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"iterations": 0}, "iterations=0"),
        ({"steps": -1}, "steps=-1"),
        ({"learning_rate": float("nan")}, "learning_rate=nan"),
        ({"drift": 0.0}, "drift=0"),
        ({"noise_std": -0.1}, "noise_std=-0.1"),
        ({"batch": 5000}, "batch=5000"),
        ({"data": "nonsense"}, "data 'nonsense'"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train(tiny(tmp_path / "run", **changes))


def test_a_folder_with_a_run_is_not_overwritten(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nonsense"):
        train(tiny(tmp_path / "run", data="nonsense"))  # leaves nothing behind
    train(tiny(tmp_path / "run"))
    before = (tmp_path / "run" / "log.jsonl").read_text()
    with pytest.raises(ConfigError, match="holds a run already"):
        train(tiny(tmp_path / "run"))
    with pytest.raises(ConfigError, match=r"steps=4.*has steps=3"):
        train(tiny(tmp_path / "run", steps=4, resume=True))
    with pytest.raises(ConfigError, match="no run to resume"):
        train(tiny(tmp_path / "elsewhere", resume=True))
    assert (tmp_path / "run" / "log.jsonl").read_text() == before


def test_resuming_elsewhere_warns(tmp_path: Path) -> None:
    train(tiny(tmp_path / "run"))
    file = tmp_path / "run" / "config.json"
    record = json.loads(file.read_text())
    record["environment"]["torch"] = "1.0"
    file.write_text(json.dumps(record))
    with pytest.warns(UserWarning, match=r"began with torch: 1\.0"):
        train(ShortRunConfig(out=tmp_path / "run", resume=True, progress=False))


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["info"]) == 0
    printed = capsys.readouterr().out
    for line in ("langevin_ext", "torch", "triton", "native backend", "build"):
        assert line in printed
    assert command.main(["fly"]) == 2
    assert "do not know 'fly'" in capsys.readouterr().err
    assert command.main(["train", "short-run", "--data", "nowhere", "--out", str(tmp_path)]) == 1
    assert "data 'nowhere'" in capsys.readouterr().err
    options = "--iterations 2 --steps 2 --batch 8 --width 2 --samples 10 --no-progress"
    out = str(tmp_path / "run")
    assert command.main(["train", "short-run", *options.split(), "--out", out]) == 0
    assert "fitted Gaussian" in capsys.readouterr().out


@pytest.mark.slow
def test_the_demo_learns_digits(tmp_path: Path) -> None:
    """`make demo`'s training, held to the figures that the README gives."""
    began = time.monotonic()
    quality = train(ShortRunConfig(out=tmp_path / "run"))
    seconds = time.monotonic() - began
    model = quality["this model"]
    assert model.mmd2 <= 0.010
    assert model.confident is not None
    assert model.confident >= 0.25
    assert model.nearest <= 2.9
    assert seconds < 180, f"{seconds:.0f} s on this machine"
