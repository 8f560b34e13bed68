"""From a figure's description and the runs to a matplotlib figure and the numbers in it."""

import io
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from srpo_trl.commands.curves_plot import COLORS, MARKERS
from srpo_trl.commands.report.figures import FigureSpec, Panel
from srpo_trl.runs.durations import UNITS, axis_unit
from srpo_trl.runs.read import RunHistory, Series
from srpo_trl.runs.scores import Budget

_COLORS = COLORS[:6]  # all but black, which a dark screen does not show; a second round has other lines
LINES = ("-", "--", ":", "-.")

INK = "#1a1b1e"  # replaced by the page's text color in SVG
_COLUMNS = 2
PANEL_INCHES = (5.2, 2.9)
_MOST_MARKERS = 30  # points that are marked one by one
_FEWEST_TO_SMOOTH = 100  # points from which on a running mean is drawn
_SMOOTHING = 40  # points of a curve for each point of the running mean's window
STYLE: Any = {
    "font.size": 9.5,
    "font.family": ["DejaVu Sans", "sans-serif"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "svg.fonttype": "none",
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "axes.titlecolor", "xtick.color", "ytick.color"),
        INK,
    ),
}


@dataclass(frozen=True)
class Picture:
    """A drawn figure with its numbers.

    Attributes:
        name: of its files; never text from a run.
        title, reading: see `FigureSpec`.
        missing: what the runs' logs lack of it, one sentence each.
        figure: None where no run has anything to draw.
        header, rows: of its CSV file.
    """

    name: str
    title: str
    reading: str
    missing: Sequence[str]
    figure: Figure | None
    header: Sequence[str]
    rows: Sequence[Sequence[Any]]


def draw(spec: FigureSpec, runs: Sequence[RunHistory], budgets: Sequence[Budget]) -> Picture:
    """Draw the runs over each other, in the same color everywhere; panels that nobody has are left out.

    Args:
        spec: what to draw.
        runs: in the order of their colors.
        budgets: of training time, marked on time axes.
    """
    curves = {panel: [_curve(panel, run) for run in runs] for panel in spec.panels}
    shown = [panel for panel, series in curves.items() if _is_shown(panel, series)]
    missing = [
        f"{', '.join(absent)}: not in the logs of {run.name}."
        for i, run in enumerate(runs)
        if (
            absent := [
                _named(panel) for panel in spec.panels if not panel.is_optional and not curves[panel][i]
            ]
        )
    ]
    rows = [
        (runs[i].name, int(step), "" if math.isnan(seconds) else round(seconds, 3), metric, value)
        for i, metric, series in _logged(spec.panels, runs)
        for step, seconds, value in zip(series.steps, series.seconds, series.values, strict=True)
    ]
    figure = _figure(shown, curves, runs, budgets) if shown else None
    header = ("run", "step", "seconds", "metric", "value")
    return Picture(spec.name, spec.title, spec.reading, missing, figure, header, rows)


def _curve(panel: Panel, run: RunHistory) -> Series | None:
    series = run.series(panel.metric)
    return series if len(series) and (panel.against == "steps" or series.has_seconds) else None


def _is_shown(panel: Panel, curves: Sequence[Series | None]) -> bool:
    return any(curve is not None and (not panel.is_optional or curve.values.any()) for curve in curves)


def _named(panel: Panel) -> str:
    return f"the clock of {panel.metric}" if panel.against == "time" else panel.metric


def _logged(panels: Sequence[Panel], runs: Sequence[RunHistory]) -> Iterator[tuple[int, str, Series]]:
    metrics = [name for panel in panels for name in (panel.metric, panel.spread) if name]
    for metric in dict.fromkeys(metrics):
        for i, run in enumerate(runs):
            yield i, metric, run.series(metric)


