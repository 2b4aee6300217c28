"""Make the README's tables from the rows: python benchmarks/table.py [--write | --check]

Prints them; --write puts each between its markers in README.md, ``<!-- step-cpu:begin -->`` and
``<!-- step-cpu:end -->``; --check exits with 1 if README.md is not what --write would make it.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from rows import RESULTS, Row, read

README = Path(__file__).parent.parent / "README.md"

Case = dict[str, Row]
"""The rows of one energy, shape, dtype and thread count, by contender."""


class TableError(Exception):
    """The tables cannot be made or placed; the message says what to do."""


def figure(value: float) -> str:
    """Three digits, as few as two where that is an integer."""
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:,.0f}"


def time(row: Row) -> float:
    return row.median_us


def ratio(case: Case, contender: str) -> str:
    return figure(time(case[contender]) / time(case["ours"])) if contender in case else "-"


def with_best_compiled(case: Case) -> Case:
    """The contenders, and the fastest of torch.compile's under a name of its own."""
    compiled = [row for name, row in case.items() if "compiled" in name]
    return case | ({"compiled": min(compiled, key=time)} if compiled else {})


def step_line(case: Case, _: Case) -> list[str]:
    ours, against = case["ours"], with_best_compiled(case)
    return [
        ours.shape,
        f"{ours.threads}",
        figure(time(ours)),
        figure(ours.elements / time(ours) / 1e3),
        f"{time(case['registers']) / time(ours):.0%}" if "registers" in case else "-",
        *(ratio(against, c) for c in ("loop", "tuned", "compiled", "torchebm", "ebmkit")),
    ]


def gpu_line(case: Case, _: Case) -> list[str]:
    ours, against = case["ours"], with_best_compiled(case)

    def bandwidth(contender: str) -> float:  # bytes per microsecond
        return BYTES[contender] * case[contender].elements / time(case[contender])

    def share(contender: str) -> str:
        copy = "copy-graph" if contender.endswith("graph") else "copy"
        if contender not in case or copy not in case:
            return "-"
        return f"{bandwidth(contender) / bandwidth(copy):.0%}"

    return [
        ours.shape,
        figure(time(ours)),
        figure(bandwidth("copy") / 1e6) if "copy" in case else "-",
        *map(share, list(BYTES)[:-2]),
        *(ratio(against, c) for c in ("loop", "tuned", "tuned-graph", "compiled", "torchebm")),
    ]


def sample_line(case: Case, in_float32: Case) -> list[str]:
    ours = case["ours"]
    against = {**case, "loop-float32": in_float32.get("loop", ours)}
    return [
        ours.energy,
        ours.shape,
        ours.dtype,
        f"{ours.threads}",
        figure(time(ours)),
        *(ratio(against, c) for c in ("loop-float32", "loop", "torchebm", "ebmkit")),
    ]


def rule_line(case: Case, _: Case) -> list[str]:
    ours = case["ours"]
    return [
        ours.energy,
        ours.shape,
        f"{ours.threads}",
        figure(time(ours)),
        ratio(case, "loop"),
    ]


def chain_line(case: Case, _: Case) -> list[str]:
    ours = case["ours"]
    chains = int(ours.shape.split("x")[0])
    return [
        ours.energy,
        ours.shape,
        f"{ours.threads}",
        figure(time(ours)),
        figure(chains / time(ours)),
        f"{time(case['registers']) / time(ours):.0%}" if "registers" in case else "-",
        *(ratio(case, c) for c in ("step-by-step", "loop", "jax", "torchebm")),
    ]


STEP_COLUMNS = [
    "states", "threads", "µs", "10⁹ elements/s", "share of the limit",
    "loop", "tuned", "compiled, best of 4", "TorchEBM", "ebmkit",
]  # fmt: skip
SAMPLE_COLUMNS = [
    "energy", "states", "its dtype", "threads", "µs a step",
    "loop, float32", "loop, same dtype", "TorchEBM", "ebmkit",
]  # fmt: skip
RULE_COLUMNS = ["rule", "states", "threads", "µs a step", "loop"]
CHAIN_COLUMNS = [
    "energy", "states", "threads", "µs a step", "10⁶ chain-steps/s", "share of the limit",
    "step by step", "loop", "JAX", "TorchEBM",
]  # fmt: skip
BYTES = {
    "ours": 12, "ours-approximate": 12, "ours-bf16": 10, "ours-bf16-approximate": 10,
    "ours-graph": 12, "copy": 8, "copy-graph": 8,
}  # fmt: skip
"""To an element: what each contender of a GPU moves, of which the table says the bandwidth."""
GPU_COLUMNS = [
    "states", "µs", "copy, TB/s", "exact", "approximate", "bf16 gradient", "both", "in a graph",
    "loop", "tuned", "tuned in a graph", "compiled, best of 4", "TorchEBM",
]  # fmt: skip
COLUMNS = {
    "step-cpu": STEP_COLUMNS,
    "sample-cpu": SAMPLE_COLUMNS,
    "rules-cpu": RULE_COLUMNS,
    "chains-cpu": CHAIN_COLUMNS,
    "step-cuda": GPU_COLUMNS,
}
LINES = {
    "step-cpu": step_line,
    "sample-cpu": sample_line,
    "rules-cpu": rule_line,
    "chains-cpu": chain_line,
    "step-cuda": gpu_line,
}
LEGENDS = {
    "step-cpu": "From “loop” on: time divided by ours, above 1 where ours is faster. Medians.",
    "sample-cpu": "From “loop” on: time divided by ours, above 1 where ours is faster. Medians.",
    "rules-cpu": "Loop: the time of the same rule by hand, divided by ours. Medians.",
    "chains-cpu": "From “step by step” on: time divided by ours, above 1 where ours is faster."
    " Medians.",
    "step-cuda": "From “exact” to “in a graph”: bandwidth as a share of the measured copy's. From"
    " “loop” on: time divided by ours, above 1 where ours is faster. Medians.",
}


