"""What the runs' folders say: the table, the picture, and both in Markdown."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from benchmarks.real_model.headroom import describe
from benchmarks.real_model.seed import SCORE
from benchmarks.real_model.study import Study
from benchmarks.tables import Table, markdown
from srpo_trl.commands.curves import CurveSet
from srpo_trl.commands.curves_plot import draw_curves
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
    """Return a row for each method: accuracies on the way, groups that both methods can learn from, time."""
    rows = []
    half = piece * max(round(last / piece / 2), 1)
    for title, curves in curves_of(runs, last).curves.items():
        by_seed = runs[next(method for method in TABLE_1 if METHODS[method].title == title)]
        row = {"method": title, "start": _score(curves, 0)}
        row |= {f"after {step} steps": _score(curves, step) for step in dict.fromkeys((half, last))}
        row["mean of the curve"] = _text([_mean_height(curve.points) for curve in curves.values()])
        row[f"mixed groups, first {piece} steps"] = _mixed(by_seed, 1, piece)
        row[f"last {piece} steps"] = _mixed(by_seed, last - piece + 1, last)
        row["seconds a step"] = _seconds(curves)
        rows.append(row)
    error = 0.5 / math.sqrt(num_questions)
    note = (
        f"{METRIC[0].upper()}{METRIC[1:]} on {num_questions} questions; ± is the standard error over seeds, and one "
        f"evaluation has one of up to {error:.3f}. A group is mixed where some of its rollouts are right and some "
        "wrong. Seconds are of the process in training steps; evaluation is left out."
    )
    return Table("Methods", rows, note)


def differences(runs: Runs, last: int, piece: int) -> Table:
    """Return every pair of methods, seed by seed."""
    curves = curves_of(runs, last).curves
    half = piece * max(round(last / piece / 2), 1)
    rows = []
    for first, second in (("SDPO", "GRPO"), ("SRPO", "GRPO"), ("SRPO", "SDPO")):
        seeds = sorted(curves[first].keys() & curves[second].keys())
        row = {"difference": f"{first} - {second}"}
        for step in dict.fromkeys((half, last)):
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
        teacher = {"teacher, on questions of mixed groups": facts["teacher_on_mixed"][0]}
        clock = "processor's time" if study.start.device == "cpu" else "time"
        draw_curves(
            curves_of(runs, last), study.folder / PICTURE, teacher, clock=f"{clock} in training steps"
        )
        lines += [markdown(summary(runs, last, study.piece, study.eval_questions))]
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


def _mixed(by_seed: Mapping[int, RunHistory], first: int, last: int) -> str:
    shares = []
    for run in by_seed.values():
        series = run.series(SAME_REWARDS)
        inside = (series.steps >= first) & (series.steps <= last)
        shares.append(1 - float(series.values[inside].mean()))
    return _text(shares)


def _seconds(curves: Mapping[int, LearningCurve]) -> str:
    ends = [curve.points[-1] for curve in curves.values()]
    found: Estimate | None = estimate([end.seconds / end.step for end in ends])
    assert found is not None
    return f"{found.mean:.3g}"


def _text(values: Sequence[float], sign: str = "") -> str:
    found = estimate(values)
    assert found is not None
    return found.text(sign)