def _figure(
    panels: Sequence[Panel],
    curves: dict[Panel, list[Series | None]],
    runs: Sequence[RunHistory],
    budgets: Sequence[Budget],
) -> Figure:
    columns = min(_COLUMNS, len(panels))
    num_rows = -(-len(panels) // columns)
    with matplotlib.rc_context(STYLE):
        size = (PANEL_INCHES[0] * _COLUMNS, PANEL_INCHES[1] * num_rows)  # as wide with one column as with two
        figure = Figure(figsize=size, layout="constrained")
        grid = list(figure.subplots(num_rows, columns, squeeze=False).flat)
        for axes, panel in zip(grid, panels, strict=False):
            _draw_panel(axes, panel, curves[panel], runs, budgets)
        for axes in grid[len(panels) :]:
            axes.set_axis_off()
        name_runs(figure, runs)
    return figure


def _draw_panel(
    axes: Axes,
    panel: Panel,
    curves: Sequence[Series | None],
    runs: Sequence[RunHistory],
    budgets: Sequence[Budget],
) -> None:
    drawn = [curve for curve in curves if curve is not None]
    longest = max(float(curve.seconds.max()) for curve in drawn) if panel.against == "time" else 0.0
    unit = axis_unit(longest)
    for i, curve in enumerate(curves):
        if curve is not None:
            across = curve.seconds / UNITS[unit] if panel.against == "time" else curve.steps
            _draw_curve(axes, i, across, curve.values)
            if panel.spread is not None:
                _draw_spread(axes, i, across, curve, runs[i].series(panel.spread))
    if panel.against == "time":
        _mark_budgets(axes, [budget for budget in budgets if budget.amount <= longest], unit)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.set_title(panel.title)
    axes.set(
        ylabel=panel.unit, xlabel="optimizer step" if panel.against == "steps" else f"training time ({unit})"
    )
    axes.set_xlim(left=0)
    if panel.is_share:
        axes.set_ylim(-0.02, 1.02)
    elif panel.from_zero:
        values = np.concatenate([curve.values for curve in drawn])
        axes.set_ylim(1.08 * min(values.min(), 0.0), 1.08 * max(values.max(), 0.0) or 1.0)
    axes.grid(alpha=0.18, color=INK, linewidth=0.6)


def run_style(index: int) -> dict[str, Any]:
    """Return the color and the line of a run."""
    turn = index // len(_COLORS)
    return {"color": _COLORS[index % len(_COLORS)], "linestyle": LINES[turn % len(LINES)]}


def _draw_curve(axes: Axes, index: int, across: NDArray[np.float64], values: NDArray[np.float64]) -> None:
    style = run_style(index)
    if len(values) < _FEWEST_TO_SMOOTH:
        marker = MARKERS[index % len(MARKERS)] if len(values) <= _MOST_MARKERS else None
        axes.plot(across, values, linewidth=1.6, marker=marker, markersize=3.5, **style)
        return
    axes.plot(across, values, linewidth=0.7, alpha=0.3, **style)
    axes.plot(across, running_mean(values, len(values) // _SMOOTHING), linewidth=1.8, **style)


def running_mean(values: NDArray[np.float64], reach: int) -> NDArray[np.float64]:
    """Return each value's mean with up to `reach` values on either side; fewer at both ends."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    positions = np.arange(len(values))
    first, last = np.maximum(positions - reach, 0), np.minimum(positions + reach + 1, len(values))
    means: np.ndarray = (sums[last] - sums[first]) / (last - first)
    return means


def _draw_spread(axes: Axes, index: int, across: NDArray[np.float64], curve: Series, spread: Series) -> None:
    _, in_curve, in_spread = np.intersect1d(curve.steps, spread.steps, return_indices=True)
    mean, deviation = curve.values[in_curve], spread.values[in_spread]
    color = run_style(index)["color"]
    axes.fill_between(
        across[in_curve], mean - deviation, mean + deviation, color=color, alpha=0.15, linewidth=0
    )


def _mark_budgets(axes: Axes, budgets: Sequence[Budget], unit: str) -> None:
    for budget in budgets:
        axes.axvline(budget.amount / UNITS[unit], color=INK, linewidth=1, linestyle=(0, (2, 2)), alpha=0.7)
        axes.annotate(
            budget.name,
            (budget.amount / UNITS[unit], 1),
            (-3, -2),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="right",
            va="top",
            rotation=90,
            fontsize=8.5,
        )


def name_runs(figure: Figure, runs: Sequence[RunHistory]) -> None:
    """Name the runs above the panels; their names are never read as mathematics or as hidden labels."""
    handles = [
        Line2D([], [], linewidth=2, marker=MARKERS[i % len(MARKERS)], markersize=4, **run_style(i))
        for i in range(len(runs))
    ]
    legend = figure.legend(
        handles, ["run"] * len(runs), loc="outside upper left", ncols=min(len(runs), 4), frameon=False
    )
    for text, run in zip(legend.get_texts(), runs, strict=True):
        text.set_parse_math(False)
        text.set_text(run.name)


def svg(picture: Picture) -> str:
    """Return the picture as an SVG element for a page, in the page's text color, with ids of its own."""
    assert picture.figure is not None
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": picture.name}):
        picture.figure.savefig(
            buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator"))
        )
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{picture.name}-", text)
    return text.replace(INK, "currentColor")


def save_png(picture: Picture, path: Path) -> None:
    """Write the picture for a slide or a paper, on white."""
    assert picture.figure is not None
    with matplotlib.rc_context(STYLE):
        picture.figure.savefig(path, dpi=160, facecolor="white")
