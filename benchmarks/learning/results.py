"""What the study's runs came to, read back from their folders."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.learning.rows import ROWS
from benchmarks.learning.run import RESULT_FILE
from benchmarks.learning.tasks import TASKS
from srpo_trl.runs.scores import Estimate, estimate

EARLY = 20  # steps
CHOOSING_SEEDS = frozenset((0, 1))  # that a row's rate is chosen on


@dataclass(frozen=True)
class Result:
    """A run that has ended.

    Attributes:
        folder: of the run.
        facts: that it wrote.
    """

    folder: Path
    facts: dict[str, Any]

    @property
    def steps(self) -> list[int]:
        """Steps of its evaluations."""
        return [step for step, _ in self.facts["points"]]

    @property
    def scores(self) -> list[float]:
        """Accuracy at each evaluation, the start's first."""
        return [score for _, score in self.facts["points"]]

    @cached_property
    def mean(self) -> float:
        """Mean over the evaluations after the start."""
        return fmean(self.scores[1:])

    @property
    def early(self) -> float:
        """Accuracy after `EARLY` steps."""
        return self.scores[self.steps.index(EARLY)]

    @property
    def end(self) -> float:
        """Accuracy after the last step."""
        return self.scores[-1]


MEASURES: dict[str, Callable[[Result], float]] = {
    "mean of the curve": lambda result: result.mean,
    f"after {EARLY} steps": lambda result: result.early,
    "end": lambda result: result.end,
}


class Study:
    """All results below a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        paths = sorted(folder.glob(f"*/runs/*/*/*/{RESULT_FILE}"))
        self._all = [Result(path.parent, json.loads(path.read_text(encoding="utf-8"))) for path in paths]

    @property
    def tasks(self) -> list[str]:
        """Tasks of which there is anything, in the study's order."""
        there = {result.facts["task"] for result in self._all}
        return [name for name in TASKS if name in there]

    def rows(self, task: str) -> list[str]:
        """Rows of a task of which there is anything, in the study's order."""
        there = {result.facts["row"] for result in self._all if result.facts["task"] == task}
        return [name for name in ROWS if name in there]

    def runs(self, task: str, row: str, rate: float | None = None) -> dict[int, Result]:
        """Return the runs of a row by seed; `rate` None: at its task's."""
        wanted = {"task": task, "row": row, "rate": TASKS[task].rate if rate is None else rate}
        return {each.facts["seed"]: each for each in self._all if wanted.items() <= each.facts.items()}

    def choice(self, task: str, row: str) -> dict[float, Estimate]:
        """Return, for each rate that was tried, the mean of the curve over the seeds that rates are chosen on."""
        found = {}
        for rate in sorted((TASKS[task].rate, *TASKS[task].other_rates)):
            runs = self.runs(task, row, rate)
            if runs.keys() >= CHOOSING_SEEDS:
                made = estimate([runs[seed].mean for seed in sorted(CHOOSING_SEEDS)])
                found |= {} if made is None else {rate: made}
        return found

    def best_rate(self, task: str, row: str) -> float:
        """Return the rate of a row with the highest mean, its task's where none was tried."""
        choice = self.choice(task, row)
        return max(choice, key=lambda rate: choice[rate].mean, default=TASKS[task].rate)

    def start(self, task: str, number: int) -> dict[str, Any]:
        """Return what a start was measured at."""
        path = self.folder / task / f"start-{number}" / RESULT_FILE
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return facts


def over_seeds(runs: dict[int, Result], measure: Callable[[Result], float]) -> Estimate | None:
    """Return mean and standard error of a measure."""
    return estimate([measure(result) for result in runs.values()])


def difference(
    runs: dict[int, Result], others: dict[int, Result], measure: Callable[[Result], float]
) -> Estimate | None:
    """Return mean and standard error of the difference, over the seeds that both have: one start, one order."""
    seeds: Sequence[int] = sorted(runs.keys() & others.keys())
    return estimate([measure(runs[seed]) - measure(others[seed]) for seed in seeds])