def table(suite: str, rows: list[Row]) -> str:
    """Markdown: for every machine a table and the line that says what was measured where."""
    parts = [LEGENDS[suite]]
    for machine in dict.fromkeys(row.machine for row in rows):
        cases: dict[tuple[str, str, str, int], Case] = {}
        here = [row for row in rows if row.machine == machine]
        for row in here:
            cases.setdefault(row.case, {})[row.contender] = row
        columns = COLUMNS[suite]
        lines = [columns, [":--" if c in ("states", "energy", "rule") else "--:" for c in columns]]
        for (energy, shape, _, threads), case in cases.items():
            if "ours" in case:
                in_float32 = cases.get((energy, shape, "float32", threads), {})
                lines.append(LINES[suite](case, in_float32))
        parts.append("\n".join("| " + " | ".join(line) + " |" for line in lines))
        libraries = dict.fromkeys(row.library for row in here)
        parts.append(
            f"{here[0].cpu}, {here[0].instruction_set}; Python {here[0].python};"
            f" {', '.join(libraries)}; commit {here[0].commit}, {here[0].date}."
        )
    return "\n\n".join(parts)


def demo_table(path: Path) -> str:
    """Markdown of a demo's report.json: the model beside real images and simple models."""
    report = json.loads(path.read_text())
    lines = [
        "| samples | MMD² to training digits | classed with confidence > 0.9 |"
        " distance to the nearest training digit |",
        "| :-- | --: | --: | --: |",
    ]
    lines += [
        f"| {name} | {q['mmd2']:.4f} | {q['confident']:.0%} | {q['nearest']:.2f} |"
        for name, q in report.items()
    ]
    return "\n".join(lines)


def placed(text: str, suite: str, content: str, where: Path) -> str:
    begin, end = f"<!-- {suite}:begin -->", f"<!-- {suite}:end -->"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise TableError(f"{where} needs one line {begin} and, below it, one line {end}")
    before, rest = text.split(begin)
    return f"{before}{begin}\n{content}\n{end}{rest.split(end)[1]}"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "suites", nargs="*", help=f"of {', '.join(COLUMNS)}; default: all with rows"
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--write", action="store_true", help="put the tables into README.md")
    how.add_argument("--check", action="store_true", help="exit with 1 if README.md is out of date")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the rows")
    parser.add_argument("--readme", type=Path, default=README)
    chosen = parser.parse_args(arguments)
    try:
        for suite in chosen.suites:
            if suite not in COLUMNS or not (chosen.results / f"{suite}.csv").exists():
                raise TableError(f"no rows {chosen.results / suite}.csv: `make bench` makes them")
        suites = chosen.suites or [s for s in COLUMNS if (chosen.results / f"{s}.csv").exists()]
        if not suites:
            raise TableError(f"no rows in {chosen.results}: `make bench` makes them")
        tables = {s: table(s, read(chosen.results / f"{s}.csv")) for s in suites}
        if not chosen.suites and (demo := chosen.results / "demo-digits.json").exists():
            tables["demo"] = demo_table(demo)
        if not (chosen.write or chosen.check):
            print("\n\n".join(tables.values()))
            return 0
        old = new = chosen.readme.read_text(encoding="utf-8")
        for suite, content in tables.items():
            new = placed(new, suite, content, chosen.readme)
    except TableError as error:
        print(f"table.py: {error}", file=sys.stderr)
        return 2
    if chosen.write:
        chosen.readme.write_text(new, encoding="utf-8")
    elif new != old:
        print(
            f"{chosen.readme} is out of date: python benchmarks/table.py --write", file=sys.stderr
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
