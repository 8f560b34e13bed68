"""`srpo-trl train`: options from a YAML file and the command line, checked together, then one run."""

import argparse
import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import yaml
from datasets import Dataset, load_dataset
from transformers.trainer import TRAINER_STATE_NAME
from trl import ModelConfig, TrlParser, get_peft_config, get_quantization_config

from srpo_trl.config import SRPOConfig
from srpo_trl.data import load_benchmark
from srpo_trl.rewards import BENCHMARK_REWARDS
from srpo_trl.smoke_model import TINY_RANDOM_QWEN3, save_tiny_random_qwen3
from srpo_trl.trainer import SRPOTrainer
from srpo_trl.trl_seams import RewardFunc as RewardFunction

EXIT_WRONG_ARGUMENTS = 2  # argparse's own status for the same thing
DATA_FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}

Result = TypeVar("Result")


@dataclass
class TrainArguments:
    """What to train on and how it is scored; all else is an option of `SRPOConfig` or `trl.ModelConfig`."""

    benchmark: str | None = field(
        default=None,
        metadata={
            "help": "One of the paper's benchmarks: its prompts, its splits, and its rewards by default."
        },
    )
    data_dir: str | None = field(
        default=None,
        metadata={"help": "Folder that holds the benchmark's published JSON-lines files."},
    )
    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "A .jsonl, .json or .parquet file, a folder, or a hub id. Without benchmark: prompt-only "
            "rows with a `prompt` column, whose other columns reach the reward functions. With benchmark: "
            "where that benchmark's rows are, in the published format."
        },
    )
    dataset_config: str | None = field(
        default=None,
        metadata={"help": "Configuration of the data set named by dataset_name, where it has several."},
    )
    dataset_train_split: str = field(default="train", metadata={"help": "Split to train on."})
    dataset_test_split: str = field(
        default="test", metadata={"help": "Split to evaluate on; only read where eval_strategy is not 'no'."}
    )
    max_train_rows: int | None = field(
        default=None, metadata={"help": "Train on the first rows only. None: on all of them."}
    )
    max_eval_rows: int | None = field(
        default=None, metadata={"help": "Evaluate on the first rows only. None: on all of them."}
    )
    reward_funcs: list[str] | None = field(
        default=None,
        metadata={
            "help": "Dotted import paths of reward functions, such as srpo_trl.rewards.format_reward or "
            "my_module.my_reward (the current folder is searched too). None: the benchmark's own."
        },
    )

    def __post_init__(self) -> None:
        """Take a single reward function's name, as YAML allows it, for a list of one."""
        if isinstance(self.reward_funcs, str):
            self.reward_funcs = [self.reward_funcs]


def train(argv: Sequence[str]) -> int:
    """Train as the command line `argv` and the YAML file it names say, and return the exit status.

    Every problem that can be seen without a model is reported in one message, and nothing is started.
    """
    script, config, model_config, problems = read_arguments(argv)
    data_problems = list(_data_problems(script))
    problems += data_problems
    rewards: list[RewardFunction] = []
    for path in script.reward_funcs or ():
        rewards += _attempt(problems, import_reward, path)
    if script.reward_funcs is None and script.benchmark in BENCHMARK_REWARDS:
        rewards.append(BENCHMARK_REWARDS[script.benchmark])
    if model_config is not None:
        problems += model_problems(model_config)
    if config is not None:
        problems += _config_problems(config, [_name(reward) for reward in rewards])
    evaluates = config is not None and config.eval_strategy != "no"
    train_rows = eval_rows = None
    if not data_problems:
        train_rows = _attempt(problems, load_rows, script, script.dataset_train_split, script.max_train_rows)
    if not data_problems and evaluates:
        eval_rows = _attempt(problems, load_rows, script, script.dataset_test_split, script.max_eval_rows)
    if problems or not train_rows or config is None or model_config is None:
        items = ["- " + problem.replace("\n", "\n  ") for problem in problems]
        print("\n".join(["srpo-trl train: nothing was started, because", *items]), file=sys.stderr)
        return EXIT_WRONG_ARGUMENTS
    _run(config, model_config, rewards, train_rows[0], eval_rows[0] if eval_rows else None)
    return 0


