"""The table in the form of the paper's table 1, with what has to be known to read it; printed, as Markdown, drawn."""

from collections.abc import Iterator
from typing import Any

from rich.console import Console

from srpo_trl.commands.compare.jobs import Comparison, Job
from srpo_trl.commands.compare.processes import read_hardware, read_job
from srpo_trl.commands.curves import CurveSet, markdown, print_table, results_json, table_rows
from srpo_trl.commands.curves_plot import draw_curves
from srpo_trl.runs.scores import HELD_OUT, LearningCurve, common_metric


def report_comparison(comparison: Comparison, missing: dict[Job, str], console: Console) -> None:
    """Print the table and write `table.md`, `results.json` and `curves.png` to the output folder.

    Raises:
        ValueError: the metric asked for is in no evaluation of a run.
    """
    curves, folder = read_curves(comparison), comparison.output_dir
    hardware: list[dict[str, Any]] = []
    for job in comparison.jobs:
        hardware += [kind for kind in read_hardware(job) if kind not in hardware]
    rows, notes = table_rows(curves, comparison.budgets), list(table_notes(comparison, curves, hardware))
    print_table(f"{curves.metric}: best within each budget", rows, console)
    for note in notes:
        console.print(f"- {note}", markup=False)
    for job, reason in missing.items():
        console.print(f"Not finished: {job.name}: {reason}", markup=False)
    folder.mkdir(parents=True, exist_ok=True)
    lines = [*markdown(rows), "", *(f"- {note}" for note in notes)]
    (folder / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    options = {
        variant: {option: values[variant] for option, values in comparison.differences.items()}
        for variant in comparison.variants
    }
    facts = {"start": comparison.start, "hardware": hardware}
    text = results_json(curves, comparison.budgets, options, **facts)
    (folder / "results.json").write_text(text, encoding="utf-8")
    draw_curves(curves, folder / "curves.png")
    console.print(f"Saved table.md, results.json and curves.png in {folder}.")


def read_curves(comparison: Comparison) -> CurveSet:
    """Read what the runs have logged.

    Raises:
        ValueError: the metric asked for is in no evaluation of a run.
    """
    histories = {job: found for job in comparison.jobs if (found := read_job(job)) is not None}
    logged = [history.metrics for history in histories.values()]
    metric = comparison.metric or common_metric(logged, HELD_OUT) or HELD_OUT[-1]
    curves: dict[str, dict[int, LearningCurve]] = {variant: {} for variant in comparison.variants}
    for job, history in histories.items():
        curve = history.curve(metric, comparison.max_seconds)
        evaluated = sorted(name for name in history.metrics if name.startswith("eval_"))
        if curve.points:
            curves[job.variant][job.seed] = curve
        elif evaluated:
            raise ValueError(f"metric {metric!r} is in no evaluation, which have {', '.join(evaluated)}.")
    return CurveSet(metric, curves)


def table_notes(comparison: Comparison, curves: CurveSet, hardware: list[dict[str, Any]]) -> Iterator[str]:
    """Yield what has to be known to read the table: seeds, shortfalls, hardware, options."""
    yield {
        0: "No run has been evaluated yet.",
        1: "One seed: there is no standard error.",
    }.get(curves.num_seeds, f"Mean and standard error over {curves.num_seeds} seeds.")
    yield (
        "A best value is a maximum over noisy evaluations after the start: read it beside the last one. "
        "Time is the wall-clock time of training steps, slower where other programs run beside; evaluation and saving "
        "are left out."
    )
    for budget in comparison.budgets:
        short = [
            f"{variant} ({curve.used(budget):.0f})"
            for variant, by_seed in curves.curves.items()
            for curve in by_seed.values()
            if curve.is_finished and curve.used(budget) < budget.amount and budget.is_time
        ]
        if short:
            yield (
                f"Runs that ended before {budget.name}, and so have no score there, with their seconds: "
                f"{', '.join(short)}."
            )
    for kind in hardware:
        yield "Trained on " + ", ".join(f"{name} {value}" for name, value in kind.items()) + "."
    if len(hardware) > 1:
        yield "The runs' hardware, or how many runs shared it, differs: budgets in time do not compare."
    for option, values in comparison.differences.items():
        yield f"{option}: " + ", ".join(f"{value!r} in {name}" for name, value in values.items()) + "."
