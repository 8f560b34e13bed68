"""The picture: held-out accuracy over steps and over seconds of training."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from srpo_trl.commands.quickstart.task import METHODS
from srpo_trl.commands.quickstart.train import Curve

COLOURS = {"grpo": "#0072B2", "sdpo": "#E69F00", "srpo": "#D55E00"}  # told apart with colour-blind eyes, too
MARKERS = {"grpo": "o", "sdpo": "s", "srpo": "^"}


def draw_curves(
    curves: Sequence[Curve], start_accuracy: float, teacher_accuracy: float, num_questions: int, path: Path
) -> None:
    """Draw the mean curve of each method, with the band from lowest to highest seed, into the PNG `path`.

    Args:
        curves: one per method and seed; all measured at the same steps.
        start_accuracy, teacher_accuracy: of the common start, alone and with a right solution shown.
        num_questions: that each point is measured on.
    """
    with matplotlib.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(10.5, 4.6), layout="constrained")
        by_step, by_second = figure.subplots(1, 2, sharey=True)
        for method in (method for method in METHODS if any(curve.method == method for curve in curves)):
            runs = [curve for curve in curves if curve.method == method]
            _draw_method(by_step, method, np.array([run.steps for run in runs]), runs)
            _draw_method(by_second, method, np.array([run.seconds for run in runs]), runs)
        for axes in (by_step, by_second):
            axes.axhline(teacher_accuracy, color="0.45", linestyle="--", linewidth=1)
            axes.axhline(start_accuracy, color="0.45", linestyle=":", linewidth=1)
            axes.set_ylim(0, 1)
            axes.set_xlim(left=0)
            axes.grid(alpha=0.25)
        for text, height in (("start, shown a solution", teacher_accuracy), ("start", start_accuracy)):
            by_second.annotate(
                text,
                (1, height),
                (-2, 3),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                ha="right",
            ).set_color("0.35")
        by_step.set(xlabel="training step", ylabel="held-out accuracy (sampled, temperature 1)")
        by_second.set(xlabel="seconds of training (evaluation left out)")
        by_step.legend(loc="lower right", frameon=False)
        num_seeds = len({curve.seed for curve in curves})
        spread = f"mean and range of {num_seeds} seeds" if num_seeds > 1 else "one seed"
        figure.suptitle(
            f"4-digit addition from one start: {spread}, {num_questions} held-out questions a point"
        )
        figure.savefig(path, dpi=150)


def _draw_method(axes: Axes, method: str, positions: np.ndarray, runs: Sequence[Curve]) -> None:
    """Draw one method; `positions` is (seeds, points). Seconds differ by seed: the mean line has their mean."""
    accuracy = np.array([run.accuracy for run in runs])
    x = positions.mean(axis=0)
    if len(runs) > 1:
        axes.fill_between(
            x, accuracy.min(axis=0), accuracy.max(axis=0), color=COLOURS[method], alpha=0.18, lw=0
        )
    axes.plot(
        x,
        accuracy.mean(axis=0),
        color=COLOURS[method],
        marker=MARKERS[method],
        markersize=4,
        label=method.upper(),
    )