def read_arguments(
    argv: Sequence[str],
) -> tuple[TrainArguments, SRPOConfig | None, ModelConfig | None, list[str]]:
    """Parse a command line and the YAML file it names, and build the three dataclasses.

    As in TRL's scripts, the YAML file's values replace the defaults, the command line's replace both, and
    `env:` in the YAML file sets environment variables. `TrlParser.parse_args_and_config` stops at the first
    dataclass that refuses its values; this goes on and returns every problem.

    Returns:
        The script's, the trainer's and the model's arguments (None where they were refused), the problems.
    Raises:
        SystemExit: for `--help`, or a value that cannot be read as its option's type.
    """
    kinds: Any = (TrainArguments, SRPOConfig, ModelConfig)  # TrlParser's annotation knows no dataclass types
    parser = TrlParser(
        kinds,
        prog="srpo-trl train",
        usage="srpo-trl train --config FILE.yaml [--any_option VALUE ...]",
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file with values for any option below.")
    config_file = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    config_file.add_argument("--config")
    path, arguments = config_file.parse_known_args(argv)
    problems: list[str] = []
    values = next(iter(_attempt(problems, _read_yaml, path.config)), {})
    os.environ.update({name: str(value) for name, value in values.pop("env", {}).items()})

    parser.set_defaults_with_config(**values)
    namespace, unread = parser.parse_known_args(arguments)
    problems += _unknown_options(values, unread, known={option.dest for option in parser._actions})
    for option in parser._actions:  # argparse checks choices on the command line only
        value = getattr(namespace, option.dest, None)
        if option.choices and value not in (None, *option.choices):
            problems.append(f"{option.dest}={value!r} is not one of {', '.join(map(repr, option.choices))}.")

    def values_of(kind: type) -> dict[str, Any]:
        return {f.name: getattr(namespace, f.name) for f in fields(kind) if f.init}

    script = TrainArguments(**values_of(TrainArguments))
    config = _attempt(problems, SRPOConfig, **values_of(SRPOConfig))
    model_config = _attempt(problems, ModelConfig, **values_of(ModelConfig))
    return script, next(iter(config), None), next(iter(model_config), None), problems


def import_reward(path: str) -> RewardFunction:
    """Return the function at a dotted path; the current folder is searched too.

    Raises:
        ValueError: there is none.
    """
    module_name, _, name = path.rpartition(".")
    if not module_name:
        raise ValueError(f"reward_funcs: {path!r} is not a dotted path such as 'srpo_trl.rewards.{path}'.")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        function = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"reward_funcs: {path!r} cannot be imported: {error}.") from error
    if not callable(function):
        raise ValueError(f"reward_funcs: {path!r} is a {type(function).__name__}, not a function.")
    return function


def load_rows(script: TrainArguments, split: str, max_rows: int | None) -> Dataset:
    """Return the first `max_rows` rows (None: all) of one split of the benchmark or data set in `script`.

    Raises:
        ValueError: a file is malformed, or there is no column `prompt`.
        OSError: a file, folder or hub repository cannot be read.
    """
    if script.benchmark is not None:
        source = script.dataset_name or script.benchmark
        try:
            return load_benchmark(
                source, split, data_dir=script.data_dir, benchmark=script.benchmark, max_rows=max_rows
            )
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error} (data_dir={script.data_dir!r})") from error
    name = str(script.dataset_name)
    file_format = DATA_FORMATS.get(Path(name).suffix)
    if file_format is not None:
        rows = load_dataset(file_format, data_files={split: name}, split=split)
    else:
        rows = load_dataset(name, name=script.dataset_config, split=split)
    if "prompt" not in rows.column_names:
        raise ValueError(f"dataset_name={name!r} has columns {rows.column_names}, but no column 'prompt'.")
    return rows if max_rows is None else rows.select(range(min(max_rows, len(rows))))


def last_complete_checkpoint(output_dir: str) -> str | None:
    """Return the checkpoint folder with the highest step that was written to its end, or None."""
    steps = {
        int(folder.name.removeprefix("checkpoint-")): folder
        for folder in Path(output_dir).glob("checkpoint-*")
        if folder.name.removeprefix("checkpoint-").isdecimal() and _is_complete(folder)
    }
    return str(steps[max(steps)]) if steps else None


