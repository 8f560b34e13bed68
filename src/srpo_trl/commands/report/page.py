"""The report as one HTML file: no scripts, nothing loaded, and every text of a run escaped."""

from collections.abc import Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from srpo_trl.commands.report import examples as routed_examples
from srpo_trl.commands.report.drawing import LINES, Picture, marker_path, run_style, svgs
from srpo_trl.commands.report.examples import Example
from srpo_trl.commands.report.tables import best_table, differing_options, overview
from srpo_trl.runs.read import RunHistory
from srpo_trl.runs.scores import Budget
from srpo_trl.version import __version__

MOST_NAMED = 4  # runs in the title
DASHES = dict(zip(LINES, ("none", "6 3", "2 2", "6 2 2 2"), strict=True))


def render(
    runs: Sequence[RunHistory],
    pictures: Sequence[Picture],
    examples: Sequence[Sequence[Example]],
    metric: str | None,
    budgets: Sequence[Budget],
) -> str:
    """Return the page.

    Args:
        runs: in the order of their colors.
        pictures: in reading order.
        examples: per run.
        metric: of the table of best values; None: no run has logged an accuracy.
        budgets: of training time, ascending.
    """
    environment = Environment(
        loader=PackageLoader("srpo_trl.commands.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    names = [run.name for run in runs]
    full = routed_examples.full_color([example for found in examples for example in found])
    return environment.get_template("report.html").render(
        title=f"SRPO report: {', '.join(names) if len(names) <= MOST_NAMED else f'{len(names)} runs'}",
        runs=runs,
        styles=[run_style(i) | {"marker": marker_path(i, 9.0)} for i in range(len(runs))],
        dashes=DASHES,
        overviews=[overview(run) for run in runs],
        metric=metric,
        best=best_table(runs, metric, budgets) if metric else None,
        pictures=[(picture, [Markup(element) for element in svgs(picture)]) for picture in pictures],
        options=differing_options(runs),
        examples=examples,
        full=full,
        num_decimals=routed_examples.decimals(full),
        num_levels=routed_examples.NUM_LEVELS,
        columns=routed_examples.COLUMNS,
        pieces=routed_examples.pieces,
        version=__version__,
    )
