"""From a run's log to its best score within a budget; means and standard errors over runs."""

import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import NamedTuple

from srpo_trl.runs.durations import parse_duration

# Regular expressions of whole names, in order of preference.
HELD_OUT = (r"eval_avg@\d+", "eval_reward")
TRAINING = ("srpo/correct_frac", "reward")

_STEPS = re.compile(r"(\d+) ?steps")


@dataclass(frozen=True)
class Budget:
    """A limit on training: seconds of it, or optimizer steps."""

    name: str
    amount: float
    is_time: bool


class Point(NamedTuple):
    """One evaluation: after how many optimizer steps and seconds of training (NaN: no clock), and its score."""

    step: int
    seconds: float
    score: float


@dataclass(frozen=True)
class LearningCurve:
    """The evaluations of one run.

    Attributes:
        points: in order, one for each step.
        num_steps: of training so far, evaluated or not.
        seconds: of training so far; NaN where the run has no clock.
        is_finished: the run is not to be trained any further.
    """

    points: tuple[Point, ...]
    num_steps: int
    seconds: float
    is_finished: bool

    def used(self, budget: Budget) -> float:
        """Return how much of the budget's kind the run has taken so far."""
        return self.seconds if budget.is_time else self.num_steps

    def best(self, budget: Budget | None = None) -> Point | None:
        """Return the evaluation with the highest score within the budget, the earliest of several.

        The start is no part of it. None: the run has not reached the budget's end, or was not evaluated before it.

        Args:
            budget: None for the whole run so far.
        """
        if budget is not None and not self.used(budget) >= budget.amount:
            return None
        within = [
            point
            for point in self.points
            if point.step > 0
            and (budget is None or (point.seconds if budget.is_time else point.step) <= budget.amount)
        ]
        return max(within, key=lambda point: point.score, default=None)


class Estimate(NamedTuple):
    """A mean of independent values; one alone has no standard error (None)."""

    mean: float
    standard_error: float | None

    def text(self, sign: str = "") -> str:
        """Return the mean and, after a plus-minus sign, its standard error."""
        error = "" if self.standard_error is None else f" ± {self.standard_error:.3f}"
        return f"{self.mean:{sign}.3f}{error}"


def estimate(values: Sequence[float]) -> Estimate | None:
    """Return mean and standard error, `stdev / sqrt(n)` with the n - 1 of a sample; None of no values."""
    if not values:
        return None
    return Estimate(fmean(values), stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None)


def read_budgets(text: str) -> list[Budget]:
    """Return the budgets of a list such as `1h,5h,10h` or `50steps,100steps`.

    Raises:
        ValueError: an item is neither a duration nor a number of steps, or comes twice.
    """
    budgets = []
    for name in (item.strip() for item in text.split(",")):
        if steps := _STEPS.fullmatch(name):
            if int(steps[1]) < 1:
                raise ValueError(f"{name!r} is not a number of steps above 0.")
            budgets.append(Budget(name, int(steps[1]), is_time=False))
        else:
            budgets.append(Budget(name, parse_duration(name), is_time=True))
    if len({(budget.amount, budget.is_time) for budget in budgets}) < len(budgets):
        raise ValueError(f"{text!r} names a budget twice.")
    return budgets


def common_metric(logged: Sequence[Collection[str]], candidates: Sequence[str]) -> str | None:
    """Return the metric that most runs have logged, of several the first candidate; None where none has any.

    Args:
        logged: names of metrics, per run.
        candidates: `HELD_OUT` or `TRAINING`.
    """
    found: dict[str, int] = {}
    for candidate in candidates:
        for names in logged:
            for name in sorted(names):
                if re.fullmatch(candidate, name):
                    found[name] = found.get(name, 0) + 1
    return max(found, key=lambda name: found[name], default=None)
