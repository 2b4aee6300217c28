"""What the compiler makes of the Triton kernels, without a GPU:

    python benchmarks/codegen.py [--write | --check | --json]

The backend launches as it would on a GPU, but on a stub in place of Triton's driver: Triton
specialises, compiles and assembles each kernel, and the stub runs nothing. The machine code is then
read with the tools that come in Triton's wheel. --write keeps the rows in results/codegen.csv and
puts the table into docs/KERNELS.md; --check compares the rows with the code, if this version of
Triton made them, and the table with the rows; --json prints some rows for tests/test_codegen.py.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget

from langevin_ext._types import Position
from langevin_ext.backends import triton as backend
from variants import ACCEPTS, DRAWS, PASSES, PLACE, QUICK, STEPS, VARIANTS, Variant

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "codegen.csv"
DOCUMENT = ROOT / "docs" / "KERNELS.md"
BEGIN, END = "<!-- codegen:begin -->", "<!-- codegen:end -->"
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
KERNELS = tuple(k for k in vars(backend.kernels).values() if hasattr(k, "device_caches"))
WITH_LOGARITHM = "accept_tile", "decide_rows"
"""CUDA's own, of float64; what it fuses and flushes on the way is no business of ours."""


# ---- the stub -----------------------------------------------------------------------------------


class _Utils:
    """An H200 that loads everything and holds nothing."""

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 232448, "multiprocessor_count": 132, "warpSize": 32}

    def load_binary(self, *_: Any) -> tuple[int, ...]:
        return 1, 1, 0, 0, 1024

    def unload_module(self, module: int) -> None:
        pass


class _Launcher:
    def __init__(self, *_: Any) -> None:
        pass

    def __call__(self, *_: Any) -> None:
        pass


class StubDriver:
    """As much of a driver as a launch asks for; ``arch`` is 80, 90, ..."""

    utils, launcher_cls, arch = _Utils(), _Launcher, 90

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


def compiled_by(launch: Callable[[], None], arch: int = 90) -> Iterator[tuple[str, Any]]:
    """The name and the compiled kernel of everything that a call launches."""
    StubDriver.arch = arch
    triton.runtime.driver.set_active(StubDriver())
    for kernel in KERNELS:
        kernel.device_caches.clear()
    launch()
    for kernel in KERNELS:
        for cache in kernel.device_caches.values():
            for compiled in cache[0].values():
                yield kernel.__name__, compiled


# ---- what came out ------------------------------------------------------------------------------

# The H200's clock and multiprocessors, and a copy's bandwidth as a stand-in for what it reaches.
CLOCK, PROCESSORS, BANDWIDTH = 1.98e9, 132, 4.3e12
BYTES_PER_CYCLE = BANDWIDTH / PROCESSORS / CLOCK
# Instructions that a multiprocessor starts in a cycle, 32 lanes to a warp's instruction; a 64-bit
# product takes the integer multiplier as long as two.
PIPES = {"issue": 128, "float": 128, "double": 64, "integer": 64, "multiply": 64, "special": 16}
_OPCODES = {
    "float": r"F(ADD|MUL|FMA)",
    "double": r"D(ADD|MUL|FMA|SETP)",
    "multiply": r"IMAD",
    "special": r"MUFU|F2F|F2I|I2F\b",
    "integer": r"LOP|IADD|ISETP|FSETP|FSEL|SEL|SHF|LEA|PRMT|FMNMX|VIADD|MOV|PLOP|I2FP|IABS|FCHK",
}


@dataclass(frozen=True)
class Row:
    """One kernel of one variant."""

    name: str
    cols: int
    kernel: str
    noise: str
    arch: int
    chains: int
    """Of one program; so is the next, but where that is a whole chain's sums."""
    block: int
    warps: int
    registers: int
    stack: int
    """Bytes, spills among them; so is the next."""
    local: int
    shared: int
    loads: str
    """Widths in bits and counts of one thread."""
    stores: str
    instructions: int
    """That a thread executes where no square root or quotient needs its slow path."""
    per_element: float
    """0 if there are a few for each chain; so are the next, and `busy`."""
    bytes_per_element: int
    pipe: str
    """The busiest; and its time as a share of memory's."""
    busy: float
    resident: int
    """Programs that one multiprocessor holds at a time, by registers and warps."""
    fused: bool
    """Whether the compiler may contract a * b + c; and whether it did, or flushed, in the PTX."""
    contracted: bool
    flushed: bool
    guarded: bool
    """Whether a barrier parts all reading of a chain's energy from the first writing."""
    triton: str


