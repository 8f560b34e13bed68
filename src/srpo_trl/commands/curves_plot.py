"""The picture of learning curves: the score over steps and over training time, mean and standard error over seeds."""

from collections.abc import Mapping
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from srpo_trl.commands.curves import CurveSet
from srpo_trl.runs.durations import UNITS, axis_unit
from srpo_trl.runs.scores import LearningCurve

# After Okabe and Ito, told apart with color-blind eyes, too; those of their colors that are too light on white, or too
# dark on black, are replaced: each but the last has a contrast of 3:1 to both.
COLORS = ("#0072B2", "#009E73", "#D55E00", "#CC6FA3", "#6E7781", "#A6761D", "#000000")
MARKERS = "os^vDPX"
CURVE_STYLE: Any = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}


def draw_curves(
    curves: CurveSet,
    path: Path,
    references: Mapping[str, float] | None = None,
    *,
    clock: str = "training time",
    note: str = "",
) -> None:
    """Draw every variant that has an evaluation into the PNG `path`.

    Args:
        curves: by variant and seed.
        path: of the file.
        references: scores to mark across the picture, by their names.
        clock: what the curves' seconds are.
        note: stands below the picture.
    """
    shown = {variant: runs for variant, runs in curves.curves.items() if runs}
    longest = max((run.points[-1].seconds for runs in shown.values() for run in runs.values()), default=0.0)
    unit = axis_unit(longest)
    with matplotlib.rc_context(CURVE_STYLE):
        figure = Figure(figsize=(11, 4.6), layout="constrained")
        by_step, by_time = figure.subplots(1, 2, sharey=True)
        for (variant, runs), color, marker in zip(shown.items(), cycle(COLORS), cycle(MARKERS)):
            steps, times, scores = common_points(runs)
            style = {"color": color, "marker": marker, "markersize": 4, "label": variant}
            _draw(by_step, steps, scores, style)
            _draw(by_time, times.mean(axis=0) / UNITS[unit], scores, style)
        for axes in (by_step, by_time):
            for height in (references or {}).values():
                axes.axhline(height, color="0.45", linestyle=":", linewidth=1)
            axes.grid(alpha=0.25)
            axes.set_xlim(left=0)
        for text, height in (references or {}).items():
            by_step.annotate(
                text, (1, height), (-2, 3), ("axes fraction", "data"), "offset points", ha="right"
            )
        by_step.set(xlabel="training step", ylabel=curves.metric)
        by_time.set(xlabel=f"{clock} ({unit}; evaluation left out)")
        if shown:
            figure.legend(*by_step.get_legend_handles_labels(), loc="outside right center", frameon=False)
        figure.supxlabel(note, fontsize=9, color="0.35")
        figure.suptitle(
            f"mean and standard error of up to {curves.num_seeds} seeds"
            if curves.num_seeds > 1
            else "one seed"
        )
        figure.savefig(path, dpi=110)


def common_points(runs: Mapping[int, LearningCurve]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the steps (points,) that every seed evaluated, and seconds and scores (seeds, points) there."""
    by_step = [{point.step: point for point in run.points} for run in runs.values()]
    steps = sorted(set(by_step[0]).intersection(*by_step[1:]))
    seconds = np.array([[points[step].seconds for step in steps] for points in by_step])
    scores = np.array([[points[step].score for step in steps] for points in by_step])
    return np.array(steps), seconds, scores


def _draw(axes: Axes, x: np.ndarray, scores: np.ndarray, style: dict[str, object]) -> None:
    mean = scores.mean(axis=0)
    if len(scores) > 1:
        error = scores.std(axis=0, ddof=1) / np.sqrt(len(scores))
        axes.fill_between(x, mean - error, mean + error, color=str(style["color"]), alpha=0.15, lw=0)
    axes.plot(x, mean, linewidth=1.4, **style)  # type: ignore[arg-type]
