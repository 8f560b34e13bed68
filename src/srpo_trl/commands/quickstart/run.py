"""`srpo-trl quickstart`: a warm start, a few methods from it, and what came of them."""

import argparse
import atexit
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from srpo_trl.commands.quickstart.quiet import quiet_libraries, quiet_logs, set_environment
from srpo_trl.commands.quickstart.task import COMPARED_METHODS
from srpo_trl.runs.durations import format_duration

_INTERRUPTED = 130  # of a shell for a program that SIGINT ended
_LARGEST_SEED = 2**31


def quickstart(argv: Sequence[str] | None = None) -> int:
    """Run the quickstart and return the exit status; options that do not fit end the program with argparse's 2."""
    options = _parse(argv)
    console = Console()
    try:
        _run(options, console)
    except KeyboardInterrupt:
        # While the interpreter ends, torch would answer another one with a traceback.
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
        console.print("Interrupted. The start is kept for the next run where it was finished.")
        return _INTERRUPTED
    return 0


def _run(options: argparse.Namespace, console: Console) -> None:
    set_environment()
    start = time.perf_counter()
    console.print("Loading torch, transformers and trl, which takes some seconds.")
    with quiet_logs():
        from srpo_trl.commands.quickstart.study import run_study  # which reads the environment

        with quiet_libraries():
            run_study(options, console)
    console.print(f"The whole run took {format_duration(time.perf_counter() - start)}.")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="srpo-trl quickstart",
        description="Train a tiny model that has learned wrong facts with several methods from one start, on a CPU.",
    )
    parser.add_argument(
        "--output_dir", type=Path, default=Path("outputs/quickstart"), help="default: %(default)s"
    )
    parser.add_argument(
        "--methods", nargs="+", choices=list(COMPARED_METHODS), default=list(COMPARED_METHODS)
    )
    for name, default, meaning in (
        ("steps", 100, "of each method"),
        ("eval_every", 10, "steps"),
        ("eval_questions", 384, "held-out, of each measurement"),
        ("seeds", 1, "runs of each method"),
        ("warmup_steps", 550, "supervised, of the start"),
    ):
        parser.add_argument(
            f"--{name}", type=_positive, default=default, help=f"{meaning} (default: %(default)s)"
        )
    # From the start of seed 0 the methods are level (docs/quickstart.md).
    parser.add_argument(
        "--seed", type=_seed, default=1, help="of the start and of the first run (default: %(default)s)"
    )
    parser.add_argument(
        "--fresh", action="store_true", help="make the start anew, even where an earlier one fits"
    )
    options = parser.parse_args(argv)
    if len(set(options.methods)) < len(options.methods):
        parser.error(f"--methods {' '.join(options.methods)}: name each method once")
    return options


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a whole number of at least 1")
    return value


def _seed(text: str) -> int:
    value = int(text)
    if not 0 <= value <= _LARGEST_SEED:
        raise argparse.ArgumentTypeError(f"{value} is not a whole number from 0 to {_LARGEST_SEED}")
    return value
