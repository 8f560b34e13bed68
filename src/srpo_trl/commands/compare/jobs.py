"""From the command's options to jobs: every variant with every seed, all from one start; or every problem at once."""

import argparse
import contextlib
import io
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srpo_trl.commands.compare.start import (
    changed_since_start,
    different_starts,
    differing,
    options_of,
    options_text,
    start_of,
)
from srpo_trl.commands.config_file import config_path
from srpo_trl.commands.options import collect_error
from srpo_trl.commands.train import Training, prepare, read_arguments
from srpo_trl.config import SRPOConfig
from srpo_trl.methods import COMPARABLE, CONTROLS, PAPER_DEFAULTS, VARIANTS
from srpo_trl.runs.scores import Budget, read_budgets

RUNS_FOLDER = "runs"
OWN_OPTIONS = ("config", "seed", "output_dir", "resume_from_checkpoint", "max_training_time")


@dataclass(frozen=True)
class Job:
    """One variant with one seed: the command that makes or resumes it, and where it writes."""

    variant: str
    seed: int
    output_dir: Path
    command: tuple[str, ...]
    options: str  # JSON: all that the result may depend on, but the seed

    @property
    def name(self) -> str:
        """How the job is called in messages."""
        return f"{self.variant}, seed {self.seed}"


@dataclass(frozen=True)
class Comparison:
    """What is compared. `jobs` has the first seed of every variant first, so that a partial result is balanced."""

    jobs: tuple[Job, ...]
    variants: tuple[str, ...]
    differences: dict[str, dict[str, Any]]  # option: its value by variant, where it is not the same in all
    start: dict[str, Any]
    budgets: tuple[Budget, ...]
    max_seconds: float | None  # of training, that end a run; None: its own `max_steps` or epochs do
    metric: str | None
    num_parallel: int
    output_dir: Path


def make_comparison(
    options: argparse.Namespace, training_options: Sequence[str]
) -> tuple[Comparison | None, list[str]]:
    """Return what is compared, or None with every problem of the options, of the configs and between them.

    Args:
        options: the command's, values still text.
        training_options: words that every run's `srpo-trl train` gets after its config.
    """
    problems: list[str] = []
    num_seeds = next(iter(collect_error(problems, _whole_number, "seeds", options.seeds)), 1)
    num_parallel = next(iter(collect_error(problems, _whole_number, "jobs", options.jobs)), 1)
    budgets = next(iter(collect_error(problems, _budgets, options.budget)), [])
    problems += _own_options(training_options)
    variants = _variants(options.configs, options.variants, problems)
    trainings, training_problems = _trainings(variants, training_options, budgets)
    problems += training_problems
    values = {name: options_of(training) for name, training in trainings.items()}
    starts = {name: start_of(value) for name, value in values.items()}
    problems += different_starts(starts)
    if problems:
        return None, problems

    launch = (
        shlex.split(options.launch, posix=os.name == "posix")
        if options.launch
        else [sys.executable, "-m", "srpo_trl.cli"]
    )
    limit = max((budget.amount for budget in budgets if budget.is_time), default=None)
    jobs = []
    for offset in range(num_seeds):
        for name, arguments in variants.items():
            seed = trainings[name].config.seed + offset
            folder = options.output_dir / RUNS_FOLDER / name / f"seed-{seed}"
            words = [*launch, "train", *arguments, *training_options]
            words += ["--seed", str(seed), "--output_dir", str(folder), "--resume_from_checkpoint", "auto"]
            words += [] if limit is None else ["--max_training_time", f"{limit:f}s"]
            jobs.append(Job(name, seed, folder, tuple(words), options_text(values[name])))
    for job in jobs:
        problems += changed_since_start(job.output_dir, job.options)
    if problems:
        return None, problems
    return Comparison(
        jobs=tuple(jobs),
        variants=tuple(variants),
        differences=differing(values),
        start=next(iter(starts.values())),
        budgets=tuple(budgets),
        max_seconds=limit,
        metric=options.metric,
        num_parallel=num_parallel,
        output_dir=options.output_dir,
    ), []


def _whole_number(name: str, text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"--{name} {text} must be a whole number of at least 1.")
    return int(text)


def _budgets(text: str) -> list[Budget]:
    try:
        return read_budgets(text)
    except ValueError as error:
        raise ValueError(f"--budget {text}: {error}") from error


