"""The study behind `srpo-trl quickstart`: one start, each method with each seed from it, and what is told of them."""

import argparse
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, replace
from io import StringIO
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from srpo_trl.commands.curves import CurveSet, results_json
from srpo_trl.commands.curves_plot import draw_curves
from srpo_trl.commands.quickstart.answer import clearest, print_answer, read_answers
from srpo_trl.commands.quickstart.folder import START, claimed
from srpo_trl.commands.quickstart.held_out import HeldOut
from srpo_trl.commands.quickstart.summary import CAVEAT, sentences, start_hint
from srpo_trl.commands.quickstart.task import (
    COMPARED_METHODS,
    EXPLAINED_METHOD,
    WORDS,
    Question,
    sample_questions,
)
from srpo_trl.commands.quickstart.train import SCORE, Run, TrainingRecipe, train_in_turns
from srpo_trl.commands.quickstart.warmup import WarmupRecipe, load_start, save_start, versions, warm_up
from srpo_trl.commands.report.command import make_report
from srpo_trl.data.tiny_model import build_tokenizer
from srpo_trl.methods import METHODS
from srpo_trl.runs.read import read_runs
from srpo_trl.runs.scores import Budget

HELD_OUT_SEED = 5
METRIC = "held-out accuracy (sampled, temperature 1)"


def run_study(options: argparse.Namespace, console: Console) -> None:
    """Make or load the start, train from it, and report.

    Raises:
        SystemExit: the folder cannot be used.
    """
    names = [_folder(options, method, seed).name for method in options.methods for seed in _seeds(options)]
    with claimed(options.output_dir, names):
        _study(options, console)


def _study(options: argparse.Namespace, console: Console) -> None:
    tokenizer = build_tokenizer(WORDS)
    warmup = WarmupRecipe(seed=options.seed, num_steps=options.warmup_steps)
    recipe = TrainingRecipe(num_steps=options.steps, eval_every=options.eval_every)
    questions = sample_questions(options.eval_questions, HELD_OUT_SEED, held_out=True)
    start = options.output_dir / f"{START}{warmup.key(tokenizer)}"
    model = _warm_start(start, tokenizer, warmup, options.fresh, console)
    held_out = HeldOut(tokenizer, questions, HELD_OUT_SEED)
    alone, shown = held_out.accuracy(model), held_out.accuracy(model, shown=True)
    error = (alone * (1 - alone) / options.eval_questions) ** 0.5
    console.print(
        f"The start, on {options.eval_questions} held-out questions: right {alone:.3f} (standard error {error:.3f}) "
        f"alone, {shown:.3f} with a right solution shown, as the teacher sees it. "
        "Each curve begins with another sampling of it."
    )
    if hint := start_hint(alone, shown):
        console.print(f"[yellow]{hint}[/yellow]")
    for seed in _seeds(options):
        _train(options, seed, recipe, start, tokenizer, questions, console)
    facts = {
        "start": {"student_accuracy": alone, "teacher_accuracy": shown},
        "recipes": {"warmup": asdict(warmup), "training": asdict(recipe)},
        "num_held_out_questions": options.eval_questions,
        "seconds": "of the processor, in training steps",
        "versions": versions(),
        "machine": {"platform": platform.platform(), "processor": platform.machine()},
    }
    _report(options, facts, console)


def _seeds(options: argparse.Namespace) -> range:
    return range(options.seed, options.seed + options.seeds)


def _folder(options: argparse.Namespace, method: str, seed: int) -> Path:
    """Return the folder of a run: the first seed's has the method's name alone."""
    name = method if seed == options.seed else f"{method}-seed{seed}"
    folder: Path = options.output_dir / name
    return folder


def _train(
    options: argparse.Namespace,
    seed: int,
    recipe: TrainingRecipe,
    start: Path,
    tokenizer: PreTrainedTokenizerFast,
    held_out: list[Question],
    console: Console,
) -> None:
    """Train every method with a seed, a line of progress for each."""
    names = [f"{METHODS[method].title}, seed {seed}" for method in options.methods]
    with _progress(console, names, recipe.num_steps) as advances:
        runs = [
            Run(recipe.config(method, seed, _folder(options, method, seed)), recipe.questions(seed), advance)
            for method, advance in zip(options.methods, advances, strict=True)
        ]
        train_in_turns(runs, start, tokenizer, held_out)


