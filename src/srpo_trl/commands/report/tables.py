"""The report's tables: what each run is, its best accuracy within each budget, options that differ."""

import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from srpo_trl.runs.durations import format_duration
from srpo_trl.runs.read import Run

# In order of preference, as whole names.
HELD_OUT = (r"eval_avg@\d+", "eval_reward")
TRAINING = ("srpo/correct_frac", "reward")
SAME_EVERYWHERE = frozenset({"log_examples_steps", "disable_tqdm", "report_to", "do_eval", "debug"})
DEFAULT = "default"


class Best(NamedTuple):
    """The highest value within a budget.

    Attributes:
        value: of the metric.
        step, seconds: where it was measured.
        is_over: whether the run went on for the whole budget.
    """

    value: float
    step: int
    seconds: float
    is_over: bool


def accuracy_metric(runs: Sequence[Run], candidates: Sequence[str]) -> str | None:
    """Return the metric that most of the runs have logged, of several the first candidate; None where none has any.

    Args:
        runs: to be compared.
        candidates: regular expressions of metrics' names, in order of preference.
    """
    found: dict[str, int] = {}
    for candidate in candidates:
        for run in runs:
            for name in sorted(run.metrics):
                if re.fullmatch(candidate, name):
                    found[name] = found.get(name, 0) + 1
    return max(found, key=lambda name: found[name], default=None)


def best_within(run: Run, metric: str, budget: float) -> Best | None:
    """Return the run's highest value of a metric within `budget` seconds of training.

    None where it logged none by then, or has no clock. Of equal values the earliest counts.
    """
    series = run.series(metric)
    inside = series.seconds <= budget
    if not inside.any() or run.seconds is None:
        return None
    index = int(np.argmax(np.where(inside, series.values, -np.inf)))
    return Best(
        float(series.values[index]),
        int(series.steps[index]),
        float(series.seconds[index]),
        run.seconds >= budget,
    )


def best_at_all(run: Run, metric: str) -> Best | None:
    """Return the run's highest value of a metric, with NaN seconds where it has no clock."""
    series = run.series(metric)
    if not len(series):
        return None
    index = int(np.argmax(series.values))
    return Best(
        float(series.values[index]), int(series.steps[index]), float(series.seconds[index]), is_over=True
    )


def overview(run: Run) -> dict[str, str]:
    """Return what the report says of a run in one line."""
    return {
        "method": str(run.options.get("method", "not in the log")),
        "model": str(run.facts.get("model", "not in the log")),
        "steps": f"{run.num_steps:,}",
        "training time": "not in the log" if run.seconds is None else format_duration(run.seconds),
        "device": _device(run),
        "read from": run.source.name
        if run.source.parent.name.rpartition("-")[0] != "checkpoint"
        else f"{run.source.parent.name}/{run.source.name}",
    }


def _device(run: Run) -> str:
    device, processes = run.facts.get("device", "not in the log"), run.facts.get("num_processes", 1)
    return f"{device}" if processes == 1 else f"{processes} x {device}"


def differing_options(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Return options by name, one text per run: those that differ, or of a single run those that were set."""
    names = sorted({name for run in runs for name in run.options} - SAME_EVERYWHERE)
    texts = {name: [_text(run.options.get(name, DEFAULT)) for run in runs] for name in names}
    return {name: values for name, values in texts.items() if len(runs) == 1 or len(set(values)) > 1}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
