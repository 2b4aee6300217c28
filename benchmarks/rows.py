"""Turn a run of the suites into rows: python benchmarks/rows.py RUN.json ...

RUN.json is what ``--benchmark-json`` wrote. The rows go to results/SUITE.csv. A run replaces every
row of its suite that its machine (processor and instruction set) has there, so a table always
compares figures taken side by side in one run; git keeps the earlier ones, next to the code that
they measured.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Row:
    """One contender at one shape; the times are those of one step."""

    contender: str
    library: str
    energy: str
    """"none" where the gradient is a fixed tensor and the update is all that is timed, or the rule
    that does it."""
    shape: str
    threads: int
    dtype: str
    """Of the energy; the state is float32."""
    elements: int
    rounds: int
    median_us: float
    q10_us: float
    """With two threads the one to read: a shared core stalls a parallel region for a whole
    time slice, so that the median tells of the other processes."""
    q25_us: float
    q75_us: float
    elements_per_second: int
    """At the median."""
    cpu: str
    """Or GPU."""
    instruction_set: str
    torch: str
    python: str
    langevin_ext: str
    commit: str
    """With "+" if the working tree had changes."""
    date: str

    @property
    def machine(self) -> tuple[str, str]:
        return self.cpu, self.instruction_set

    @property
    def case(self) -> tuple[str, str, str, int]:
        """What contenders are compared on."""
        return self.energy, self.shape, self.dtype, self.threads


def rows_of(run: dict[str, Any]) -> dict[str, list[Row]]:
    """The rows of a run, by suite."""
    machine, commit = run["machine_info"], run["commit_info"]
    found: dict[str, list[Row]] = {}
    for entry in run["benchmarks"]:
        columns = dict(entry["extra_info"])
        suite, steps = columns.pop("suite"), columns.pop("steps")
        times = np.array(entry["stats"]["data"]) * 1e6 / steps
        q10, q25, median, q75 = (
            round(float(q), 3) for q in np.quantile(times, (0.1, 0.25, 0.5, 0.75))
        )
        row = Row(
            **columns,
            rounds=len(times),
            median_us=median,
            q10_us=q10,
            q25_us=q25,
            q75_us=q75,
            elements_per_second=int(float(f"{columns['elements'] / median * 1e6:.4g}")),
            cpu=machine["cpu"].get("brand_raw", machine["processor"]),
            instruction_set=machine["instruction_set"],
            torch=machine["torch"],
            python=machine["python_version"],
            langevin_ext=machine["langevin_ext"],
            commit=commit["id"][:12] + "+" * commit["dirty"],
            date=run["datetime"][:10],
        )
        found.setdefault(suite, []).append(row)
    return found


def read(path: Path) -> list[Row]:
    kinds = {"int": int, "float": float, "str": str}
    with path.open(newline="") as file:
        return [
            Row(**{f.name: kinds[str(f.type)](line[f.name]) for f in fields(Row)})
            for line in csv.DictReader(file)
        ]


def write(path: Path, rows: list[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(asdict, rows))


def disturbed(rows: list[Row]) -> int:
    """Rows with a median over twice the 10th percentile, or slower on more threads than on one."""
    single = {(r.contender, *r.case[:3]): r.median_us for r in rows if r.threads == 1}
    return sum(
        row.median_us > 2 * row.q10_us
        or row.q10_us > 1.5 * single.get((row.contender, *row.case[:3]), row.q10_us)
        for row in rows
    )


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN.json")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the rows")
    chosen = parser.parse_args(arguments)
    for run in chosen.runs:
        for suite, new in rows_of(json.loads(run.read_text())).items():
            path = chosen.results / f"{suite}.csv"
            old = read(path) if path.exists() else []
            write(path, [row for row in old if row.machine != new[0].machine] + new)
            print(f"{path}: {len(new)} rows")
            if count := disturbed(new):
                print(f"  {count} of them look disturbed by other processes: use an idle machine")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
