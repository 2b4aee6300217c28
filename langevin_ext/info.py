"""What is installed, what was built, and why something is missing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys

import torch

from . import __version__, backends


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _native() -> str:
    reason = backends.why_not("native", torch.device("cpu"))
    if reason:
        return f"not available: {reason}"
    from .backends import native

    threads = f"{torch.get_num_threads()} threads" if native.openmp else "one thread (no OpenMP)"
    return f"{native.isa()} ({threads}); built with {native.compiler}; has {', '.join(native.isas)}"


def _triton() -> str:
    reason = backends.why_not("triton", torch.device("cuda"))
    if reason:
        return f"not available: {reason}"
    return "available" if torch.cuda.is_available() else "installed; there is no GPU to run it on"


def _device() -> str:
    if not torch.cuda.is_available():
        return "none"
    return f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"


def environment() -> dict[str, str]:
    """Versions, backends, hardware: what can change a result's last bits, and what is missing."""
    record = backends.build_record()
    return {
        "langevin_ext": __version__,
        "python": f"{sys.version.split()[0]} on {platform.platform()}",
        "torch": torch.__version__,
        "numpy": _version("numpy"),
        "triton": _version("triton"),
        "processor": f"{os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}",
        "GPU": _device(),
        "triton backend": _triton(),
        "native backend": _native(),
        "reference backend": "available",
        "build": f"LANGEVIN_BUILD={record.get('requested', 'unknown')}: {backends.build_report()}",
    }


def report() -> str:
    """The text of ``langevin-ext info``."""
    lines = environment()
    width = max(map(len, lines))
    return "\n".join(f"{name:{width}}  {value}" for name, value in lines.items())
