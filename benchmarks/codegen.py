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

from langevin_ext._types import Position, StepSpec, StepStats
from langevin_ext.backends import triton as backend

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "codegen.csv"
DOCUMENT = ROOT / "docs" / "KERNELS.md"
BEGIN, END = "<!-- codegen:begin -->", "<!-- codegen:end -->"
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
KERNELS = (
    backend.kernels.partial_sums,
    backend.kernels.step_tile,
    backend.kernels.draw_tile,
)


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


# ---- what is compiled ---------------------------------------------------------------------------

PLACE = Position(3, 5, 0, 7)
CLIPPED: dict[str, Any] = {"max_grad_norm": 1.0, "low": -1.0, "high": 1.0}


@dataclass(frozen=True)
class Variant:
    """A step, or a draw, whose kernels are worth a row."""

    name: str
    cols: int
    dtype: torch.dtype = torch.float32
    grad: torch.dtype | None = None
    stats: bool = False
    approximate: bool = False
    options: tuple[tuple[str, Any], ...] = tuple(CLIPPED.items())
    law: str | None = None

    def launch(self, chains: int = 4, place: Position = PLACE) -> None:
        place = place._replace(approximate=self.approximate)
        x = torch.zeros(chains, self.cols, dtype=self.dtype)
        if self.law:
            getattr(backend, self.law)(x, place)
            return
        step = {
            "drift": 0.1,
            "diffusion": 0.3,
            "max_grad_norm": float("inf"),
            "per_coordinate": False,
            "noise_power": 0.5,
            "reference_precision": 0.0,
            "low": float("-inf"),
            "high": float("inf"),
            "position": place,
        } | dict(self.options)
        for name in ("drift", "diffusion", "max_grad_norm"):
            if step[name] == "each":
                step[name] = torch.ones(chains, dtype=self.dtype)
        stats = StepStats.empty(chains, dtype=self.dtype) if self.stats else None
        backend.step_(x, x.to(self.grad or self.dtype), StepSpec(**step), stats)

    def bytes_per_element(self, kernel: str) -> int:
        state = self.dtype.itemsize
        grad = (self.grad or self.dtype).itemsize
        return {"step_tile": 2 * state + grad, "partial_sums": grad, "draw_tile": 4}[kernel]


def _with(**options: Any) -> tuple[tuple[str, Any], ...]:
    return tuple(options.items())


LENGTHS = 1, 2, 3, 4, 10, 64, 100, 128, 256, 784, 1000, 1024, 3072, 4096, 12288, 16384, 150528
BFLOAT, DOUBLE = torch.bfloat16, torch.float64
VARIANTS = (
    *(Variant("clipped, clamped", cols) for cols in LENGTHS),
    *(Variant("clipped, clamped", cols, approximate=True) for cols in LENGTHS),
    Variant("clipped, clamped", 1023),
    Variant("no clip, no clamp", 3072, options=()),
    Variant("clipped, clamped, with statistics", 3072, stats=True),
    Variant("clipped, clamped, with statistics", 64, stats=True),
    Variant("per coordinate", 3072, options=_with(per_coordinate=True, **CLIPPED)),
    Variant(
        "everything, a value per chain", 3072, stats=True,
        options=_with(
            drift="each", diffusion="each", max_grad_norm="each", reference_precision=0.5,
            low=-1.0, high=1.0,
        ),
    ),
    *(
        Variant("clipped, clamped, bfloat16 gradient", n, grad=BFLOAT)
        for n in (64, 784, 3072, 4096)
    ),
    *(
        Variant("clipped, clamped, bfloat16 gradient", n, grad=BFLOAT, approximate=True)
        for n in (3072, 4096)
    ),
    *(Variant("clipped, clamped, float64", n, dtype=DOUBLE) for n in (64, 3072, 8192, 150528)),
    *(Variant("normal_", n, law="normal_") for n in (2, 64, 3072)),
    *(Variant("uniform_", n, law="uniform_") for n in (2, 64, 3072)),
)  # fmt: skip
QUICK = tuple(
    v
    for v in VARIANTS
    if (v.name == "clipped, clamped" and v.cols in (2, 64, 784, 3072, 16384, 150528))
    or (v.cols == 3072 and v.dtype == torch.float32 and not v.approximate and not v.law)
    or (v.cols == 3072 and v.law == "normal_")
    or (v.cols == 8192)
)
"""What the ordinary tests compile: every kernel, every option, each way to cut a row."""


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
    """Of one tile; so is the next."""
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


