"""`srpo-trl report`: options, then logs to pictures to one file."""

import argparse
import csv
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from srpo_trl.commands.report.drawing import Picture, draw, save_png
from srpo_trl.commands.report.examples import select_examples
from srpo_trl.commands.report.figures import FIGURES, accuracy_figure
from srpo_trl.commands.report.histogram import draw_weights
from srpo_trl.commands.report.page import render
from srpo_trl.commands.report.tables import PAPER_BUDGETS, time_budgets, usual_budgets
from srpo_trl.runs.durations import parse_duration
from srpo_trl.runs.read import RunHistory, read_runs
from srpo_trl.runs.scores import HELD_OUT, TRAINING, Budget, common_metric

_WRONG_ARGUMENTS = 2  # argparse's own status for the same thing


def make_report(argv: Sequence[str] | None = None) -> int:
    """Write the report and return the exit status."""
    options = _parse(argv)
    try:
        runs = read_runs(options.runs, _say)
        if options.accuracy and not any(options.accuracy in run.metrics for run in runs):
            raise ValueError(_unknown_metric(options.accuracy, runs))
        if options.output.is_dir():
            raise ValueError(
                f"{options.output} is a folder. Give a file: -o {options.output / 'report.html'}"
            )
    except ValueError as error:
        _say(str(error))
        return _WRONG_ARGUMENTS
    try:
        for folder in filter(None, (options.output.parent, options.figures)):
            folder.mkdir(parents=True, exist_ok=True)
        _write(options, runs)
    except OSError as error:
        _say(f"{error.filename} cannot be written: {error.strerror}. Give another -o or --figures.")
        return _WRONG_ARGUMENTS
    return 0


def _say(text: str) -> None:
    print(f"srpo-trl report: {text}", file=sys.stderr)


def _write(options: argparse.Namespace, runs: Sequence[RunHistory]) -> None:
    logged = [run.metrics for run in runs]
    held_out, training = options.accuracy or common_metric(logged, HELD_OUT), common_metric(logged, TRAINING)
    metric = held_out or training
    budgets = usual_budgets(runs, metric) if options.budgets is None else time_budgets(options.budgets)
    pictures = draw_all(runs, held_out, training, budgets)
    examples = [select_examples(run, options.examples) for run in runs]
    page = render(runs, pictures, examples, metric, budgets)
    options.output.write_text(page, encoding="utf-8", errors="replace")
    size = options.output.stat().st_size / 1e6
    print(f"Wrote {options.output} ({size:.1f} MB) about {', '.join(run.name for run in runs)}.")
    if options.figures is not None:
        num_files = write_figures(pictures, options.figures)
        print(f"Wrote {num_files} figures to {options.figures}, each as PNG and CSV.")


def draw_all(
    runs: Sequence[RunHistory], held_out: str | None, training: str | None, budgets: Sequence[Budget]
) -> list[Picture]:
    """Draw every figure of the report.

    Args:
        runs: in the order of their colors.
        held_out, training: metrics of accuracy; None: no run has one.
        budgets: of training time, marked on time axes.
    """
    specs = []
    marked = "Dotted lines mark the budgets. " if budgets else ""
    if held_out:
        has_error = any(f"{held_out}_stderr" in run.metrics for run in runs)
        band = "The band is one standard error on either side. " if has_error else ""
        reading = f"{held_out}, as measured in evaluations, which the clock leaves out. {band}{marked}"
        specs.append(accuracy_figure("accuracy", "Held-out accuracy", held_out, reading))
    if training and training != held_out:
        reading = f"{training}, over the rollouts that were trained on, at training temperature. {marked}"
        specs.append(accuracy_figure("training_accuracy", "Training accuracy", training, reading))
    drawn = [draw(spec, runs, budgets) for spec in (*specs, *FIGURES)]
    return [*(picture for picture in drawn if picture.panels or picture.missing), draw_weights(runs)]


def write_figures(pictures: Sequence[Picture], folder: Path) -> int:
    """Write every drawn picture as PNG and CSV, and return how many."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = [picture for picture in pictures if picture.panels]
    for picture in drawn:
        save_png(picture, folder / f"{picture.name}.png")
        with (folder / f"{picture.name}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([picture.header, *picture.rows])
    return len(drawn)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="srpo-trl report",
        description="Write one HTML file about one or several runs, from their logs alone.",
        epilog="Routed examples are there for runs that were trained with log_examples_steps.",
    )
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="output_dir of a training run, or a folder of such folders: every run below it is shown",
    )
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("report.html"), metavar="FILE", help="default: %(default)s"
    )
    parser.add_argument("--figures", type=Path, metavar="DIR", help="also write every figure as PNG and CSV")
    parser.add_argument(
        "--budgets",
        nargs="*",
        type=_duration,
        metavar="TIME",
        help="training time to mark, such as 90s 30m 5h (default: up to three round times that a run has come to; "
        f"from 10 hours on {' '.join(PAPER_BUDGETS)})",
    )
    parser.add_argument(
        "--accuracy",
        metavar="METRIC",
        help="logged metric to show as accuracy (default: eval_avg@n, else eval_reward)",
    )
    parser.add_argument(
        "--examples", type=_count, default=8, metavar="N", help="of each run (default: %(default)s)"
    )
    return parser.parse_args(argv)


def _duration(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is not a whole number of at least 0")
    return value


def _unknown_metric(metric: str, runs: Sequence[RunHistory]) -> str:
    logged = sorted({name for run in runs for name in run.metrics})
    near = [name for name in logged if re.search("reward|correct|accuracy|@", name)]
    return f"--accuracy {metric}: no run has logged it. Logged were {', '.join(near) or 'no rewards'}."
