"""Checkpoints are whole, checked, and run no code."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("safetensors", reason="the trainers' extra is not installed")

from ebm_trainers import checkpoint
from ebm_trainers.errors import CheckpointError

TENSORS = {
    "weights": torch.arange(12.0).reshape(3, 4),
    "half": torch.tensor([1.5, float("nan")], dtype=torch.bfloat16),
    "empty": torch.empty(0, 3),
    "count": torch.tensor(7, dtype=torch.int64),
}
META = {"noise": {"seed": 2**64 - 1, "step": 5}, "rates": [0.1, 1e-300]}


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    tensors, meta = checkpoint.load(checkpoint.save(tmp_path, 3, TENSORS, META))
    assert meta == META
    assert set(tensors) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        same = tensors[name].flatten().view(torch.uint8) == tensor.flatten().view(torch.uint8)
        assert bool(same.all()), name


def test_newest_comes_last_and_old_ones_go(tmp_path: Path) -> None:
    for step in (9, 10, 123456789, 11):
        checkpoint.save(tmp_path, step, TENSORS, {"step": step}, keep=2)
    assert [p.name for p in checkpoint.everything(tmp_path)] == ["step-00000011", "step-123456789"]
    assert checkpoint.load(checkpoint.newest(tmp_path))[1] == {"step": 123456789}


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, TENSORS, {"try": 1})
    checkpoint.save(tmp_path, 1, TENSORS, {"try": 2})
    assert checkpoint.load(checkpoint.newest(tmp_path))[1] == {"try": 2}


def test_no_checkpoint_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        checkpoint.newest(tmp_path)
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        checkpoint.load(tmp_path / "nowhere")


def test_a_failed_save_leaves_the_previous_one(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, TENSORS, META)
    with pytest.raises(CheckpointError, match="could not be written"):
        checkpoint.save(tmp_path, 2, TENSORS, {"not JSON": object()})
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]
    checkpoint.load(checkpoint.newest(tmp_path))


@pytest.mark.parametrize("file", ["tensors.safetensors", "manifest.json"])
def test_damage_is_refused_by_its_own_error(tmp_path: Path, file: str) -> None:
    """Of 300 altered files each is refused, or was altered harmlessly and reads the same."""
    whole = checkpoint.save(tmp_path, 1, TENSORS, META)
    data = (whole / file).read_bytes()
    chance = random.Random(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(data)
        if chance.random() < 0.3:
            del damaged[chance.randrange(len(damaged)) :]
        for _ in range(chance.randint(1, 4)):
            if damaged:
                damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        (whole / file).write_bytes(damaged)
        try:
            tensors, _ = checkpoint.load(whole)
        except CheckpointError:
            refused += 1
        else:
            assert file == "manifest.json" or bytes(damaged) == data
            assert torch.equal(tensors["weights"], TENSORS["weights"])
    assert refused > 200


def test_a_pickle_is_refused_unopened(tmp_path: Path) -> None:
    class Canary:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "ran",))

    whole = checkpoint.save(tmp_path, 1, TENSORS, META)
    torch.save({"x": Canary()}, whole / "tensors.safetensors")
    manifest = json.loads((whole / "manifest.json").read_text())
    data = (whole / "tensors.safetensors").read_bytes()
    checksum = checkpoint._checksum(data, manifest["step"], manifest["meta"])
    manifest |= {"sha256": checksum, "bytes": len(data)}
    (whole / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        checkpoint.load(whole)
    assert not (tmp_path / "ran").exists()


WRITER = """
import sys, torch
from pathlib import Path
from ebm_trainers import checkpoint
step = 0
while True:
    step += 1
    x = torch.full((200, 1000), float(step))
    checkpoint.save(Path(sys.argv[1]), step, {"x": x}, {"step": step})
    print(step, flush=True)
"""


def test_killed_while_writing_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    """SIGKILL at 5 random moments: the newest is whole, and no older than the last announced."""
    chance = random.Random(1)
    for attempt in range(5):
        folder = tmp_path / str(attempt)
        command = [sys.executable, "-c", WRITER, str(folder)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            announced = int(writer.stdout.readline())
            time.sleep(chance.uniform(0, 0.05))
            writer.kill()
            rest = writer.stdout.read().split("\n")
        announced = max([announced, *(int(line) for line in rest[:-1] if line)])
        tensors, meta = checkpoint.load(checkpoint.newest(folder))
        assert meta["step"] >= announced
        assert torch.equal(tensors["x"], torch.full((200, 1000), float(meta["step"])))
        checkpoint.save(folder, 10**6, TENSORS, META)
        assert not list(folder.glob(".partial-*"))
