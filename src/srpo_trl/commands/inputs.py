"""What a command trains or evaluates on: its data set, its reward functions, and what can be wrong with them."""

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset
from trl import ModelConfig

from srpo_trl.commands.options import collect_error
from srpo_trl.config import SRPOConfig
from srpo_trl.data import load_benchmark, load_gsm8k
from srpo_trl.data.gsm8k import GSM8K, GSM8K_CONFIG, GSM8K_HUB_ID
from srpo_trl.rewards import BENCHMARK_REWARDS

DATA_FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}


RewardFunction = Callable[..., Any]


@dataclass
class DataArguments:
    """Which rows, and how completions are scored."""

    benchmark: str | None = field(
        default=None,
        metadata={
            "help": "One of the paper's benchmarks, or gsm8k: its prompts, its splits, and its rewards by default."
        },
    )
    data_dir: str | None = field(
        default=None,
        metadata={"help": "Folder that holds the published JSON-lines files of the paper's benchmarks."},
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
    dataset_test_split: str = field(
        default="test", metadata={"help": "Split to evaluate on; only read where eval_strategy is not 'no'."}
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


def load_rows(script: DataArguments, split: str, max_rows: int | None) -> Dataset:
    """Return the first `max_rows` rows (None: all) of one split of the benchmark or data set in `script`.

    Raises:
        ValueError: a file is malformed, or there is no column `prompt`.
        OSError: a file, folder or hub repository cannot be read.
    """
    if script.benchmark == GSM8K:
        return load_gsm8k(
            split,
            name_or_path=script.dataset_name or GSM8K_HUB_ID,
            config_name=script.dataset_config or GSM8K_CONFIG,
            max_rows=max_rows,
        )
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


def reward_functions(script: DataArguments, problems: list[str]) -> list[RewardFunction]:
    """Return the reward functions that are asked for, or the benchmark's own; add what is wrong to `problems`."""
    rewards: list[RewardFunction] = []
    for path in script.reward_funcs or ():
        rewards += collect_error(problems, import_reward, path)
    if script.reward_funcs is None and script.benchmark in BENCHMARK_REWARDS:
        rewards.append(BENCHMARK_REWARDS[script.benchmark])
    return rewards


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
        function: object = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"reward_funcs: {path!r} cannot be imported: {error}.") from error
    if not callable(function):
        raise ValueError(f"reward_funcs: {path!r} is a {type(function).__name__}, not a function.")
    return function


def data_problems(script: DataArguments) -> Iterator[str]:
    """Yield what is wrong with the choice of rows, before any is read."""
    names = ", ".join(BENCHMARK_REWARDS)
    if script.benchmark is None and script.dataset_name is None:
        yield f"There is no data: give benchmark (one of {names}) or dataset_name."
    if script.benchmark is not None and script.benchmark not in BENCHMARK_REWARDS:
        yield f"benchmark={script.benchmark!r} is not one of {names}. For other data use dataset_name."
    if script.data_dir is not None and script.benchmark is None:
        yield f"data_dir={script.data_dir!r} belongs to benchmark. Give other data's path as dataset_name."
    if script.data_dir is not None and script.benchmark == GSM8K:
        yield (
            f"data_dir={script.data_dir!r} belongs to the paper's benchmarks. Leave it out for gsm8k, or give a "
            "local copy of the data set as dataset_name."
        )
    if script.dataset_name is not None and script.benchmark is None and not script.reward_funcs:
        yield f"dataset_name={script.dataset_name!r} has no rewards of its own: give reward_funcs."
    for name in ("max_train_rows", "max_eval_rows"):
        value = getattr(script, name, None)
        if value is not None and (not isinstance(value, int) or value < 1):
            yield f"{name}={value!r} must be a whole number of at least 1, or left out."


def model_problems(model_config: ModelConfig) -> Iterator[str]:
    """Yield what is wrong with the model's name."""
    model = model_config.model_name_or_path
    if not model:
        yield "model_name_or_path is missing: give a hub id or a local folder."
    elif model.startswith((".", "/", "~")) and not Path(model).is_dir():
        yield f"model_name_or_path={model!r} is not a folder."


def loading_options(config: SRPOConfig, model_config: ModelConfig) -> dict[str, Any]:
    """Return the options that a model is loaded with; those of `model_init_kwargs` come first."""
    given: Any = config.model_init_kwargs or {}  # a dict by now: TRL has parsed the command line's string
    return {
        "revision": model_config.model_revision,
        "trust_remote_code": config.trust_remote_code,
        "attn_implementation": model_config.attn_implementation,
        "dtype": model_config.dtype,
        **given,
    }


def reward_problems(config: SRPOConfig, rewards: Sequence[str]) -> Iterator[str]:
    """Yield what is wrong with options that depend on the reward functions or on other packages."""
    if rewards and config.reward_weights is not None and len(config.reward_weights) != len(rewards):
        yield f"reward_weights={config.reward_weights} must hold one weight for each of {', '.join(rewards)}."
    if rewards and config.correctness_reward not in (None, *rewards):
        yield f"correctness_reward={config.correctness_reward!r} is not one of {', '.join(rewards)}."
    if config.use_vllm and importlib.util.find_spec("vllm") is None:
        yield "use_vllm is on, but vllm is not installed: pip install 'srpo-trl[vllm]', or switch it off."


def reward_name(reward: RewardFunction) -> str:
    """Return the name that messages call a reward function by."""
    return getattr(reward, "__name__", type(reward).__name__)
