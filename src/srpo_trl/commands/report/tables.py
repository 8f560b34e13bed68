"""The report's tables: what each run is, its best accuracy within each budget, options that differ."""

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from srpo_trl.runs.durations import format_duration, parse_duration
from srpo_trl.runs.read import RunHistory
from srpo_trl.runs.scores import Budget, LearningCurve, Point

PAPER_BUDGETS = ("1h", "5h", "10h")
_ROUND_TIMES = (
    *("1s", "2s", "5s", "10s", "20s", "30s", "1min", "2min", "5min", "10min", "20min", "30min"),
    *("1h", "2h", "5h"),
)
_NUM_BUDGETS = 3
SAME_EVERYWHERE = frozenset({"log_examples_steps", "disable_tqdm", "report_to", "do_eval", "debug"})
DEFAULT = "default"


class Cell(NamedTuple):
    """One entry of the table of best values."""

    value: str
    note: str
    is_best: bool


class BestTable(NamedTuple):
    """The table of best values: a column per budget and one without, a row per run."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]


def usual_budgets(runs: Sequence[RunHistory], metric: str | None) -> list[Budget]:
    """Return the paper's budgets where a run is as long, else the longest round times that a run has come to.

    Those within which no run has a value of the metric are left out.
    """
    longest = max((run.seconds for run in runs if not math.isnan(run.seconds)), default=0.0)
    is_long = longest >= parse_duration(PAPER_BUDGETS[-1])
    times = [parse_duration(text) for text in (PAPER_BUDGETS if is_long else _ROUND_TIMES)]
    reached = time_budgets([seconds for seconds in times if seconds <= longest][-_NUM_BUDGETS:])
    curves = [run.curve(metric) for run in runs] if metric else []
    return [budget for budget in reached if any(curve.best(budget) for curve in curves)]


def time_budgets(seconds: Iterable[float]) -> list[Budget]:
    """Return budgets of training time, each once, ascending."""
    return [Budget(format_duration(amount), amount, is_time=True) for amount in sorted(set(seconds))]


def best_table(runs: Sequence[RunHistory], metric: str, budgets: Sequence[Budget]) -> BestTable:
    """Return each run's highest value within each budget, and at all; the start is no part of either.

    A run that came to its last step before the budget's end counts with its highest value at all.
    """
    curves = [run.curve(metric) for run in runs]
    columns = []
    for budget in (*budgets, None):
        scores = [best.score for curve in curves if (best := _best(curve, budget)) is not None]
        columns.append(
            [_cell(curve, budget, max(scores) if len(runs) > 1 and scores else None) for curve in curves]
        )
    titles = [f"within {budget.name}" for budget in budgets]
    return BestTable([*titles, "at all"], list(zip(*columns, strict=True)))


def _is_short(curve: LearningCurve, budget: Budget | None) -> bool:
    return budget is not None and not curve.used(budget) >= budget.amount


def _best(curve: LearningCurve, budget: Budget | None) -> Point | None:
    is_over = curve.is_finished and _is_short(curve, budget) and not math.isnan(curve.seconds)
    return curve.best(None if is_over else budget)


def _cell(curve: LearningCurve, budget: Budget | None, highest: float | None) -> Cell:
    best, is_short = _best(curve, budget), _is_short(curve, budget)
    if best is None:
        is_early = is_short and not curve.is_finished
        return Cell("", "the run has not come so far" if is_early else "nothing measured", False)
    when = "" if math.isnan(best.seconds) else f", {format_duration(best.seconds)}"
    when += f"; finished after {format_duration(curve.seconds)}" if is_short else ""
    return Cell(f"{best.score:.3f}", f"step {best.step}{when}", best.score == highest)


def overview(run: RunHistory) -> dict[str, str]:
    """Return what the report says of a run in one line."""
    return {
        "method": str(run.options.get("method", "not in the log")),
        "model": str(run.facts.get("model", "not in the log")),
        "steps": f"{run.num_steps:,}",
        "training time": "not in the log" if math.isnan(run.seconds) else format_duration(run.seconds),
        "device": _device(run),
        "read from": run.source.name
        if run.source.parent.name.rpartition("-")[0] != "checkpoint"
        else f"{run.source.parent.name}/{run.source.name}",
    }


def _device(run: RunHistory) -> str:
    device, processes = run.facts.get("device", "not in the log"), run.facts.get("num_processes", 1)
    return f"{device}" if processes == 1 else f"{processes} x {device}"


def differing_options(runs: Sequence[RunHistory]) -> dict[str, list[str]]:
    """Return options by name, one text per run: those that differ, or of a single run those that were set."""
    names = sorted({name for run in runs for name in run.options} - SAME_EVERYWHERE)
    texts = {name: [_text(run.options.get(name, DEFAULT)) for run in runs] for name in names}
    return {name: values for name, values in texts.items() if len(runs) == 1 or len(set(values)) > 1}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
