"""The runs' logs, read back: curves by variant and seed, and the table's numbers."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from srpo_trl.commands.compare.jobs import Plan, Run
from srpo_trl.commands.compare.processes import is_finished, read_hardware, read_state
from srpo_trl.runs.scores import Budget, Curve, Estimate, best_within, curve_points, estimate, metric_of


@dataclass(frozen=True)
class Results:
    """What has been measured so far. A variant without an evaluation has no curves."""

    metric: str
    curves: dict[str, dict[int, Curve]]  # by variant and seed
    hardware: list[dict[str, Any]]  # every kind that a run was trained on, in order of first use

    def best(self, variant: str, budget: Budget) -> Estimate | None:
        """Return the best score within the budget, over the seeds that have come so far."""
        scores = [best_within(curve, budget) for curve in self.curves[variant].values()]
        return estimate([score for score in scores if score is not None])

    def last(self, variant: str) -> Estimate | None:
        """Return the score at the end, over the finished seeds."""
        curves = self.curves[variant].values()
        return estimate([curve.points[-1].score for curve in curves if curve.is_finished])

    def seconds_per_step(self, variant: str) -> Estimate | None:
        """Return the training time of a step, over all seeds."""
        ends = [curve.points[-1] for curve in self.curves[variant].values() if curve.points[-1].step]
        return estimate([end.seconds / end.step for end in ends])

    def start(self) -> Estimate | None:
        """Return the score of the common start, over all runs that measured it (`eval_on_start`)."""
        firsts = [curve.points[0] for curves in self.curves.values() for curve in curves.values()]
        return estimate([first.score for first in firsts if first.step == 0])


def read_results(plan: Plan) -> Results:
    """Read what the runs have logged.

    Raises:
        ValueError: the metric asked for is in no evaluation of a run.
    """
    states = [(run, read_state(run)) for run in plan.runs]
    logs = {run: state["log_history"] for run, state in states if state is not None}
    metric = plan.metric or metric_of([entry for log in logs.values() for entry in log])
    curves: dict[str, dict[int, Curve]] = {variant: {} for variant in plan.variants}
    for run, log in logs.items():
        points = curve_points(log, metric)
        if points:
            curves[run.variant][run.seed] = Curve(points, is_finished(run, plan.max_seconds))
    return Results(metric, curves, _hardware(plan.runs))


def as_json(plan: Plan, results: Results) -> str:
    """Return the raw numbers and what they belong to."""
    variants = {}
    for variant, curves in results.curves.items():
        best = {budget.name: results.best(variant, budget) for budget in plan.budgets}
        variants[variant] = {
            "options": {option: values[variant] for option, values in plan.differences.items()},
            "best_within": {name: value and value._asdict() for name, value in best.items()},
            "runs": [
                {
                    "seed": seed,
                    "is_finished": curve.is_finished,
                    "points": [point._asdict() for point in curve.points],
                }
                for seed, curve in curves.items()
            ],
        }
    facts = {
        "metric": results.metric,
        "start": plan.start,
        "variants": variants,
        "hardware": results.hardware,
    }
    return json.dumps(facts, indent=1, default=str) + "\n"


def _hardware(runs: Sequence[Run]) -> list[dict[str, Any]]:
    kinds: list[dict[str, Any]] = []
    for run in runs:
        kinds += [kind for kind in read_hardware(run) if kind not in kinds]
    return kinds
