"""The learning study: starts, rates, then every row with five seeds; again to go on where it stopped.

    python -m benchmarks.learning [--jobs 2] [--out outputs/learning] [--only slip4s quiz8w]

Each seed has a start of its own. The rate of a row is chosen on seeds 0 and 1.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from benchmarks.learning.given import do
from benchmarks.learning.pool import do_all, workers
from benchmarks.learning.report import report
from benchmarks.learning.results import CHOOSING_SEEDS, Study
from benchmarks.learning.rows import COUNTER, FORMS, LATE, SWEPT
from benchmarks.learning.run import Run, make_start
from benchmarks.learning.tasks import TASKS
from srpo_trl.commands.quickstart.quiet import set_environment

NUM_SEEDS = 5
LATE_TASKS = ("slip4s", "quiz8w", "add4_forms")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning", description=__doc__.split("\n")[0])
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes [one a core]")
    parser.add_argument("--out", type=Path, default=Path("outputs/learning"), help="[outputs/learning]")
    parser.add_argument("--only", nargs="+", choices=TASKS, default=list(TASKS), help="tasks [all]")
    options = parser.parse_args(argv)
    set_environment()

    study: Path = options.out
    with workers(options.jobs) as pool:
        equal = equal_runs(options.only)
        starts = sorted({(run.task, run.start) for run in equal}, key=lambda pair: pair[1])
        do_all(pool, "starts", make_start, [(study, *start) for start in starts])
        _train(pool, "rows at equal rates", equal, study)
        _train(pool, "choice of rates", choosing_runs(options.only), study)
        _train(pool, "rows at their best rates", best_runs(options.only, Study(study)), study)
    report(study)
    return 0


def equal_runs(tasks: Sequence[str]) -> list[Run]:
    """Return every row's runs at its task's rate, a seed of all before the next, so that a part of them is balanced."""
    rows = [(TASKS[name], row) for name in tasks for row in rows_of(name)]
    return [Run(task.name, row, task.rate, seed, seed) for seed in range(NUM_SEEDS) for task, row in rows]


def rows_of(task: str) -> tuple[str, ...]:
    """Return the rows of a task."""
    main_rows = SWEPT if TASKS[task].other_rates else COUNTER
    return (*main_rows, *(LATE if task in LATE_TASKS else ()), *(FORMS if task == "add4_forms" else ()))


def choosing_runs(tasks: Sequence[str]) -> list[Run]:
    """Return what rates are chosen on beside the equal runs: rows at their task's other rates."""
    return [
        Run(name, row, rate, seed, seed)
        for seed in sorted(CHOOSING_SEEDS)
        for name in tasks
        for row in SWEPT
        for rate in TASKS[name].other_rates
    ]


def best_runs(tasks: Sequence[str], study: Study) -> list[Run]:
    """Return the runs of swept rows at the rate that is best for them, those at their task's rate among them."""
    rows = [(name, row) for name in tasks if TASKS[name].other_rates for row in SWEPT]
    return [
        Run(name, row, study.best_rate(name, row), seed, seed)
        for seed in range(NUM_SEEDS)
        for name, row in rows
    ]


def _train(pool: ProcessPoolExecutor, title: str, runs: Sequence[Run], study: Path) -> None:
    do_all(pool, title, do, [(run, study) for run in runs if not run.is_done(study)])


if __name__ == "__main__":
    sys.exit(main())