def executed(sass: str) -> list[str]:
    """The opcodes on the way to the end: without the slow paths, which end in a CALL."""
    lines: list[tuple[str, str, bool]] = []  # opcode or label, target, predicated
    for line in sass.splitlines():
        if label := re.match(r"\s*(\$?[\w.$]+):", line):
            if label[1].startswith("$__internal"):
                break
            lines.append((label[1], "", False))
        elif code := re.search(r"/\*[0-9a-f]{4,}\*/\s+(@!?U?P\w+ )?\s*([A-Z][\w.]*)(.*)", line):
            target = re.search(r"`\((.*?)\)", code[3])
            lines.append((code[2], target[1] if target else "", bool(code[1])))
    opcodes, i = [], 0
    while i < len(lines):
        opcode, target, predicated = lines[i]
        if opcode[0].isupper() and opcode != "NOP":
            opcodes.append(opcode)
        if opcode == "BRA" and predicated:
            after = next((j for j in range(i, len(lines)) if lines[j][0] == target), i)
            if any(name.startswith("CALL") for name, _, _ in lines[i:after]):
                i = after
        i += 1
    return opcodes


def _width(opcode: str) -> int:
    """Of an access, in bits."""
    found = re.search(r"\.U?(128|64|16|8)\b", opcode)
    return int(found[1]) if found else 32


def _widths(opcodes: list[str], kind: str) -> str:
    counts = Counter(_width(o) for o in opcodes if o.startswith(kind))
    return " ".join(f"{bits}x{n}" for bits, n in sorted(counts.items(), reverse=True))


def _busy(opcodes: list[str]) -> dict[str, float]:
    """Cycles of a multiprocessor, per lane of a warp, by pipe."""
    load = dict.fromkeys(PIPES, 0.0)
    for opcode in opcodes:
        load["issue"] += 1
        for pipe, pattern in _OPCODES.items():
            if re.match(pattern, opcode):
                load[pipe] += 2 if opcode.startswith("IMAD.WIDE") else 1
    return {pipe: load[pipe] / PIPES[pipe] for pipe in PIPES}