def _widths(opcodes: list[str], kind: str) -> str:
    def width(opcode: str) -> int:
        found = re.search(r"\.U?(128|64|16|8)\b", opcode)
        return int(found[1]) if found else 32

    counts = Counter(width(o) for o in opcodes if o.startswith(kind))
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


def rows_of(variant: Variant, arch: int) -> Iterator[Row]:
    """A row for each kernel of a variant."""
    cut = backend.tiling(variant.cols, variant.dtype.itemsize)
    per_thread = min(variant.cols, cut.block) * cut.rows / (32 * cut.warps)
    for kernel, compiled in compiled_by(variant.launch, arch):
        opcodes = executed(_tool("nvdisasm", compiled.asm["cubin"], "-c"))
        usage = _tool("cuobjdump", compiled.asm["cubin"], "-res-usage")
        used = {k: int(n) for k, n in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
        busy = _busy(opcodes)
        pipe = max(busy, key=lambda name: busy[name])
        moved = variant.bytes_per_element(kernel)
        noise = "approximate" if variant.approximate else "exact"
        yield Row(
            name=variant.name,
            cols=variant.cols,
            kernel=kernel,
            noise="" if kernel == "partial_sums" or variant.law == "uniform_" else noise,
            arch=arch,
            chains=cut.rows,
            block=cut.block,
            warps=cut.warps,
            registers=used["REG"],
            stack=used["STACK"],
            local=used["LOCAL"] + 4 * sum(o.startswith(("LDL", "STL")) for o in opcodes),
            shared=compiled.metadata.shared,
            loads=_widths(opcodes, "LDG"),
            stores=_widths(opcodes, "STG"),
            instructions=len(opcodes),
            per_element=round(len(opcodes) / per_thread, 1),
            bytes_per_element=moved,
            pipe=pipe,
            busy=round(busy[pipe] / per_thread * BYTES_PER_CYCLE / moved, 2),
            resident=min(65536 // (-(-used["REG"] // 8) * 256 * cut.warps), 64 // cut.warps, 32),
            fused=bool(compiled.metadata.enable_fp_fusion),
            contracted="fma.rn.f" in compiled.asm["ptx"],
            flushed=".ftz" in compiled.asm["ptx"],
            triton=triton.__version__,
        )


def compiled_while_advancing() -> int:
    """How many kernels a step needs as its position, its seed and its chains change."""
    variant = Variant("clipped, clamped", 64)
    numbers = 0, 1, 2, 16, 17, 2**31 - 1, 2**31, 2**32 - 1, 2**32

    def launches() -> None:
        for n in (*numbers, 2**40):
            variant.launch(place=Position(3, n, 0, 7))
            variant.launch(place=Position(n, 5, 0, 7))
        for n in (*numbers, 2**63, 2**64 - 1):
            variant.launch(place=Position(n, 5, 0, 7))
        for n in numbers[:-1]:
            variant.launch(place=Position(3, 5, 0, n))
        for n in (0, 1, 16, 2**16 - 1):
            variant.launch(place=Position(3, 5, n, 7))
        for chains in (1, 2, 3, 16, 17, 32):
            variant.launch(chains)

    return len(list(compiled_by(launches)))


# ---- the table ----------------------------------------------------------------------------------


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
        "step", "coordinates", "kernel", "noise", "tile", "warps", "registers", "loads", "stores",
        "instructions", "bytes", "resident", "busiest pipe", "busy", "share",
    )  # fmt: skip
    lines = [head, "", "| " + " | ".join(titles) + " |", "|" + " --- |" * len(titles)]
    for row in rows:
        if row.arch == 90:
            cells = (
                row.name, row.cols, row.kernel, row.noise, f"{row.chains} x {row.block}",
                row.warps, row.registers, row.loads, row.stores, row.per_element,
                row.bytes_per_element, row.resident, row.pipe, f"{row.busy:.0%}",
                f"{min(1, 1 / row.busy):.0%}",
            )  # fmt: skip
            lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines)


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
            "while_advancing": compiled_while_advancing(),
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
