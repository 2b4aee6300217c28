"""The command line: ``langevin-ext train METHOD ...`` and ``langevin-ext info``."""

from __future__ import annotations

import sys

from langevin_ext import __version__, info
from langevin_ext.errors import LangevinError

USAGE = """\
usage: langevin-ext train short-run --out DIR [--data digits] [options]
       langevin-ext info
       langevin-ext --version

train   learn a model in the folder DIR; `langevin-ext train short-run --help` lists the options
info    versions, backends, and what was built (or why not)"""


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    match arguments:
        case ["info"]:
            print(info.report())
            return 0
        case ["--version"]:
            print(f"langevin_ext {__version__}")
            return 0
        case ["train", "short-run", *options]:
            return _train_short_run(options)
        case [] | ["--help" | "-h"]:
            print(USAGE)
            return 0
    print(f"langevin-ext: do not know {' '.join(arguments)!r}\n\n{USAGE}", file=sys.stderr)
    return 2


def _train_short_run(options: list[str]) -> int:
    try:
        import tyro

        from . import loop, short_run
    except ImportError as error:
        print(
            f"langevin-ext: training needs a package that is missing ({error.name}):"
            " pip install 'langevin-ext[train]'",
            file=sys.stderr,
        )
        return 1
    config = tyro.cli(
        short_run.ShortRunConfig,
        args=options,
        prog="langevin-ext train short-run",
        description="Learn an energy-based model by short-run MCMC.",
    )
    try:
        quality = short_run.train(config)
    except LangevinError as error:
        print(f"langevin-ext: {error}", file=sys.stderr)
        return 1
    except loop.Stopped as stop:
        print(stop.message, file=sys.stderr)
        return int(stop.code or 0)
    print(short_run.table(quality))
    print(f"\nsamples.png, chains.png, curves.png, samples.npy and report.json are in {config.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
