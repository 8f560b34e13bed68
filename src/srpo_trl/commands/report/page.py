"""The report as one HTML file: no scripts, nothing loaded, and every text of a run escaped."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from srpo_trl.commands.report import examples as routed_examples
from srpo_trl.commands.report.drawing import Picture, run_style, svg
from srpo_trl.commands.report.examples import Example
from srpo_trl.commands.report.tables import Best, best_at_all, best_within, differing_options, overview
from srpo_trl.runs.durations import format_duration
from srpo_trl.runs.read import Run
from srpo_trl.version import __version__

DASHES = {"-": "none", "--": "6 3", ":": "2 2", "-.": "6 2 2 2"}


class Cell(NamedTuple):
    """One entry of the table of best values."""

    value: str
    note: str
    is_best: bool


class BestTable(NamedTuple):
    """The table of best values: a column per budget and one without, a row per run."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]


def render(
    runs: Sequence[Run],
    pictures: Sequence[Picture],
    examples: Sequence[Sequence[Example]],
    metric: str | None,
    budgets: Sequence[float],
) -> str:
    """Return the page.

    Args:
        runs: in the order of their colours.
        pictures: in reading order.
        examples: per run.
        metric: of the table of best values; None: no run has logged an accuracy.
        budgets: seconds of training, ascending.
    """
    environment = Environment(
        loader=PackageLoader("srpo_trl.commands.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html").render(
        title=f"SRPO report: {', '.join(run.name for run in runs)}",
        runs=runs,
        styles=[run_style(i) for i in range(len(runs))],
        dashes=DASHES,
        overviews=[overview(run) for run in runs],
        metric=metric,
        best=best_table(runs, metric, budgets) if metric else None,
        pictures=[(picture, Markup(svg(picture)) if picture.figure else None) for picture in pictures],
        options=differing_options(runs),
        examples=examples,
        full=routed_examples.full_colour([example for found in examples for example in found]),
        num_levels=routed_examples.NUM_LEVELS,
        pieces=routed_examples.pieces,
        version=__version__,
    )


def best_table(runs: Sequence[Run], metric: str, budgets: Sequence[float]) -> BestTable:
    """Return each run's highest value within each budget, and at all."""
    columns = [[best_within(run, metric, budget) for run in runs] for budget in budgets]
    columns.append([best_at_all(run, metric) for run in runs])
    cells = [_column(bests) for bests in columns]
    titles = [f"within {format_duration(budget)}" for budget in budgets]
    return BestTable([*titles, "at all"], list(zip(*cells, strict=True)))


def _column(bests: Sequence[Best | None]) -> list[Cell]:
    highest = max((best.value for best in bests if best is not None), default=math.nan)
    is_contest = len(bests) > 1
    return [
        Cell("", "nothing measured", False)
        if best is None
        else Cell(f"{best.value:.3f}", _note(best), is_contest and best.value == highest)
        for best in bests
    ]


def _note(best: Best) -> str:
    when = f"step {best.step}" + ("" if math.isnan(best.seconds) else f", {format_duration(best.seconds)}")
    return when if best.is_over else f"{when}; the run is shorter"
