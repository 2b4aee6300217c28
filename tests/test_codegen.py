"""The machine code of the Triton kernels, compiled here without a GPU for sm_90 and sm_80.

`benchmarks/codegen.py` compiles and reads it, in a process of its own: its stub of a driver is not
for a process that may have a GPU.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)

CODEGEN = Path(__file__).parents[1] / "benchmarks" / "codegen.py"
Row = dict[str, Any]


@pytest.fixture(scope="module")
def compiled() -> dict[str, Any]:
    path = os.pathsep.join([str(CODEGEN.parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(CODEGEN), "--json"],
        env=os.environ | {"TRITON_INTERPRET": "0", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.fixture(scope="module")
def rows(compiled: dict[str, Any]) -> list[Row]:
    return list(compiled["rows"])


def named(rows: list[Row], name: str, **where: Any) -> list[Row]:
    """The rows of sm_90 with such a name and such values; there are some."""
    where = {"name": name, "arch": 90} | where
    found = [row for row in rows if all(row[key] == value for key, value in where.items())]
    assert found, where
    return found


def test_nothing_spills(rows: list[Row]) -> None:
    assert [row for row in rows if row["stack"] or row["local"]] == []


def test_registers_leave_room_for_other_warps(rows: list[Row]) -> None:
    """On a multiprocessor, which has 65536 and gives them to a warp by 256: for 16 warps whatever
    the step, and for 24 that clip and clamp rows of 64 or 3072."""
    for row in rows:
        blocks = 65536 // (-(-row["registers"] // 8) * 256 * row["warps"])
        common = row["name"] == "clipped, clamped" and row["cols"] in (64, 3072)
        if row["bytes_per_element"] == 0:  # a warp or four for a whole chain's sums
            continue
        assert blocks * row["warps"] >= (24 if common else 16), row


@pytest.mark.parametrize("noise", ["exact", "approximate"])
def test_accesses_are_16_bytes_wide(rows: list[Row], noise: str) -> None:
    """Where a row is a multiple of four numbers; a 16-bit gradient comes 8 bytes at a time, beside
    the four normals of a thread."""
    for cols in (64, 784, 3072, 16384):
        (row,) = named(rows, "clipped, clamped", cols=cols, noise=noise)
        assert row["loads"].split("x")[0] == row["stores"].split("x")[0] == "128", row
        assert " " not in row["loads"] + row["stores"], row
    (row,) = named(rows, "clipped, clamped", cols=150528, noise=noise)
    assert row["loads"].startswith("128x8 ")  # and the partial sums
    assert row["stores"] == "128x4"
    for row in named(rows, "clipped, clamped, bfloat16 gradient"):
        assert row["loads"] == "128x3 64x3", row


def test_the_noise_moves_no_data(rows: list[Row]) -> None:
    """Four normals of a call are four coordinates of a thread: shared memory is for one sum at a
    time, of the norm's four bytes a warp or of eight."""
    for row in rows:
        if row["noise"] and row["cols"] % 4 == 0 and "float64" not in row["name"]:
            width = 4 if row["kernel"] == "step_tile" else 8
            assert row["shared"] <= width * row["warps"] * row["chains"], row


# Measured: exact 68.7 to 86.1, approximate 35.0 to 48.8, for rows of 64 and more.
@pytest.mark.parametrize(("noise", "most"), [("exact", 90.0), ("approximate", 52.0)])
def test_instructions_for_an_element(rows: list[Row], noise: str, most: float) -> None:
    for row in named(rows, "clipped, clamped", noise=noise):
        if row["cols"] >= 64:
            assert row["per_element"] <= most, row
            assert row["busy"] <= 1.0, row  # memory is what it waits for


def test_a_step_elsewhere_costs_what_one_in_place_does(rows: list[Row]) -> None:
    """Two instructions more, for another address."""
    (there,) = named(rows, "clipped, clamped, out of place", cols=3072)
    (here,) = named(rows, "clipped, clamped", cols=3072, noise="exact")
    assert (there["loads"], there["stores"]) == (here["loads"], here["stores"])
    assert there["registers"] <= here["registers"] + 2
    assert there["instructions"] <= here["instructions"] + 8


# Kernel and name: 16-byte loads and stores of a thread's 12 coordinates, and at most so many
# instructions for each. Measured: 66.8, 44.8, 17.6, 64.6, 8.8, 5.4, 88.8; and 76.6, 48.4 and 20.2
# for the first three by Triton 3.6, which makes a decision in two layouts.
PASSES = {
    ("accept_tile", "clipped"): (12, 6, 80.0),
    ("accept_tile", "no clip"): (12, 6, 51.0),
    ("accept_tile", "a known ratio"): (6, 6, 21.0),
    ("kinetic_tile", "BAOA"): (9, 6, 68.0),
    ("kinetic_tile", "leapfrog"): (9, 6, 9.5),
    ("kinetic_tile", "a kick"): (6, 3, 6.0),
    ("kinetic_tile", "a new velocity, with records"): (6, 6, 93.0),
}


@pytest.mark.parametrize(("kernel", "name"), PASSES)
def test_one_pass_over_memory(rows: list[Row], kernel: str, name: str) -> None:
    """Every vector is loaded and stored once, and only what is needed; memory is waited for. What
    is narrower is of the chain."""
    loads, stores, most = PASSES[kernel, name]
    found = named(rows, name, cols=3072, kernel=kernel)
    (row,) = (row for row in found if row["noise"] != "approximate")
    for accesses, vectors in ((row["loads"], loads), (row["stores"], stores)):
        widths = [tuple(map(int, access.split("x"))) for access in accesses.split()]
        assert widths[0] == (128, vectors), row
        assert sum(count for _, count in widths[1:]) <= 6, row
    assert row["per_element"] <= most
    assert row["busy"] <= 1.0


def test_a_decision_is_made_before_its_energy_is_replaced(rows: list[Row]) -> None:
    """A barrier comes after every warp's reading and before the first writing."""
    for kernel in ("accept_tile", "decide_rows"):
        found = [row for row in rows if row["kernel"] == kernel]
        assert len(found) >= 3
        assert all(row["guarded"] for row in found), kernel


def test_exact_arithmetic_is_not_contracted_or_flushed(rows: list[Row]) -> None:
    """No fused multiply-add, no subnormal taken for 0; the assembler is told so too."""
    for row in rows:
        exact = row["noise"] != "approximate"
        assert (row["fused"], row["contracted"], row["flushed"]) == ((not exact,) * 3), row


def test_one_compilation_serves_every_position(compiled: dict[str, Any]) -> None:
    """Whatever the seed, the step, the stream, the first chain and the number of chains."""
    assert len(compiled["while_advancing"]) >= 4
    assert set(compiled["while_advancing"]) == {1}


def test_the_kept_rows_are_current(compiled: dict[str, Any]) -> None:
    """If this is the Triton that made them; if not: python benchmarks/codegen.py --write."""
    assert compiled["stale"] == []
