"""Learning curves of several variants and seeds: their table, as text, and their numbers, as JSON."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from srpo_trl.runs.scores import Budget, LearningCurve, estimate


@dataclass(frozen=True)
class CurveSet:
    """Learning curves of variants that have one start; each has been evaluated.

    Attributes:
        metric: their score.
        curves: by variant and seed; a variant that has not been evaluated yet has none.
    """

    metric: str
    curves: Mapping[str, Mapping[int, LearningCurve]]

    def best(self, variant: str, budget: Budget) -> list[float]:
        """Return the best score within the budget, of each seed that has come so far."""
        bests = [curve.best(budget) for curve in self.curves[variant].values()]
        return [best.score for best in bests if best is not None]

    def last(self, variant: str) -> list[float]:
        """Return the score at the end, of each finished seed."""
        return [curve.points[-1].score for curve in self.curves[variant].values() if curve.is_finished]

    @property
    def num_seeds(self) -> int:
        """The most seeds that a variant has."""
        return max(map(len, self.curves.values()), default=0)


def table_rows(curves: CurveSet, budgets: Sequence[Budget]) -> list[list[str]]:
    """Return the table's head, a row for the start where it was evaluated, and one for each variant."""
    rows = [["variant", *(budget.name for budget in budgets), "last", "seconds a step"]]
    runs = [curve for by_seed in curves.curves.values() for curve in by_seed.values()]
    start = estimate([run.points[0].score for run in runs if run.points[0].step == 0])
    if start is not None:
        rows.append(["start", *[f"{start.mean:.3f}"] * len(budgets), "", ""])
    for variant, by_seed in curves.curves.items():
        cells = [_cell(curves.best(variant, budget), curves.num_seeds) for budget in budgets]
        ends = [curve.points[-1] for curve in by_seed.values()]
        seconds = estimate([end.seconds / end.step for end in ends if end.step])
        per_step = f"{seconds.mean:.3g}" if seconds else ""
        rows.append([variant, *cells, _cell(curves.last(variant), curves.num_seeds), per_step])
    return rows


def _cell(scores: Sequence[float], num_seeds: int) -> str:
    """Return mean and standard error; the number of seeds where some have not come so far."""
    found = estimate(scores)
    if found is None:
        return "not yet"
    return found.text() if len(scores) == num_seeds else f"{found.text()} (n={len(scores)})"


def markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table; the first row is its head."""
    rule = ["---"] + ["---:"] * (len(rows[0]) - 1)
    return ["| " + " | ".join(cells) + " |" for cells in (rows[0], rule, *rows[1:])]


def print_table(title: str, rows: Sequence[Sequence[str]], console: Console) -> None:
    """Print a table; the first row is its head."""
    table = Table(title=title)
    for index, name in enumerate(rows[0]):
        table.add_column(name, justify="right" if index else "left")
    for row in rows[1:]:
        table.add_row(*row)
    console.print(table)


def results_json(
    curves: CurveSet, budgets: Sequence[Budget], options: Mapping[str, Mapping[str, Any]], **facts: Any
) -> str:
    """Return every evaluation and what it belongs to.

    Args:
        curves: with their metric.
        budgets: of the best scores.
        options: by variant, those in which variants differ.
        facts: anything else.
    """
    variants = {}
    for variant, by_seed in curves.curves.items():
        found = {budget.name: curves.best(variant, budget) for budget in budgets}
        best = {
            name: (value := estimate(scores)) and {**value._asdict(), "num_seeds": len(scores)}
            for name, scores in found.items()
        }
        runs = [
            {"seed": seed, "is_finished": curve.is_finished, "points": [p._asdict() for p in curve.points]}
            for seed, curve in by_seed.items()
        ]
        variants[variant] = {"options": options[variant], "best_within": best, "runs": runs}
    return json.dumps({"metric": curves.metric, **facts, "variants": variants}, indent=1, default=str) + "\n"