def _report(options: argparse.Namespace, facts: dict[str, Any], console: Console) -> None:
    """Draw, write and print what the runs came to."""
    folder, steps = options.output_dir, sorted({max(options.steps // 2, 1), options.steps})
    runs = {
        method: dict(zip(_seeds(options), read_runs(_folders(options, method)), strict=True))
        for method in options.methods
    }
    curves = {
        method: {seed: replace(run.curve(SCORE), is_finished=True) for seed, run in by_seed.items()}
        for method, by_seed in runs.items()
    }
    titled = CurveSet(METRIC, {METHODS[method].title: by_seed for method, by_seed in curves.items()})
    levels = {"start, shown a solution": facts["start"]["teacher_accuracy"]}
    note = CAVEAT.partition(" More")[0]
    draw_curves(titled, folder / "curves.png", levels, clock="processor's time in training steps", note=note)
    budgets = [Budget(f"{num}steps", num, is_time=False) for num in steps]
    method_options = {method: COMPARED_METHODS[method] for method in options.methods}
    (folder / "results.json").write_text(
        results_json(CurveSet(METRIC, curves), budgets, method_options, **facts), encoding="utf-8"
    )
    explained = runs.get(EXPLAINED_METHOD, {}).values()
    answers = read_answers([record for run in explained for record in run.examples])
    if answers:
        print_answer(clearest(answers), len(answers), console)
    console.print()
    for sentence in sentences(titled, answers, options.eval_questions):
        console.print(sentence, highlight=False)
    console.print(CAVEAT, style="dim", highlight=False)
    page = folder / "report.html"
    with console.status("Writing the report"), redirect_stdout(StringIO()):
        folders = [str(each) for method in options.methods for each in _folders(options, method)]
        make_report([*folders, "--output", str(page)])
    console.print(
        f"\nThe curves: {folder / 'curves.png'}\nThe report, with every failed answer that was logged: {page}\n"
        f"Their numbers: {folder / 'results.json'}\nNext, a model of yours on a GPU of 16 GB: "
        "srpo-trl train --config qwen3_0.6b_lora_16gb",
        highlight=False,
    )


def _folders(options: argparse.Namespace, method: str) -> list[Path]:
    return [_folder(options, method, seed) for seed in _seeds(options)]


def _warm_start(
    folder: Path, tokenizer: PreTrainedTokenizerFast, recipe: WarmupRecipe, fresh: bool, console: Console
) -> Qwen3ForCausalLM:
    """Return the common start: the one of an earlier run with the same recipe, or a new one, saved to `folder`."""
    earlier = None if fresh else load_start(folder)
    if earlier is not None:
        console.print(f"Took the start of an earlier run from {folder} (--fresh makes it anew).")
        return earlier[0]
    if folder.exists() and not fresh:
        console.print(f"The start of an earlier run in {folder} cannot be read and is made anew.")
    if not _is_live(console):
        console.print(
            f"Warm-up: {recipe.num_steps} supervised steps, about a minute of the processor's time."
        )
    with _progress(console, ["Warm-up"], recipe.num_steps) as (advance,):
        model, result = warm_up(tokenizer, recipe, lambda step: advance(step, None))
    save_start(folder, model, tokenizer, result)
    return model


def _is_live(console: Console) -> bool:
    """Whether a line of progress can change; else what it would show is printed."""
    return console.is_terminal or console.is_jupyter


@contextmanager
def _progress(
    console: Console, names: list[str], total: int
) -> Iterator[list[Callable[[int, float | None], None]]]:
    """Show a line for each name; the functions take the number of steps done and, where there is one, the accuracy."""
    columns = (
        TextColumn("{task.description:<13}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("steps{task.fields[note]}"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with Progress(*columns, console=console) as progress:

        def advance_of(name: str) -> Callable[[int, float | None], None]:
            task = progress.add_task(name, total=total, note="")

            def advance(done: int, accuracy: float | None) -> None:
                progress.update(task, completed=done)
                if accuracy is not None:
                    progress.update(task, note=f", right {accuracy:.3f}")
                    if not _is_live(console):
                        console.print(f"{name}: {done}/{total} steps, right {accuracy:.3f}")

            return advance

        yield [advance_of(name) for name in names]
