"""From a figure's description and the runs to its panels and the numbers in them."""

import io
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from markupsafe import escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.markers import MarkerStyle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from srpo_trl.commands.curves_plot import COLORS, MARKERS
from srpo_trl.commands.report.figures import FigureSpec, Panel
from srpo_trl.runs.durations import UNITS, axis_unit, format_duration
from srpo_trl.runs.read import RunHistory, Series
from srpo_trl.runs.scores import Budget

_COLORS = COLORS[:6]  # all but black, which a dark screen does not show
LINES = ("-", "--", ":", "-.")
_RUNS_OF_A_LINE = 3  # in other colors; after 12 runs color and line come again, with another marker

INK = "#1a1b1e"  # replaced by the page's text color in SVG
_COLUMNS = 2
PANEL_INCHES = (5.2, 2.9)
_MOST_MARKED = 30  # points that are marked one by one
_MARKS = 12  # of a longer curve
_FEWEST_TO_SMOOTH = 100  # points from which on a running mean is drawn
_SMOOTHING = 40  # points of a curve for each point of the running mean's window
_NEEDLESS_DIGITS = re.compile(r"(?<=\.\d\d)\d+")  # a viewer's pixel is about one unit
STYLE: Any = {
    "font.size": 10.5,
    "font.family": ["DejaVu Sans", "sans-serif"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "svg.fonttype": "none",
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "axes.titlecolor", "xtick.color", "ytick.color"),
        INK,
    ),
}


class Drawing(NamedTuple):
    """One panel: its title, what it shows in words, and what draws it."""

    title: str
    words: str
    draw: Callable[[Axes], None]


@dataclass(frozen=True)
class Picture:
    """A figure that can be drawn, with its numbers.

    Attributes:
        name: of its files; never text from a run.
        title, reading: see `FigureSpec`.
        missing: what the runs' logs lack of it, one sentence each.
        panels: none where no run has anything to draw.
        runs: their names, in the order of their colors.
        header, rows: of its CSV file.
    """

    name: str
    title: str
    reading: str
    missing: Sequence[str]
    panels: Sequence[Drawing]
    runs: Sequence[str]
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
    drawings = [
        Drawing(
            panel.title,
            _in_words(spec.title, panel, series, runs),
            partial(_draw_panel, panel=panel, curves=series, runs=runs, budgets=budgets),
        )
        for panel, series in curves.items()
        if _is_shown(panel, series)
    ]
    header = ("run", "step", "seconds", "metric", "value")
    names = [run.name for run in runs]
    return Picture(spec.name, spec.title, spec.reading, missing, drawings, names, header, rows)


def _curve(panel: Panel, run: RunHistory) -> Series | None:
    series = run.series(panel.metric)
    return series if len(series) and (panel.against == "steps" or series.has_seconds) else None


def _is_shown(panel: Panel, curves: Sequence[Series | None]) -> bool:
    return any(curve is not None and (not panel.is_optional or curve.values.any()) for curve in curves)


def _named(panel: Panel) -> str:
    return f"the clock of {panel.metric}" if panel.against == "time" else panel.metric


def _in_words(
    figure_title: str, panel: Panel, curves: Sequence[Series | None], runs: Sequence[RunHistory]
) -> str:
    """Return what a reader who does not see the panel is told: what it is of, and each curve's two ends."""
    ends = [
        f"{run.name} from {curve.values[0]:.3g} at {_place(panel, curve, 0)} to {curve.values[-1]:.3g} at "
        f"{_place(panel, curve, -1)}"
        for run, curve in zip(runs, curves, strict=True)
        if curve is not None
    ]
    return f"{figure_title}, {panel.title} ({panel.unit}): {'; '.join(ends)}."


def _place(panel: Panel, curve: Series, index: int) -> str:
    return (
        format_duration(curve.seconds[index]) if panel.against == "time" else f"step {curve.steps[index]:.0f}"
    )


def _logged(panels: Sequence[Panel], runs: Sequence[RunHistory]) -> Iterator[tuple[int, str, Series]]:
    metrics = [name for panel in panels for name in (panel.metric, panel.spread) if name]
    for metric in dict.fromkeys(metrics):
        for i, run in enumerate(runs):
            yield i, metric, run.series(metric)


