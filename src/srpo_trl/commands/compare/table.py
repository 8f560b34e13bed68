"""The table in the form of the paper's table 1, with what has to be known to read it; printed and as Markdown."""

import math
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table

from srpo_trl.commands.compare.jobs import Plan, Run
from srpo_trl.commands.compare.plot import draw_curves
from srpo_trl.commands.compare.results import Results, as_json, read_results
from srpo_trl.runs.scores import Estimate


def report(plan: Plan, missing: dict[Run, str], console: Console) -> None:
    """Print the table and write `table.md`, `results.json` and `curves.png` to the output folder.

    Raises:
        ValueError: the metric asked for is in no evaluation of a run.
    """
    results = read_results(plan)
    heading, rows, notes = headings(plan), table_rows(plan, results), list(table_notes(plan, results))
    table = Table(title=f"{results.metric}: best within each budget")
    for index, name in enumerate(heading):
        table.add_column(name, justify="right" if index else "left")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for note in notes:
        console.print(f"- {note}", markup=False)
    for run, reason in missing.items():
        console.print(f"Not finished: {run.variant}, seed {run.seed}: {reason}", markup=False)
    plan.output_dir.mkdir(parents=True, exist_ok=True)
    (plan.output_dir / "table.md").write_text(markdown(heading, rows, notes), encoding="utf-8")
    (plan.output_dir / "results.json").write_text(as_json(plan, results), encoding="utf-8")
    draw_curves(results, plan.output_dir / "curves.png")
    console.print(f"Saved table.md, results.json and curves.png in {plan.output_dir}.")


def headings(plan: Plan) -> list[str]:
    """Return the names of the table's columns."""
    return ["variant", *(budget.name for budget in plan.budgets), "last", "seconds a step"]


def table_rows(plan: Plan, results: Results) -> list[list[str]]:
    """Return one row for the start, where it was evaluated, and one for each variant."""
    rows = []
    num_seeds = max(map(len, results.curves.values()))
    start = results.start()
    if start is not None:
        rows.append(["start", *[f"{start.mean:.3f}"] * len(plan.budgets), "", ""])
    for variant in plan.variants:
        cells = [_cell(results.best(variant, budget), num_seeds) for budget in plan.budgets]
        seconds = results.seconds_per_step(variant)
        cells += [_cell(results.last(variant), num_seeds), f"{seconds.mean:.3g}" if seconds else ""]
        rows.append([variant, *cells])
    return rows


def _cell(value: Estimate | None, num_seeds: int) -> str:
    """Return mean and standard error; the number of seeds where some have not come so far."""
    if value is None:
        return "not yet"
    text = f"{value.mean:.3f}"
    if not math.isnan(value.standard_error):
        text += f" ± {value.standard_error:.3f}"
    return text if value.num_seeds == num_seeds else f"{text} (n={value.num_seeds})"


def table_notes(plan: Plan, results: Results) -> Iterator[str]:
    """Yield what has to be known to read the table: seeds, shortfalls, hardware, options."""
    num_seeds = max(map(len, results.curves.values()))
    yield {
        0: "No run has been evaluated yet.",
        1: "One seed: there is no standard error.",
    }.get(num_seeds, f"Mean and standard error over {num_seeds} seeds.")
    yield (
        "A best value is a maximum over noisy evaluations after the start: read it beside the last one. "
        "Time is spent in training steps; evaluation and saving are left out."
    )
    for budget in plan.budgets:
        short = [
            f"{variant} ({curve.used(budget):.0f})"
            for variant, curves in results.curves.items()
            for curve in curves.values()
            if curve.is_finished and curve.used(budget) < budget.amount and budget.is_time
        ]
        if short:
            yield f"Runs that ended before {budget.name}, and after how many seconds: {', '.join(short)}."
    for kind in results.hardware:
        yield "Trained on " + ", ".join(f"{name} {value}" for name, value in kind.items()) + "."
    if len(results.hardware) > 1:
        yield "The runs' hardware, or how many runs shared it, differs: budgets in time do not compare."
    for option, values in plan.differences.items():
        yield f"{option}: " + ", ".join(f"{value!r} in {name}" for name, value in values.items()) + "."


def markdown(heading: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str]) -> str:
    """Return table and notes as Markdown."""
    rule = ["---"] + ["---:"] * (len(heading) - 1)
    lines = ["| " + " | ".join(cells) + " |" for cells in (heading, rule, *rows)]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes)]) + "\n"
