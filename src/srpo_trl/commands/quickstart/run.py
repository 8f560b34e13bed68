"""`srpo-trl quickstart`: a warm start, three methods from it, a table, a picture and a saved model."""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from srpo_trl.commands.quickstart.quiet import quiet_libraries, quiet_logs, set_environment
from srpo_trl.commands.quickstart.task import METHODS

if TYPE_CHECKING:  # torch, transformers and trl are imported once the environment is set
    from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

    from srpo_trl.commands.quickstart.train import Curve, HeldOut, TrainingRecipe
    from srpo_trl.commands.quickstart.warmup import WarmupRecipe, WarmupResult

SAVED_METHOD = "srpo"
HELD_OUT_SEED = 5


def main(argv: Sequence[str] | None = None) -> int:
    """Run the quickstart and return 0; options that do not fit end the program with argparse's status 2."""
    options = _parse(argv)
    console = Console()
    set_environment()
    start = time.perf_counter()
    with quiet_logs():
        with console.status("Loading torch, transformers and trl"):
            import srpo_trl.commands.quickstart.train  # noqa: F401
        console.print(f"Loaded the libraries in {time.perf_counter() - start:.0f} s.")
        with quiet_libraries():
            _run(options, console)
    console.print(f"The whole run took {_duration(time.perf_counter() - start)}.")
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="srpo-trl quickstart",
        description="Train a tiny model on 4-digit addition with GRPO, SDPO and SRPO from one start, on a CPU.",
    )
    parser.add_argument(
        "--output_dir", type=Path, default=Path("outputs/quickstart"), help="default: %(default)s"
    )
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--steps", type=_positive, default=100, help="of each method (default: %(default)s)")
    parser.add_argument("--eval_every", type=_positive, default=10, help="steps (default: %(default)s)")
    parser.add_argument("--eval_questions", type=_positive, default=384, help="default: %(default)s")
    parser.add_argument(
        "--seeds", type=_positive, default=1, help="runs of each method (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the start and of the first run")
    parser.add_argument("--warmup_steps", type=_positive, default=400, help="at most (default: %(default)s)")
    parser.add_argument(
        "--fresh", action="store_true", help="make the start anew, even where an earlier one fits"
    )
    return parser.parse_args(argv)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a whole number of at least 1")
    return value


def _run(options: argparse.Namespace, console: Console) -> None:
    from srpo_trl.commands.quickstart.evaluate import standard_error
    from srpo_trl.commands.quickstart.plot import draw_curves
    from srpo_trl.commands.quickstart.report import curve_table, summary_table, write_results
    from srpo_trl.commands.quickstart.task import sample_questions
    from srpo_trl.commands.quickstart.train import HeldOut, TrainingRecipe
    from srpo_trl.commands.quickstart.warmup import WarmupRecipe
    from srpo_trl.data.tiny_model import build_tokenizer

    output_dir: Path = options.output_dir
    output_dir.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    warmup = WarmupRecipe(seed=options.seed, max_steps=options.warmup_steps)
    training = TrainingRecipe(num_steps=options.steps, eval_every=options.eval_every)
    held_out = HeldOut(sample_questions(options.eval_questions, HELD_OUT_SEED, held_out=True), HELD_OUT_SEED)

    start_folder = output_dir / f"start-{warmup.key(tokenizer)}"
    model, start = _warm_start(start_folder, tokenizer, warmup, options.fresh, console)
    student_accuracy = held_out.accuracy(model, tokenizer)
    teacher_accuracy = held_out.accuracy(model, tokenizer, shown=True)
    console.print(
        f"The start, on {options.eval_questions} held-out questions, sampled at temperature 1: right "
        f"{student_accuracy:.3f} alone, {teacher_accuracy:.3f} with a right solution shown."
    )
    if not start.reached:
        console.print(
            f"[yellow]The warm-up ended after {start.num_steps} steps without what it aims at: at least "
            f"{warmup.student_accuracy} alone, and {warmup.teacher_ratio:g} times that with a solution shown. Training "
            "goes on from there; for a better start give another --seed or more --warmup_steps.[/yellow]"
        )

    curves = []
    for seed in range(options.seed, options.seed + options.seeds):
        for method in options.methods:
            curve, model = _train(
                start_folder, tokenizer, method, seed, training, held_out, student_accuracy, console
            )
            curves.append(curve)
            if method == SAVED_METHOD and seed == options.seed:
                model.save_pretrained(output_dir / "srpo-model")
                tokenizer.save_pretrained(output_dir / "srpo-model")

    console.print(curve_table(curves))
    console.print(summary_table(curves))
    console.print(
        f"Seen on this task, from this start, with {options.seeds} seed{'s'[: options.seeds - 1]}; a single point of "
        f"one run has a standard error of up to {standard_error(0.5, options.eval_questions):.3f}."
    )
    draw_curves(curves, student_accuracy, teacher_accuracy, options.eval_questions, output_dir / "curves.png")
    write_results(
        output_dir / "results.json",
        curves,
        start={"student_accuracy": student_accuracy, "teacher_accuracy": teacher_accuracy} | asdict(start),
        recipes={"warmup": asdict(warmup), "training": asdict(training)},
        num_held_out_questions=options.eval_questions,
    )
    saved = ["curves.png", "results.json", *(["srpo-model"] if SAVED_METHOD in options.methods else [])]
    console.print(f"Saved {', '.join(saved)} in {output_dir}.")


