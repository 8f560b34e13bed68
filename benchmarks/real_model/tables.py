"""What the runs' folders say: the table, the picture, and both in Markdown."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from benchmarks.real_model.headroom import describe
from benchmarks.real_model.study import Study
from benchmarks.tables import Table, markdown
from srpo_trl.commands.curves import CurveSet
from srpo_trl.commands.curves_plot import draw_curves
from srpo_trl.commands.quickstart.train import SCORE
from srpo_trl.methods import METHODS, TABLE_1
from srpo_trl.runs.read import RunHistory, read_runs
from srpo_trl.runs.scores import Estimate, LearningCurve, Point, estimate

METRIC = "held-out accuracy (sampled, temperature 1)"
SAME_REWARDS = "frac_reward_zero_std"  # TRL's: share of groups whose rollouts all have one reward
PICTURE = "curves.png"
REPORT = "report.md"

Runs = Mapping[str, Mapping[int, RunHistory]]


def read_study(study: Study) -> Runs:
    """Return the runs by method and seed."""
    found = {seed: read_runs(study.run_folders(seed)) for seed in range(study.seeds)}
    return {
        method: {seed: runs[index] for seed, runs in found.items()} for index, method in enumerate(TABLE_1)
    }


def curves_of(runs: Runs, last: int) -> CurveSet:
    """Return the learning curves up to a step that all runs have come to."""
    curves = {
        METHODS[method].title: {seed: _until(run.curve(SCORE), last) for seed, run in by_seed.items()}
        for method, by_seed in runs.items()
    }
    return CurveSet(METRIC, curves)


def _until(curve: LearningCurve, last: int) -> LearningCurve:
    points = tuple(point for point in curve.points if point.step <= last)
    return dataclasses.replace(curve, points=points, num_steps=last, is_finished=True)


def summary(runs: Runs, last: int, piece: int, num_questions: int) -> Table:
    """Return a row for each method: accuracies on the way, and time."""
    rows = []
    for title, curves in curves_of(runs, last).curves.items():
        row = {"method": title, "start": _score(curves, 0)}
        row |= {f"after {step} steps": _score(curves, step) for step in _half_and(last, piece)}
        row["mean of the curve"] = _text([_mean_height(curve.points) for curve in curves.values()])
        row["seconds a step"] = _seconds(curves)
        rows.append(row)
    note = (
        f"{METRIC[0].upper()}{METRIC[1:]} on {num_questions} questions; ± is the standard error over seeds. "
        f"{_error_note(num_questions)} Seconds are of the process in training steps; evaluation is left out."
    )
    return Table("Methods", rows, note)


def rollouts(runs: Runs, last: int, piece: int) -> Table:
    """Return a row for each method: its rollouts in training, which are of the same questions for all methods."""
    rows = []
    for method, by_seed in runs.items():
        row = {"method": METHODS[method].title}
        periods = {f"first {piece} steps": 1, f"last {piece} steps": last - piece + 1}
        for name, first in periods.items():
            row[f"right, {name}"] = _text(_means(by_seed, "reward", first, piece))
        for name, first in periods.items():
            same = _means(by_seed, SAME_REWARDS, first, piece)
            row[f"mixed groups, {name}"] = _text([1 - share for share in same])
        rows.append(row)
    return Table(
        "Rollouts in training", rows, "A group is mixed where some of its rollouts are right and some wrong."
    )


def _half_and(last: int, piece: int) -> tuple[int, ...]:
    """Return the end of the piece in the middle, and the end."""
    return tuple(dict.fromkeys((piece * max(round(last / piece / 2), 1), last)))


def _error_note(num_questions: int) -> str:
    return f"One evaluation has a standard error of up to {0.5 / math.sqrt(num_questions):.3f}."


def differences(runs: Runs, last: int, piece: int) -> Table:
    """Return every pair of methods, seed by seed."""
    curves = curves_of(runs, last).curves
    rows = []
    for first, second in (("SDPO", "GRPO"), ("SRPO", "GRPO"), ("SRPO", "SDPO")):
        seeds = sorted(curves[first].keys() & curves[second].keys())
        row = {"difference": f"{first} - {second}"}
        for step in _half_and(last, piece):
            row[f"after {step} steps"] = _text(
                [_at(curves[first][s], step) - _at(curves[second][s], step) for s in seeds], "+"
            )
        row["mean of the curve"] = _text(
            [_mean_height(curves[first][s].points) - _mean_height(curves[second][s].points) for s in seeds],
            "+",
        )
        rows.append(row)
    return Table("Differences", rows, "Taken seed by seed.")


def write_report(study: Study, facts: Mapping[str, Any], header: Mapping[str, str]) -> str:
    """Draw the picture, write the report into the study's folder, and return it."""
    last = study.steps_done()
    lines = [*(f"- {name}: {value}" for name, value in header.items()), "", *describe(facts), ""]
    if last:
        runs = read_study(study)
        clock = "processor's time" if study.start.device == "cpu" else "time"
        draw_curves(
            curves_of(runs, last),
            study.folder / PICTURE,
            clock=f"{clock} in training steps",
            note=_error_note(study.eval_questions),
        )
        lines += [markdown(summary(runs, last, study.piece, study.eval_questions))]
        lines += [markdown(rollouts(runs, last, study.piece))]
        lines += [markdown(differences(runs, last, study.piece))]
    text = "\n".join(lines)
    (study.folder / REPORT).write_text(text, encoding="utf-8")
    return text


def _at(curve: LearningCurve, step: int) -> float:
    return next(point.score for point in curve.points if point.step == step)


def _score(curves: Mapping[int, LearningCurve], step: int) -> str:
    return _text([_at(curve, step) for curve in curves.values()])


def _mean_height(points: Sequence[Point]) -> float:
    """The mean of the curve between its first and its last point."""
    area = sum((b.step - a.step) * (a.score + b.score) / 2 for a, b in pairwise(points))
    return area / (points[-1].step - points[0].step)


def _means(by_seed: Mapping[int, RunHistory], metric: str, first: int, count: int) -> list[float]:
    """Return each run's mean of a metric over `count` steps."""
    found = []
    for run in by_seed.values():
        series = run.series(metric)
        inside = (series.steps >= first) & (series.steps < first + count)
        found.append(float(series.values[inside].mean()))
    return found


def _seconds(curves: Mapping[int, LearningCurve]) -> str:
    ends = [curve.points[-1] for curve in curves.values()]
    found: Estimate | None = estimate([end.seconds / end.step for end in ends])
    assert found is not None
    return f"{found.mean:.3g}"


def _text(values: Sequence[float], sign: str = "") -> str:
    found = estimate(values)
    assert found is not None
    return found.text(sign)
