"""The study behind `srpo-trl quickstart`: one start, each method with each seed from it, and what is told of them."""

import argparse
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from srpo_trl.commands.curves import CurveSet, print_table, results_json, table_rows
from srpo_trl.commands.curves_plot import draw_curves
from srpo_trl.commands.quickstart.held_out import HeldOut
from srpo_trl.commands.quickstart.task import COMPARED_METHODS, SAVED_METHOD, sample_questions
from srpo_trl.commands.quickstart.train import TrainingRecipe, train_method
from srpo_trl.commands.quickstart.warmup import WarmupRecipe, WarmupResult, load_start, save_start, warm_up
from srpo_trl.data.tiny_model import build_tokenizer
from srpo_trl.runs.scores import Budget, LearningCurve

HELD_OUT_SEED = 5
METRIC = "held-out accuracy (sampled, temperature 1)"


def run_study(options: argparse.Namespace, console: Console) -> None:
    """Make or load the start, train from it, and report."""
    options.output_dir.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    warmup = WarmupRecipe(seed=options.seed, max_steps=options.warmup_steps)
    training = TrainingRecipe(num_steps=options.steps, eval_every=options.eval_every)
    questions = sample_questions(options.eval_questions, HELD_OUT_SEED, held_out=True)
    held_out = HeldOut(tokenizer, questions, HELD_OUT_SEED)

    start_folder = options.output_dir / f"start-{warmup.key(tokenizer)}"
    model, start = _warm_start(start_folder, tokenizer, warmup, options.fresh, console)
    alone, shown = held_out.accuracy(model), held_out.accuracy(model, shown=True)
    console.print(
        f"The start, on {options.eval_questions} held-out questions, sampled at temperature 1: right "
        f"{alone:.3f} alone, {shown:.3f} with a right solution shown."
    )
    if not start.reached:
        console.print(
            f"[yellow]The warm-up ended after {start.num_steps} steps without what it aims at: at least "
            f"{warmup.student_accuracy} alone, and {warmup.teacher_ratio:g} times that with a solution shown. Training "
            "starts from there; for a better start give another --seed or more --warmup_steps.[/yellow]"
        )
    curves = _train_all(options, tokenizer, start_folder, training, held_out, alone, console)
    facts = {
        "start": asdict(start) | {"student_accuracy": alone, "teacher_accuracy": shown},
        "recipes": {"warmup": asdict(warmup), "training": asdict(training)},
        "num_held_out_questions": options.eval_questions,
    }
    _report(options, curves, facts, console)


def _train_all(
    options: argparse.Namespace,
    tokenizer: PreTrainedTokenizerFast,
    start_folder: Path,
    recipe: TrainingRecipe,
    held_out: HeldOut,
    start_accuracy: float,
    console: Console,
) -> CurveSet:
    """Train each method with each seed from the start in `start_folder`, and save one of the models."""
    curves: dict[str, dict[int, LearningCurve]] = {method: {} for method in options.methods}
    for seed in range(options.seed, options.seed + options.seeds):
        for method in options.methods:
            start = load_start(start_folder)
            assert start is not None, "the start was saved before any training"
            config, name = recipe.config(method, seed, options.output_dir), f"{method.upper()}, seed {seed}"
            with _progress(console, name, recipe.num_steps) as advance:
                curve = train_method(start[0], tokenizer, config, held_out, start_accuracy, advance)
            curves[method][seed] = curve
            console.print(
                f"{name}: held-out accuracy {start_accuracy:.3f} to {curve.points[-1].score:.3f} in "
                f"{recipe.num_steps} steps, {curve.seconds:.0f} s."
            )
            if method == SAVED_METHOD and seed == options.seed:
                start[0].save_pretrained(options.output_dir / f"{method}-model")
                tokenizer.save_pretrained(options.output_dir / f"{method}-model")
    return CurveSet(METRIC, curves)


def _report(options: argparse.Namespace, curves: CurveSet, facts: dict[str, Any], console: Console) -> None:
    """Print the table and write the picture and the numbers."""
    folder, steps = options.output_dir, sorted({max(options.steps // 2, 1), options.steps})
    budgets = [Budget(f"{num}steps", num, is_time=False) for num in steps]
    print_table("Held-out accuracy: best within each budget", table_rows(curves, budgets), console)
    console.print(
        f"Seen on this task, from this start, with {options.seeds} seed{'s'[: options.seeds - 1]}; a single point of "
        f"one run has a standard error of up to {0.5 / options.eval_questions**0.5:.3f}."
    )
    start = facts["start"]
    levels = {"start, shown a solution": start["teacher_accuracy"], "start": start["student_accuracy"]}
    draw_curves(curves, folder / "curves.png", levels)
    packages = ("torch", "transformers", "trl", "srpo-trl")
    facts["versions"] = {name: version(name) for name in packages} | {"python": platform.python_version()}
    facts["machine"] = {"platform": platform.platform(), "processor": platform.machine()}
    method_options = {method: COMPARED_METHODS[method] for method in options.methods}
    (folder / "results.json").write_text(
        results_json(curves, budgets, method_options, **facts), encoding="utf-8"
    )
    saved = [f"{SAVED_METHOD}-model"] if SAVED_METHOD in options.methods else []
    console.print(f"Saved {', '.join(['curves.png', 'results.json', *saved])} in {folder}.")


def _warm_start(
    folder: Path, tokenizer: PreTrainedTokenizerFast, recipe: WarmupRecipe, fresh: bool, console: Console
) -> tuple[Qwen3ForCausalLM, WarmupResult]:
    """Return the common start: the one of an earlier run with the same recipe, or a new one, saved to `folder`."""
    earlier = None if fresh else load_start(folder)
    if earlier is not None:
        console.print(f"Took the start of an earlier run from {folder} (--fresh makes it anew).")
        return earlier
    with _progress(console, "Warm-up", recipe.max_steps) as advance:
        model, result = warm_up(tokenizer, recipe, advance)
    console.print(f"Warmed up in {result.num_steps} supervised steps, {result.seconds:.0f} s.")
    save_start(folder, model, tokenizer, result)
    return model, result


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