def _tool(name: str, cubin: bytes, *options: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(TOOLS / name), *options, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _guarded(opcodes: list[str], bits: int) -> bool:
    """Whether a barrier parts the first store from every load before it, and no load of such width
    comes after it."""
    first = next((i for i, o in enumerate(opcodes) if o.startswith("STG")), 0)
    since = [o for o in opcodes[:first] if o.startswith(("LDG", "BAR"))]
    late = [_width(o) for o in opcodes[first:] if o.startswith("LDG")]
    return bool(since) and since[-1].startswith("BAR") and bits not in late


def rows_of(variant: Variant, arch: int) -> Iterator[Row]:
    """A row for each kernel of a variant."""
    cut = backend.tiling(variant.cols, variant.dtype.itemsize, variant.vectors)

    def launch() -> None:
        variant.launch(4, PLACE)

    for kernel, compiled in compiled_by(launch, arch):
        warps = compiled.metadata.num_warps
        per_thread = min(variant.cols, cut.block) * cut.rows / (32 * warps)
        opcodes = executed(_tool("nvdisasm", compiled.asm["cubin"], "-c"))
        usage = _tool("cuobjdump", compiled.asm["cubin"], "-res-usage")
        used = {k: int(n) for k, n in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
        busy = _busy(opcodes)
        pipe = max(busy, key=lambda name: busy[name])
        moved = round(variant.elements.get(kernel, 0) * variant.dtype.itemsize)
        silent = kernel in ("partial_sums", "finish_rows") or variant.name == "uniform_"
        dtype = "f32" if kernel in WITH_LOGARITHM else "f"
        yield Row(
            name=variant.name,
            cols=variant.cols,
            kernel=kernel,
            noise="" if silent else variant.noise,
            arch=arch,
            chains=cut.rows if moved else 1,
            block=cut.block if moved else variant.cols,
            warps=warps,
            registers=used["REG"],
            stack=used["STACK"],
            local=used["LOCAL"] + 4 * sum(o.startswith(("LDL", "STL")) for o in opcodes),
            shared=compiled.metadata.shared,
            loads=_widths(opcodes, "LDG"),
            stores=_widths(opcodes, "STG"),
            instructions=len(opcodes),
            per_element=round(len(opcodes) / per_thread, 1) if moved else 0.0,
            bytes_per_element=moved,
            pipe=pipe,
            busy=round(busy[pipe] / per_thread * BYTES_PER_CYCLE / moved, 2) if moved else 0.0,
            resident=min(65536 // (-(-used["REG"] // 8) * 256 * warps), 64 // warps, 32),
            fused=bool(compiled.metadata.enable_fp_fusion),
            contracted=f"fma.rn.{dtype}" in compiled.asm["ptx"],
            flushed=f".ftz.{dtype}" in compiled.asm["ptx"],
            guarded=_guarded(opcodes, 8 * variant.dtype.itemsize),
            triton=triton.__version__,
        )


def compiled_while_advancing(variant: Variant) -> int:
    """How often its kernels are compiled as the position, the seed and the chains change."""
    numbers = 0, 1, 2, 16, 17, 2**31 - 1, 2**31, 2**32 - 1, 2**32

    def launches() -> None:
        for n in (*numbers, 2**40):
            variant.launch(4, Position(3, n, 0, 7))
            variant.launch(4, Position(n, 5, 0, 7))
        for n in (*numbers, 2**63, 2**64 - 1):
            variant.launch(4, Position(n, 5, 0, 7))
        for n in numbers[:-1]:
            variant.launch(4, Position(3, 5, 0, n))
        for n in (0, 1, 16, 2**16 - 1):
            variant.launch(4, Position(3, 5, n, 7))
        for chains in (1, 2, 3, 16, 17, 32):
            variant.launch(chains, PLACE)

    return max(Counter(kernel for kernel, _ in compiled_by(launches)).values())


# ---- the table ----------------------------------------------------------------------------------


GROUPS = {
    "The step": STEPS,
    "Accept or reject": ACCEPTS,
    "Passes over positions and velocities": PASSES,
    "The noise alone": DRAWS,
}


def table(rows: list[Row]) -> str:
    """Markdown, with what the figures assume on top."""
    pipes = ", ".join(f"{count} {pipe}" for pipe, count in PIPES.items())
    head = (
        f"Compiled by Triton {rows[0].triton} for sm_90; nothing was run. *Instructions* is how"
        " many a thread executes for each coordinate of the state, where no square root or"
        " quotient needs its slow path. *Busy* is the time of the busiest pipe over that of memory,"
        " and *share* the part of the bandwidth that leaves: a bound from a model, not a"
        " measurement."
        f" It assumes {BANDWIDTH / 1e12:.1f} TB/s over {PROCESSORS} multiprocessors at"
        f" {CLOCK / 1e9:.2f} GHz, perfect overlap of memory and pipes, and in each cycle of a"
        f" multiprocessor {pipes} operations, a wide product taking two. That overlap is worst"
        " where one program is *resident* on a multiprocessor and waits for its norm: rows of more"
        " than 8192 may stay near 60 %."
    )
    titles = (
        "coordinates", "kernel", "noise", "tile", "warps", "registers", "loads", "stores",
        "instructions", "bytes", "resident", "busiest pipe", "busy", "share",
    )  # fmt: skip
    lines = [head]
    for title, variants in GROUPS.items():
        names = {v.name for v in variants}
        lines += ["", f"**{title}**", ""]
        lines += ["| | " + " | ".join(titles) + " |", "|" + " --- |" * (1 + len(titles))]
        lines += [_line(row) for row in rows if row.arch == 90 and row.name in names]
    return "\n".join(lines)


def _line(row: Row) -> str:
    cells: tuple[object, ...] = (
        row.name, row.cols, row.kernel, row.noise, f"{row.chains} x {row.block}",
        row.warps, row.registers, row.loads, row.stores,
    )  # fmt: skip
    if row.bytes_per_element:
        cells += (row.per_element, row.bytes_per_element, row.resident)
        cells += (row.pipe, f"{row.busy:.0%}", f"{min(1, 1 / row.busy):.0%}")
    else:
        cells += ("", "", row.resident, "", "", "")
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def document(text: str, rows: list[Row]) -> str:
    """The document with the table between its markers."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table(rows)}\n\n{END}{after}"


_FROM_TEXT: dict[str, Callable[[str], Any]] = {
    "int": int, "float": float, "str": str, "bool": "True".__eq__,
}  # fmt: skip


def kept() -> list[Row]:
    """The rows of results/codegen.csv."""
    with RESULTS.open(newline="") as file:
        return [
            Row(**{f.name: _FROM_TEXT[str(f.type)](line[f.name]) for f in fields(Row)})
            for line in csv.DictReader(file)
        ]


def stale(rows: list[Row]) -> list[str]:
    """What is not as these rows say, of those kept by this version of Triton and of the table."""
    lines = kept()
    found = {(r.name, r.cols, r.kernel, r.noise, r.arch): r for r in lines}
    reasons = [
        f"{RESULTS.name}: {row}"
        for row in rows
        if lines[0].triton == triton.__version__
        and found.get((row.name, row.cols, row.kernel, row.noise, row.arch)) != row
    ]
    text = DOCUMENT.read_text()
    return reasons + [f"{DOCUMENT.name}: the table"] * (document(text, lines) != text)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    action = parser.add_mutually_exclusive_group()
    for name in ("--write", "--check", "--json"):
        action.add_argument(name, action="store_true")
    given = parser.parse_args()
    if given.json:
        rows = [row for variant in QUICK for row in rows_of(variant, 90)]
        rows += [row for variant in QUICK[:4] for row in rows_of(variant, 80)]
        result = {
            "rows": [asdict(row) for row in rows],
            "while_advancing": [compiled_while_advancing(v) for v in QUICK if v.cols == 64],
            "stale": stale(rows),
        }
        json.dump(result, sys.stdout)
        return 0
    every = [row for arch in (90, 80) for v in VARIANTS for row in rows_of(v, arch)]
    if given.check:
        reasons = stale(every)
        print("\n".join(reasons) or "current")
        return 1 if reasons else 0
    if given.write:
        with RESULTS.open("w", newline="") as file:
            writer = csv.DictWriter(file, [f.name for f in fields(Row)], lineterminator="\n")
            writer.writeheader()
            writer.writerows(asdict(row) for row in every)
        DOCUMENT.write_text(document(DOCUMENT.read_text(), every))
    else:
        print(table(every))
    return 0


if __name__ == "__main__":
    sys.exit(main())