def _own_options(training_options: Sequence[str]) -> Iterator[str]:
    """Yield each option after `--` that the command sets for each run."""
    for word in training_options:
        name = word.removeprefix("--").split("=")[0]
        if word.startswith("--") and name in OWN_OPTIONS:
            yield f"--{name} cannot follow `--`: compare sets it for each run. The CONFIG's seed is the first."


def _variants(configs: Sequence[Path], names: Sequence[str], problems: list[str]) -> dict[str, list[str]]:
    """Return each variant's name and the options of `srpo-trl train` that make it."""
    files = [file for config in configs for file in collect_error(problems, _config_file, config)]
    chosen = [*VARIANTS, *CONTROLS] if list(names) == ["all"] else names
    unknown = [name for name in chosen if name not in COMPARABLE]
    if unknown:
        given = " ".join(map(repr, unknown))
        problems.append(f"--variants {given} must be 'all' or among {', '.join(VARIANTS)}, or a method.")
    variants: dict[str, list[str]] = {}
    for config in files:
        made = {name: COMPARABLE.get(name, {}) for name in chosen}
        if len(configs) > 1:
            made = {f"{config.stem}-{name}": values for name, values in made.items()}
        for name, values in (made or {config.stem: {}}).items():
            if name in variants:
                problems.append(f"Two variants are called {name!r}: give each CONFIG a file name of its own.")
            words = [word for option, value in values.items() for word in (f"--{option}", value)]
            variants[name] = ["--config", str(config), *words]
    return variants


def _config_file(name: Path) -> Path:
    try:
        file = config_path(name)
    except ValueError as error:
        raise ValueError(f"CONFIG {name} {error}") from error
    if not file.is_file():
        raise ValueError(f"CONFIG {name} is not a file.")
    return file


def _trainings(
    variants: dict[str, list[str]], training_options: Sequence[str], budgets: Sequence[Budget]
) -> tuple[dict[str, Training], list[str]]:
    """Return what each variant trains, and every problem with the variants that have it."""
    trainings: dict[str, Training] = {}
    by_problem: dict[str, list[str]] = {}
    for name, arguments in variants.items():
        training, problems = _prepare([*arguments, *training_options])
        shared = [] if training is None else _shared_defaults(training)
        if shared:
            arguments += shared
            training, problems = _prepare([*arguments, *training_options])
        if training is not None:
            trainings[name] = training
        config = _config([*arguments, *training_options]) if training is None else training.config
        problems = [*problems, *(() if config is None else _unfit(config, budgets))]
        for problem in problems:
            by_problem.setdefault(problem, []).append(name)
    return trainings, [f"{', '.join(names)}: {problem}" for problem, names in by_problem.items()]


def _shared_defaults(training: Training) -> list[str]:
    """Return the words that give a variant the others' defaults, where its method has its own: one start for all."""
    config = training.config
    shared = {name: value for name, value in sorted(PAPER_DEFAULTS.items()) if name in config.defaulted}
    own = [name for name, value in shared.items() if getattr(config, name) != value]
    return [word for name in own for word in (f"--{name}", str(shared[name]))]


def _prepare(arguments: Sequence[str]) -> tuple[Training | None, list[str]]:
    """`prepare`, with what argparse says before it ends the program as one more problem."""
    messages = io.StringIO()
    try:
        with contextlib.redirect_stderr(messages):
            return prepare(arguments)
    except SystemExit:
        return None, [messages.getvalue().strip().rpartition("error: ")[2]]


def _config(arguments: Sequence[str]) -> SRPOConfig | None:
    """Return the trainer's arguments of a run that `prepare` has refused, where it was not for them."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            return read_arguments(arguments)[1]
    except SystemExit:
        return None


def _unfit(config: SRPOConfig, budgets: Sequence[Budget]) -> Iterator[str]:
    """Yield what keeps a configuration from being compared."""
    if config.eval_strategy == "no":
        yield "eval_strategy 'no' gives no scores: set eval_strategy to 'steps', and eval_steps."
    if config.save_strategy not in ("steps", "epoch"):
        yield f"save_strategy {str(config.save_strategy)!r} cannot be resumed: set it to 'steps'."
    for budget in budgets:
        if not budget.is_time and 0 < config.max_steps < budget.amount:
            yield f"max_steps={config.max_steps} ends before the budget of {budget.name}."
