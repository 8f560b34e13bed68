"""From the command's options to runs: every variant with every seed, all from one start; or every problem at once."""

import argparse
import contextlib
import dataclasses
import io
import json
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from srpo_trl.compare.scores import Budget, read_budgets
from srpo_trl.compare.variants import VARIANTS
from srpo_trl.training_script import Training, prepare

RUNS_FOLDER = "runs"
OPTIONS_FILE = "options.json"
OWN_OPTIONS = (
    "config",
    "seed",
    "output_dir",
    "resume_from_checkpoint",
    "max_training_time",
)  # set for each run
# What makes a start and a score; with every option of `SRPOConfig` that speaks of evaluation.
START = ("model_name_or_path", "model_revision", "benchmark", "data_dir", "dataset_name", "dataset_config")
START += ("dataset_train_split", "dataset_test_split", "max_train_rows", "max_eval_rows", "reward_funcs")
START += ("reward_weights", "temperature", "top_p", "top_k", "max_completion_length", "chat_template_kwargs")
OF_ONE_RUN = ("output_dir", "logging_dir", "run_name", "seed", "resume_from_checkpoint", "max_training_time")

Result = TypeVar("Result")


@dataclass(frozen=True)
class Run:
    """One variant with one seed: the command that makes or resumes it, and where it writes."""

    variant: str
    seed: int
    output_dir: Path
    command: tuple[str, ...]
    options: str  # JSON: all that the result depends on but the seed


@dataclass(frozen=True)
class Plan:
    """What is compared. `runs` has the first seed of every variant first, so that a partial result is balanced."""

    runs: tuple[Run, ...]
    variants: tuple[str, ...]
    differences: dict[
        str, dict[str, Any]
    ]  # of each variant, the options that are not the same in all of them
    start: dict[str, Any]
    budgets: tuple[Budget, ...]
    metric: str | None
    jobs: int
    output_dir: Path

    @property
    def max_seconds(self) -> float | None:
        """Training time that ends a run, or None where its own `max_steps` or epochs do."""
        return max((budget.amount for budget in self.budgets if budget.is_time), default=None)


def make_plan(options: argparse.Namespace, training_options: Sequence[str]) -> tuple[Plan | None, list[str]]:
    """Return the plan, or None with every problem of the options, of the configs and between them.

    Args:
        options: the command's, values still text.
        training_options: words that every run's `srpo-trl train` gets after its config.
    """
    problems: list[str] = []
    num_seeds = next(iter(_attempt(problems, _whole_number, "seeds", options.seeds)), 1)
    jobs = next(iter(_attempt(problems, _whole_number, "jobs", options.jobs)), 1)
    budgets = next(iter(_attempt(problems, _budgets, options.budget)), [])
    for word in training_options:
        name = word.removeprefix("--").split("=")[0]
        if word.startswith("--") and name in OWN_OPTIONS:
            problems.append(f"--{name} after `--` is set for each run: give it to compare, or in the CONFIG.")
    variants = _variants(options.configs, options.variants, problems)
    if problems:
        return None, problems

    trainings: dict[str, Training] = {}
    for name, arguments in variants.items():
        training, found = _prepare([*arguments, *training_options])
        problems += [f"{name}: {problem}" for problem in found if f"{name}: {problem}" not in problems]
        if training is not None:
            trainings[name] = training
            problems += _unfit(name, training, budgets)
    starts = {name: _start(training) for name, training in trainings.items()}
    problems += _different_starts(starts)
    if problems:
        return None, _once(problems)

    limit = max((budget.amount for budget in budgets if budget.is_time), default=None)
    launch = shlex.split(options.launch) if options.launch else [sys.executable, "-m", "srpo_trl.cli"]
    runs = []
    for offset in range(num_seeds):
        for name, arguments in variants.items():
            seed = trainings[name].config.seed + offset
            folder = options.output_dir / RUNS_FOLDER / name / f"seed-{seed}"
            words = [*launch, "train", *arguments, *training_options]
            words += ["--seed", str(seed), "--output_dir", str(folder), "--resume_from_checkpoint", "auto"]
            if limit is not None:
                words += ["--max_training_time", f"{limit:g}s"]
            runs.append(Run(name, seed, folder, tuple(words), _as_json(trainings[name])))
    problems += _earlier_options(runs)
    if problems:
        return None, problems
    return Plan(
        runs=tuple(runs),
        variants=tuple(variants),
        differences=_differences(trainings),
        start=next(iter(starts.values())),
        budgets=tuple(budgets),
        metric=options.metric,
        jobs=jobs,
        output_dir=options.output_dir,
    ), []


def _attempt(problems: list[str], function: Callable[..., Result], *args: Any) -> list[Result]:
    """Return `[function(...)]`, or `[]` with the message of its ValueError added to `problems`."""
    try:
        return [function(*args)]
    except ValueError as error:
        problems.append(str(error))
        return []


