"""Every method of the package on quiz8w, three seeds; again to go on where it stopped.

    python -m benchmarks.family [--jobs 2] [--out outputs/learning]

The folder is the learning study's: runs that it has made are not made again.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.family.given import do_method, run_of
from benchmarks.family.models import OF_START, TEACHERS, make_given
from benchmarks.family.report import report
from benchmarks.family.rows import LEFT_OUT, NUM_SEEDS, STUDIED, TASK
from benchmarks.learning.pool import do_all, workers
from benchmarks.learning.run import make_start
from srpo_trl.commands.quickstart.quiet import set_environment
from srpo_trl.methods import METHODS


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.family", description=__doc__.split("\n")[0])
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes [one a core]")
    parser.add_argument("--out", type=Path, default=Path("outputs/learning"), help="[outputs/learning]")
    options = parser.parse_args(argv)
    set_environment()

    study: Path = options.out
    seeds = range(NUM_SEEDS)
    with workers(options.jobs) as pool:
        do_all(pool, "starts", make_start, [(study, TASK.name, seed) for seed in seeds])
        do_all(pool, "teachers", make_given, [(study, "teacher", number) for number in TEACHERS])
        for seed in seeds:
            do_all(pool, f"models, seed {seed}", make_given, [(study, kind, seed) for kind in OF_START])
            methods = [name for name in trained() if not run_of(name, seed).is_done(study)]
            do_all(pool, f"seed {seed}", do_method, [(study, name, seed) for name in methods])
    report(study)
    return 0


def trained() -> list[str]:
    """Return the methods that have runs, those that the learning study has last."""
    return sorted((name for name in METHODS if name not in LEFT_OUT), key=lambda name: name in STUDIED)


if __name__ == "__main__":
    sys.exit(main())
