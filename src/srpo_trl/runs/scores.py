"""From a run's log to its best score within each budget; means and standard errors over seeds."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, NamedTuple

from srpo_trl.host.training_clock import TRAINING_SECONDS, seconds_of

STEPS = re.compile(r"(\d+) ?steps")
AVERAGE = re.compile(r"eval_avg@\d+")
FALLBACK_METRIC = "eval_reward"


@dataclass(frozen=True)
class Budget:
    """A limit on training: seconds of it, or optimizer steps."""

    name: str
    amount: float
    is_time: bool


class Point(NamedTuple):
    """One evaluation: after how many optimizer steps and seconds of training, and what it found."""

    step: int
    seconds: float
    score: float


@dataclass(frozen=True)
class Curve:
    """The evaluations of one run in order; `is_finished` where it is not to be trained any further."""

    points: tuple[Point, ...]
    is_finished: bool

    def used(self, budget: Budget) -> float:
        """Return how much of the budget's kind the evaluated part of the run took."""
        last = self.points[-1]
        return last.seconds if budget.is_time else last.step


class Estimate(NamedTuple):
    """A mean over `num_seeds` runs with its standard error, which one run alone does not have (NaN)."""

    mean: float
    standard_error: float
    num_seeds: int


def read_budgets(text: str) -> list[Budget]:
    """Return the budgets of a list such as `1h,5h,10h` or `50steps,100steps`.

    Raises:
        ValueError: an item is neither a duration nor a number of steps, or comes twice.
    """
    budgets = []
    for name in (item.strip() for item in text.split(",")):
        if steps := STEPS.fullmatch(name):
            if int(steps[1]) < 1:
                raise ValueError(f"{name!r} is not a number of steps above 0.")
            budgets.append(Budget(name, int(steps[1]), is_time=False))
        else:
            budgets.append(Budget(name, seconds_of(name), is_time=True))
    if len({(budget.amount, budget.is_time) for budget in budgets}) < len(budgets):
        raise ValueError(f"{text!r} names a budget twice.")
    return budgets


def metric_of(log_history: Sequence[dict[str, Any]]) -> str:
    """Return the score's name where none was asked for: `eval_avg@N` if the run logs it, else `eval_reward`."""
    names = {name for entry in log_history for name in entry}
    return next(iter(sorted(filter(AVERAGE.fullmatch, names))), FALLBACK_METRIC)


def curve_points(log_history: Sequence[dict[str, Any]], metric: str) -> tuple[Point, ...]:
    """Return the evaluations in a log, one per step: a resumed run that evaluates its start again adds none.

    Raises:
        ValueError: the log has evaluations, but none with this metric.
    """
    points: dict[int, Point] = {}
    for entry in log_history:
        if metric in entry:
            point = Point(int(entry["step"]), float(entry[TRAINING_SECONDS]), float(entry[metric]))
            points.setdefault(point.step, point)
    names = sorted({name for entry in log_history for name in entry if name.startswith("eval_")})
    if names and not points:
        raise ValueError(f"metric {metric!r} is in no evaluation, which have {', '.join(names)}.")
    return tuple(points[step] for step in sorted(points))


def best_within(curve: Curve, budget: Budget) -> float | None:
    """Return the highest score of a trained model within the budget.

    The start is no part of it. None: the run has not come to the budget's end yet, or there was no evaluation
    before it.
    """
    if not curve.points or not (curve.is_finished or curve.used(budget) >= budget.amount):
        return None
    within = [
        point.score
        for point in curve.points
        if point.step > 0 and (point.seconds if budget.is_time else point.step) <= budget.amount
    ]
    return max(within, default=None)


def estimate(scores: Sequence[float]) -> Estimate | None:
    """Return mean and standard error, `stdev / sqrt(n)` with the n - 1 of a sample; None of no scores."""
    if not scores:
        return None
    error = stdev(scores) / math.sqrt(len(scores)) if len(scores) > 1 else math.nan
    return Estimate(fmean(scores), error, len(scores))