def _whole_number(name: str, text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"--{name} {text} must be a whole number of at least 1.")
    return int(text)


def _budgets(text: str) -> list[Budget]:
    try:
        return read_budgets(text)
    except ValueError as error:
        raise ValueError(f"--budget {text}: {error}") from error


def _variants(configs: Sequence[Path], names: Sequence[str], problems: list[str]) -> dict[str, list[str]]:
    """Return each variant's name and the options of `srpo-trl train` that make it."""
    problems += [f"CONFIG {config} is not a file." for config in configs if not config.is_file()]
    chosen = list(VARIANTS) if list(names) == ["all"] else names
    unknown = [name for name in chosen if name not in VARIANTS]
    if unknown:
        problems.append(
            f"--variants {' '.join(map(repr, unknown))} must be 'all' or among {', '.join(VARIANTS)}."
        )
    variants: dict[str, list[str]] = {}
    for config in configs:
        for variant in chosen or [None]:
            parts = [config.stem] * (len(configs) > 1 or variant is None) + [variant or ""] * bool(variant)
            name = "-".join(parts)
            if name in variants:
                problems.append(f"Two variants are called {name!r}: give each CONFIG a file name of its own.")
            options = VARIANTS.get(variant, {}) if variant else {}
            words = [word for option, value in options.items() for word in (f"--{option}", value)]
            variants[name] = ["--config", str(config), *words]
    return variants


def _prepare(arguments: Sequence[str]) -> tuple[Training | None, list[str]]:
    """`prepare`, with what argparse says before it ends the program as one more problem."""
    messages = io.StringIO()
    try:
        with contextlib.redirect_stderr(messages):
            return prepare(arguments)
    except SystemExit:
        return None, [messages.getvalue().strip().rpartition("error: ")[2]]


def _unfit(name: str, training: Training, budgets: Sequence[Budget]) -> Iterator[str]:
    """Yield what keeps a configuration that could be trained from being compared."""
    config = training.config
    if config.eval_strategy == "no":
        yield f"{name}: eval_strategy 'no' gives no scores: set eval_strategy: steps and eval_steps."
    if config.save_strategy not in ("steps", "epoch"):
        yield f"{name}: save_strategy {str(config.save_strategy)!r} cannot be resumed: set it to 'steps'."
    for budget in budgets:
        if not budget.is_time and 0 < config.max_steps < budget.amount:
            yield f"{name}: max_steps={config.max_steps} ends before the budget of {budget.name}."


def _start(training: Training) -> dict[str, Any]:
    """Return what the score of an untrained variant depends on."""
    values = _options(training)
    evaluation = [name for name in values if name.startswith("eval_") or name.endswith("_eval")]
    return {name: values[name] for name in (*START, *evaluation)}


def _options(training: Training) -> dict[str, Any]:
    """Return every option of a run by name."""
    values: dict[str, Any] = {}
    for part in (training.model_config, training.config, training.script):
        values |= {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
    return values


def _as_json(training: Training) -> str:
    options = {name: value for name, value in _options(training).items() if name not in OF_ONE_RUN}
    return json.dumps(options, indent=2, sort_keys=True, default=str)


def _earlier_options(runs: Sequence[Run]) -> Iterator[str]:
    """Yield each run that an earlier call has begun with other options: its result would be mixed with new ones."""
    for run in runs:
        path = run.output_dir / OPTIONS_FILE
        if path.is_file():
            earlier, now = json.loads(path.read_text(encoding="utf-8")), json.loads(run.options)
            names = sorted(name for name in {*earlier, *now} if earlier.get(name) != now.get(name))
            if names:
                yield (
                    f"{run.output_dir} was begun with other values of {', '.join(names)}: give another --output_dir, "
                    "or delete it."
                )


def _different_starts(starts: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Yield every option of the start, the data or the evaluation that is not the same in all variants."""
    for option in dict.fromkeys(option for start in starts.values() for option in start):
        values = {name: start[option] for name, start in starts.items()}
        if len({repr(value) for value in values.values()}) > 1:
            given = ", ".join(f"{value!r} in {name}" for name, value in values.items())
            yield f"{option} must be the same in all variants, and is {given}."


def _differences(trainings: dict[str, Training]) -> dict[str, dict[str, Any]]:
    """Return, for each variant, those of its options that are not the same in all."""
    values = {name: _options(training) for name, training in trainings.items()}
    shared = next(iter(values.values()))
    differing = [
        option
        for option in shared
        if option not in OF_ONE_RUN and len({repr(options[option]) for options in values.values()}) > 1
    ]
    return {name: {option: options[option] for option in differing} for name, options in values.items()}


def _once(problems: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(problems))
