"""Checkpoints: safetensors and a manifest with a checksum, written whole or not at all.

    DIR/step-00001200/tensors.safetensors     every tensor, by name
    DIR/step-00001200/manifest.json           format, checksum, and what is not a tensor

A checkpoint is made in a hidden folder, flushed to the disk and renamed, so a crash leaves the
previous one. Reading runs no code: there is no pickle in it, and what does not match its manifest
is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors, save as save_tensors
from torch import Tensor

from .errors import CheckpointError

FORMAT = 1
_TENSORS, _MANIFEST = "tensors.safetensors", "manifest.json"
_NAME = re.compile(r"step-(\d{8,})")


def save(
    directory: Path, step: int, tensors: dict[str, Tensor], meta: dict[str, Any], *, keep: int = 2
) -> Path:
    """Write a checkpoint and remove all but the newest ``keep``.

    Args:
        directory: where checkpoints live; made if missing.
        step: how far the run is; names the checkpoint.
        tensors: by name, of any dtype safetensors knows.
        meta: what JSON can hold.

    Returns:
        The checkpoint's folder.

    Raises:
        CheckpointError: it could not be written; earlier checkpoints are as they were.
    """
    target = directory / f"step-{step:08d}"
    partial = directory / f".partial-{step:08d}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for leftover in directory.glob(".partial-*"):
            shutil.rmtree(leftover)
        partial.mkdir()
        data = save_tensors({name: t.detach().cpu().contiguous() for name, t in tensors.items()})
        manifest = {
            "format": FORMAT,
            "step": step,
            "sha256": _checksum(data, step, meta),
            "bytes": len(data),
            "meta": meta,
        }
        _write(partial / _TENSORS, data)
        _write(partial / _MANIFEST, json.dumps(manifest, indent=2).encode())
        _flush_directory(partial)
        if target.exists():  # the same step once more: replace it
            shutil.rmtree(target)
        partial.rename(target)
        _flush_directory(directory)
        for old in everything(directory)[: -max(keep, 1)]:
            if old != target:
                shutil.rmtree(old)
    except (OSError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(f"checkpoint {target} could not be written: {error}") from error
    return target


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a checkpoint written by `save`: its tensors and its meta.

    Raises:
        CheckpointError: files are missing, truncated, altered, or of another format.
    """
    try:
        manifest = json.loads((path / _MANIFEST).read_bytes())
        data = (path / _TENSORS).read_bytes()
        if manifest["format"] != FORMAT:
            raise CheckpointError(f"{path} has format {manifest['format']}; this reads {FORMAT}")
        if len(data) != manifest["bytes"]:
            raise CheckpointError(
                f"{path} is damaged: {len(data)} bytes of tensors, not {manifest['bytes']}"
            )
        if _checksum(data, manifest["step"], manifest["meta"]) != manifest["sha256"]:
            raise CheckpointError(f"{path} is damaged: its contents do not match their checksum")
        return load_tensors(data), dict(manifest["meta"])
    except CheckpointError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} is not a checkpoint: {type(error).__name__}: {error}"
        ) from error


def _checksum(data: bytes, step: int, meta: dict[str, Any]) -> str:
    rest = json.dumps([step, meta], sort_keys=True).encode()
    return hashlib.sha256(data + rest).hexdigest()


def everything(directory: Path) -> list[Path]:
    """The checkpoints in a directory, oldest first."""
    found = [p for p in directory.glob("step-*") if _NAME.fullmatch(p.name) and p.is_dir()]
    return sorted(found, key=lambda p: int(p.name[5:]))


def newest(directory: Path) -> Path:
    """The newest checkpoint of a directory.

    Raises:
        CheckpointError: there is none.
    """
    found = everything(directory)
    if not found:
        raise CheckpointError(f"no checkpoint in {directory}")
    return found[-1]


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _flush_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