def _warm_start(
    folder: Path, tokenizer: "PreTrainedTokenizerFast", recipe: "WarmupRecipe", fresh: bool, console: Console
) -> "tuple[Qwen3ForCausalLM, WarmupResult]":
    """Return the common start: the one of an earlier run with the same recipe, or a new one, saved to `folder`."""
    from srpo_trl.commands.quickstart.warmup import load_start, save_start, warm_up

    earlier = None if fresh else load_start(folder)
    if earlier is not None:
        console.print(f"Took the start of an earlier run from {folder} (--fresh makes it anew).")
        return earlier
    with _progress(console, "Warm-up", recipe.max_steps) as advance:
        model, result = warm_up(tokenizer, recipe, advance)
    console.print(f"Warmed up in {result.num_steps} supervised steps, {result.seconds:.0f} s.")
    save_start(folder, model, tokenizer, result)
    return model, result


def _train(
    start_folder: Path,
    tokenizer: "PreTrainedTokenizerFast",
    method: str,
    seed: int,
    recipe: "TrainingRecipe",
    held_out: "HeldOut",
    start_accuracy: float,
    console: Console,
) -> "tuple[Curve, Qwen3ForCausalLM]":
    """Train one method with one seed from the start in `start_folder`; return its curve and the model."""
    from srpo_trl.commands.quickstart.train import train_method
    from srpo_trl.commands.quickstart.warmup import load_start

    start = load_start(start_folder)
    assert start is not None, "the start was saved before any training"
    model, _ = start
    with _progress(console, f"{method.upper()}, seed {seed}", recipe.num_steps) as advance:
        curve = train_method(
            model,
            tokenizer,
            method,
            seed,
            recipe,
            held_out,
            start_accuracy,
            start_folder.parent,
            advance,
        )
    console.print(
        f"{method.upper()}, seed {seed}: held-out accuracy {curve.accuracy[0]:.3f} to {curve.accuracy[-1]:.3f} in "
        f"{recipe.num_steps} steps, {curve.seconds[-1]:.0f} s."
    )
    return curve, model


@contextmanager
def _progress(console: Console, description: str, total: int) -> Iterator[Callable[[int, str], None]]:
    """Show a progress bar; the yielded function takes the number of steps done and, where there is news, a note."""
    columns = (
        TextColumn("{task.description:<13}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(description, total=total, note="")

        def advance(done: int, note: str) -> None:
            progress.update(task, completed=done)
            if note:
                progress.update(task, note=note)

        yield advance


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