def _is_complete(checkpoint: Path) -> bool:
    """Whether the file that the trainer writes last is there and whole."""
    try:
        return isinstance(json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8")), dict)
    except (OSError, json.JSONDecodeError):
        return False


def _attempt(problems: list[str], function: Callable[..., Result], *args: Any, **kwargs: Any) -> list[Result]:
    """Return `[function(...)]`, or `[]` with the message of its ValueError or OSError added to `problems`."""
    try:
        return [function(*args, **kwargs)]
    except (ValueError, OSError) as error:
        problems.append(str(error))
        return []


def _read_yaml(path: str | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"--config {path} cannot be read: {error.strerror}.") from error
    except yaml.YAMLError as error:
        raise ValueError(f"--config {path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict) or not isinstance(values.get("env", {}), dict):
        raise ValueError(f"--config {path} must hold `option: value` lines (and `env:` `NAME: value` lines).")
    return values


def _unknown_options(values: dict[str, Any], unread: list[str], known: set[str]) -> Iterator[str]:
    """Yield the YAML keys and command-line words that belong to no option."""
    names = [name for name in values if name not in known]
    names += [word.removeprefix("--").split("=")[0] for word in unread if word.startswith("--")]
    for name in names:
        near = get_close_matches(name.replace("-", "_"), known, n=1)
        yield f"{name} is not an option." + (f" Did you mean {near[0]}?" if near else "")
    if unread and not names:
        yield f"{' '.join(unread)!r} belongs to no option: write --option value."


def _data_problems(script: TrainArguments) -> Iterator[str]:
    names = ", ".join(BENCHMARK_REWARDS)
    if script.benchmark is None and script.dataset_name is None:
        yield f"Nothing to train on: give benchmark (one of {names}) or dataset_name."
    if script.benchmark is not None and script.benchmark not in BENCHMARK_REWARDS:
        yield f"benchmark={script.benchmark!r} is not one of {names}. For other data use dataset_name."
    if script.data_dir is not None and script.benchmark is None:
        yield f"data_dir={script.data_dir!r} belongs to benchmark. Give other data's path as dataset_name."
    if script.dataset_name is not None and script.benchmark is None and not script.reward_funcs:
        yield f"dataset_name={script.dataset_name!r} has no rewards of its own: give reward_funcs."
    for name in ("max_train_rows", "max_eval_rows"):
        value = getattr(script, name)
        if value is not None and (not isinstance(value, int) or value < 1):
            yield f"{name}={value!r} must be a whole number of at least 1, or left out."


def model_problems(model_config: ModelConfig) -> Iterator[str]:
    """Yield what is wrong with the model's name, as far as can be seen without reading anything."""
    model = model_config.model_name_or_path
    if not model:
        yield "model_name_or_path is missing: give a hub id or a local folder."
    elif model.startswith((".", "/", "~")) and not Path(model).is_dir():
        yield f"model_name_or_path={model!r} is not a folder."


def _config_problems(config: SRPOConfig, rewards: list[str]) -> Iterator[str]:
    """Yield what is wrong with options that depend on the reward functions, on files or on other packages."""
    if rewards and config.reward_weights is not None and len(config.reward_weights) != len(rewards):
        yield f"reward_weights={config.reward_weights} must hold one weight for each of {', '.join(rewards)}."
    if rewards and config.correctness_reward not in (None, *rewards):
        yield f"correctness_reward={config.correctness_reward!r} is not one of {', '.join(rewards)}."
    resume = config.resume_from_checkpoint
    if resume not in (None, "auto") and not _is_complete(Path(str(resume))):
        yield (
            f"resume_from_checkpoint={resume!r} is not a complete checkpoint folder. Give one, or 'auto' for "
            "the last complete one in output_dir, where there is one."
        )
    if config.use_vllm and importlib.util.find_spec("vllm") is None:
        yield "use_vllm is on, but vllm is not installed: pip install 'srpo-trl[vllm]', or switch it off."


def _run(
    config: SRPOConfig,
    model_config: ModelConfig,
    rewards: list[RewardFunction],
    train_rows: Dataset,
    eval_rows: Dataset | None,
) -> None:
    """Build the trainer as TRL's own scripts do, train, and save the model to `output_dir`."""
    output_dir = str(config.output_dir)
    model = str(model_config.model_name_or_path)
    if model == TINY_RANDOM_QWEN3:
        with config.main_process_first(desc="tiny random model"):
            model = str(save_tiny_random_qwen3(Path(output_dir) / TINY_RANDOM_QWEN3))
    given: Any = config.model_init_kwargs or {}  # a dict by now: TRL has parsed the command line's string
    config.model_init_kwargs = {
        "revision": model_config.model_revision,
        "trust_remote_code": config.trust_remote_code,
        "attn_implementation": model_config.attn_implementation,
        "dtype": model_config.dtype,
        **given,
    }
    resume = config.resume_from_checkpoint
    if resume == "auto":
        resume = last_complete_checkpoint(output_dir)

    trainer = SRPOTrainer(
        model=model,
        reward_funcs=rewards,
        args=config,
        train_dataset=train_rows,
        eval_dataset=eval_rows,
        quantization_config=get_quantization_config(model_config),
        peft_config=get_peft_config(model_config),
    )
    say = trainer.accelerator.print
    say(
        f"[srpo-trl] routing {config.routing}; model {model}; {len(train_rows)} training prompts; "
        f"rewards {', '.join(map(_name, rewards))}; "
        + (f"resuming from {resume}" if resume else "starting anew")
    )
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model(output_dir)
    say(f"[srpo-trl] model saved to {output_dir}; last checkpoint: {last_complete_checkpoint(output_dir)}")
    if config.push_to_hub:
        trainer.push_to_hub()
        say(f"[srpo-trl] model pushed to the hub as {trainer.hub_model_id}")
    if hasattr(trainer, "end"):  # from transformers 5.18 on
        trainer.end()


def _name(reward: RewardFunction) -> str:
    return getattr(reward, "__name__", type(reward).__name__)