def _draw_panel(
    axes: Axes,
    *,
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
    line = LINES[index // _RUNS_OF_A_LINE % len(LINES)]
    return {"color": _COLORS[index % len(_COLORS)], "linestyle": line}


def marks(index: int, num_points: int) -> dict[str, Any]:
    """Return a run's marker and the points that have one: all of a short curve, of a long one some, not another's."""
    every = 1 if num_points <= _MOST_MARKED else num_points // _MARKS
    marker = MARKERS[index % len(MARKERS)]
    return {"marker": marker, "markersize": 4, "markevery": (index * every // 3 % every, every)}


def marker_path(index: int, size: float) -> str:
    """Return a run's marker around (0, 0) as the path of an SVG element."""
    style = MarkerStyle(MARKERS[index % len(MARKERS)])
    outlines = [np.array(line) for line in style.get_path().transformed(style.get_transform()).to_polygons()]
    corners = [" ".join(f"{x:.2f},{-y:.2f}" for x, y in size * outline) for outline in outlines]
    return "".join(f"M{line}Z" for line in corners)


def _draw_curve(axes: Axes, index: int, across: NDArray[np.float64], values: NDArray[np.float64]) -> None:
    style, num_points = run_style(index), len(values)
    smooth = values
    if num_points >= _FEWEST_TO_SMOOTH:
        axes.plot(across, values, linewidth=0.7, alpha=0.3, **style)
        smooth = running_mean(values, num_points // _SMOOTHING)
    axes.plot(across, smooth, linewidth=1.7, **style, **marks(index, num_points))


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
            fontsize=9,
        )


def svgs(picture: Picture) -> list[str]:
    """Return each panel as an SVG element for a page, in the page's text color, with ids of its own and its words."""
    return [_svg(drawing, f"{picture.name}-{i}") for i, drawing in enumerate(picture.panels)]


def _svg(drawing: Drawing, name: str) -> str:
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": name}):
        figure = Figure(figsize=PANEL_INCHES, layout="constrained")
        drawing.draw(figure.subplots())
        figure.savefig(buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator")))
    return _slim(buffer.getvalue(), name).replace(
        "<svg ", f'<svg role="img" aria-label="{escape(drawing.words)}" ', 1
    )


def _slim(text: str, name: str) -> str:
    """Return matplotlib's SVG for a page with others: ids of its own, the page's font and text color, fewer digits."""
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r" font-family: [^;]*;", "", text)
    text = re.sub(r' (d|x|y|transform)="[^"]*"', lambda found: _NEEDLESS_DIGITS.sub("", found[0]), text)
    return re.sub(r"\n\s*", "", text).replace(INK, "currentColor")


def save_png(picture: Picture, path: Path) -> None:
    """Write all panels of a picture for a slide or a paper, on white."""
    with matplotlib.rc_context(STYLE):
        whole(picture).savefig(path, dpi=160, facecolor="white")


def whole(picture: Picture) -> Figure:
    """Return all panels in one figure, the runs named above them; names are never read as mathematics or as hidden."""
    columns = min(_COLUMNS, len(picture.panels))
    num_rows = -(-len(picture.panels) // columns)
    size = (PANEL_INCHES[0] * _COLUMNS, PANEL_INCHES[1] * num_rows)  # as wide with one column as with two
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        grid = list(figure.subplots(num_rows, columns, squeeze=False).flat)
        for axes, drawing in zip(grid, picture.panels, strict=False):
            drawing.draw(axes)
            axes.set_title(drawing.title)
        for axes in grid[len(picture.panels) :]:
            axes.set_axis_off()
        numbers = range(len(picture.runs))
        handles = [Line2D([], [], linewidth=2, **run_style(i), **marks(i, 1)) for i in numbers]
        legend = figure.legend(
            handles,
            ["run"] * len(handles),
            loc="outside upper left",
            ncols=min(len(handles), 4),
            frameon=False,
        )
    for text, name in zip(legend.get_texts(), picture.runs, strict=True):
        text.set_parse_math(False)
        text.set_text(name)
    return figure
