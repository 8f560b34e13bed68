"""What a command trains or evaluates on: its data set, its reward functions, and what can be wrong with them."""

import importlib
import importlib.util
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset, load_dataset
from datasets.exceptions import DatasetsError
from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments, get_dataset
from trl.rewards import (
    accuracy_reward,
    get_soft_overlong_punishment,
    reasoning_accuracy_reward,
    think_format_reward,
)

from srpo_trl import rewards as own_rewards
from srpo_trl.commands.options import collect_error
from srpo_trl.config import SRPOConfig
from srpo_trl.data import load_benchmark, load_gsm8k, load_livecodebench
from srpo_trl.data.gsm8k import GSM8K, GSM8K_CONFIG, GSM8K_HUB_ID
from srpo_trl.data.livecodebench import LIVECODEBENCH, LIVECODEBENCH_CONFIG, LIVECODEBENCH_HUB_ID
from srpo_trl.rewards import BENCHMARK_REWARDS

DATA_FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}


RewardFunction = Callable[..., Any] | str  # or the name of a reward model

# Names that `trl grpo` gives to TRL's rewards, and ours by theirs.
REWARDS_BY_NAME: dict[str, Callable[..., Any]] = {
    "accuracy_reward": accuracy_reward,
    "reasoning_accuracy_reward": reasoning_accuracy_reward,
    "think_format_reward": think_format_reward,
    "get_soft_overlong_punishment": get_soft_overlong_punishment(
        max_completion_len=1280, soft_punish_cache=256
    ),
    **{
        name: getattr(own_rewards, name)
        for name in own_rewards.__all__
        if name.endswith("_reward") and not name.startswith("get_")
    },
}
DATA_SET: Any = type(DatasetMixtureConfig(datasets=[{"path": ""}]).datasets[0])  # type: ignore[list-item]
DATA_SET_OPTIONS = [option.name for option in fields(DATA_SET)]
MIXTURE_SEED = 42  # of its split into training and test rows, in every process and in every part of a run

logger = logging.getLogger(__name__)


@dataclass
class DataArguments(ScriptArguments, DatasetMixtureConfig):
    """Which rows, and how completions are scored: what `trl grpo` takes, and the paper's benchmarks."""

    benchmark: str | None = field(
        default=None,
        metadata={
            "help": "One of the paper's benchmarks, gsm8k or livecodebench: its prompts, its splits, and its rewards "
            "by default."
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
    reward_model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Hub id or folder of a reward model, which comes before reward_funcs."},
    )
    reward_funcs: list[str] | None = field(
        default=None,
        metadata={
            "help": f"Reward functions: {', '.join(REWARDS_BY_NAME)}, or dotted import paths such as "
            "my_module.my_reward (the current folder is searched too). None: the benchmark's own."
        },
    )
    ignore_bias_buffers: bool = field(
        default=False, metadata={"help": "Taken because `trl grpo` takes it; it has no effect there either."}
    )

    def __post_init__(self) -> None:
        """Take a single reward function's name, as YAML allows it, for a list of one, and read the data sets.

        What is no data set is left for `data_problems`.
        """
        if self.reward_funcs is not None and not isinstance(self.reward_funcs, list):
            self.reward_funcs = [self.reward_funcs]
        given: list[Any] = self.datasets if isinstance(self.datasets, list) else [self.datasets]
        read = [DATA_SET(**one) if _is_data_set(one) else one for one in given]
        self.datasets = [
            replace(one, path=os.path.expanduser(one.path)) if isinstance(one, DATA_SET) else one
            for one in read
        ]


def _is_data_set(given: Any) -> bool:
    return (
        isinstance(given, dict) and isinstance(given.get("path"), str) and set(given) <= set(DATA_SET_OPTIONS)
    )


def load_rows(script: DataArguments, split: str, max_rows: int | None) -> Dataset | IterableDataset:
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
    if script.benchmark == LIVECODEBENCH:
        return load_livecodebench(
            split,
            name_or_path=script.dataset_name or LIVECODEBENCH_HUB_ID,
            config_name=script.dataset_config or LIVECODEBENCH_CONFIG,
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
    rows, given = _rows_of_data_sets(script, split)
    columns = rows.column_names  # a stream may have none to tell
    if columns and "prompt" not in columns:
        raise ValueError(f"{given} has columns {columns}, but no column 'prompt'.")
    if max_rows is None:
        return rows
    return (
        rows.take(max_rows)
        if isinstance(rows, IterableDataset)
        else rows.select(range(min(max_rows, len(rows))))
    )


def _rows_of_data_sets(script: DataArguments, split: str) -> tuple[Dataset | IterableDataset, str]:
    """Return one split of `datasets` or else of `dataset_name`, and what messages call it."""
    name = str(script.dataset_name)
    given = "datasets" if script.datasets else f"dataset_name={name!r}"
    file_format = DATA_FORMATS.get(Path(name).suffix)
    source, files = (name, None) if file_format is None else (file_format, {split: name})
    try:
        if script.datasets:
            return _mixture(script, split), given
        rows = load_dataset(
            source,
            name=script.dataset_config,
            data_files=files,
            split=split,
            streaming=script.dataset_streaming,
        )
    except StopIteration as error:  # of a file without a line
        raise ValueError(f"{given} has no rows.") from error
    except DatasetsError as error:
        if isinstance(error, OSError):
            raise
        raise ValueError(f"{given} cannot be read: {error.__cause__ or error}") from error
    return rows, given


def load_eval_rows(script: DataArguments) -> Dataset:
    """Return the rows to evaluate on, of a stream too as a data set: every question is sampled for several times.

    Raises:
        ValueError, OSError: as `load_rows`.
    """
    rows = load_rows(script, script.dataset_test_split, script.max_eval_rows)
    return Dataset.from_list(list(rows)) if isinstance(rows, IterableDataset) else rows


def data_name(script: DataArguments) -> str:
    """Return what messages call the rows by."""
    mixture = ", ".join(one.path for one in script.datasets)
    return script.benchmark or mixture or str(script.dataset_name)


def _mixture(script: DataArguments, split: str) -> Dataset | IterableDataset:
    """Return one split of the data sets together. TRL's own split differs between processes, and between calls."""
    rows = get_dataset(replace(script, test_split_size=None))["train"]
    splits = {"train": rows}
    if script.test_split_size is not None:
        splits = rows.train_test_split(test_size=script.test_split_size, seed=MIXTURE_SEED)
    if split not in splits:
        raise ValueError(
            f"datasets has no split {split!r}, but {', '.join(splits)}. Give test_split_size to have test rows, or "
            "eval_strategy: 'no'."
        )
    return splits[split]


def reward_functions(script: DataArguments, problems: list[str]) -> list[RewardFunction]:
    """Return the rewards that are asked for, or the benchmark's own; add what is wrong to `problems`.

    A reward model comes first, as in `trl grpo`.
    """
    rewards: list[RewardFunction] = []
    if script.reward_model_name_or_path:
        rewards.append(script.reward_model_name_or_path)
        problems += _folder_problems("reward_model_name_or_path", script.reward_model_name_or_path)
    for path in script.reward_funcs or ():
        rewards += collect_error(problems, import_reward, path)
    if script.reward_funcs is None and script.benchmark in BENCHMARK_REWARDS:
        rewards.append(BENCHMARK_REWARDS[script.benchmark])
    return rewards


def import_reward(path: str) -> RewardFunction:
    """Return the function of a short name, or at a dotted path; the current folder is searched too.

    Raises:
        ValueError: there is none.
    """
    if not isinstance(path, str):
        raise ValueError(f"reward_funcs: {path!r} must be text, a name or a dotted path.")
    if path in REWARDS_BY_NAME:
        return REWARDS_BY_NAME[path]
    module_name, _, name = path.rpartition(".")
    if not module_name:
        near = get_close_matches(path, REWARDS_BY_NAME, n=1, cutoff=0.5)
        guess = f" Did you mean {near[0]}?" if near else ""
        raise ValueError(
            f"reward_funcs: {path!r} is neither one of {', '.join(REWARDS_BY_NAME)} nor a dotted path such as "
            f"'my_module.my_reward'.{guess}"
        )
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        function: object = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"reward_funcs: {path!r} cannot be imported: {error}.") from error
    except (Exception, SystemExit) as error:  # whatever a module does while it is imported
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"reward_funcs: {path!r} cannot be imported: {reason}.") from error
    if not callable(function):
        raise ValueError(f"reward_funcs: {path!r} is a {type(function).__name__}, not a function.")
    return function


def data_problems(script: DataArguments) -> Iterator[str]:
    """Yield what is wrong with the choice of rows, before any is read."""
    names = ", ".join(BENCHMARK_REWARDS)
    if script.benchmark is None and script.dataset_name is None and not script.datasets:
        yield f"There is no data: give benchmark (one of {names}), dataset_name or datasets."
    for one in script.datasets:
        if not isinstance(one, DATA_SET):
            options = ", ".join(DATA_SET_OPTIONS[1:])
            yield f"datasets has {one!r}; each data set is a mapping with path, and may have {options}."
    if script.datasets and script.dataset_name is not None and os.environ.get("RANK", "0") == "0":
        logger.warning("dataset_name=%r is not read: datasets comes before it.", script.dataset_name)
    shares = [
        one.fraction for one in script.datasets if isinstance(one, DATA_SET) and one.fraction is not None
    ]
    if not all(isinstance(share, int | float) and share >= 0 for share in shares) or (
        shares and not any(shares)
    ):
        yield f"datasets has fractions {shares}; each must be a number of at least 0, and one of them above 0."
    if script.datasets and script.benchmark is not None:
        yield f"datasets has other rows than benchmark={script.benchmark!r}. Leave one of them out."
    streams = [name for name in ("dataset_streaming", "streaming") if getattr(script, name)]
    if streams and script.benchmark is not None:
        yield f"{streams[0]} belongs to dataset_name and datasets; benchmark={script.benchmark!r} is loaded whole."
    if script.streaming and script.test_split_size is not None:
        yield f"test_split_size={script.test_split_size} needs rows that are loaded whole: leave streaming out."
    if script.benchmark is not None and script.benchmark not in BENCHMARK_REWARDS:
        yield f"benchmark={script.benchmark!r} is not one of {names}. For other data use dataset_name."
    if script.data_dir is not None and script.benchmark is None:
        yield f"data_dir={script.data_dir!r} belongs to benchmark. Give other data's path as dataset_name."
    if script.data_dir is not None and script.benchmark in (GSM8K, LIVECODEBENCH):
        yield (
            f"data_dir={script.data_dir!r} belongs to the paper's benchmarks. Leave it out for {script.benchmark}, or "
            "give a local copy of the data set as dataset_name."
        )
    if (script.dataset_name or script.datasets) and script.benchmark is None and not _has_rewards(script):
        given = "datasets" if script.datasets else f"dataset_name={script.dataset_name!r}"
        yield f"{given} has no rewards of its own: give reward_funcs."
    for name in ("max_train_rows", "max_eval_rows"):
        value = getattr(script, name, None)
        if value is not None and (not isinstance(value, int) or value < 1):
            yield f"{name}={value!r} must be a whole number of at least 1, or left out."


def model_problems(model_config: ModelConfig) -> Iterator[str]:
    """Yield what is wrong with the model's name."""
    model = model_config.model_name_or_path
    if not model:
        yield "model_name_or_path is missing: give a hub id or a local folder."
    else:
        yield from _folder_problems("model_name_or_path", model)


def _has_rewards(script: DataArguments) -> bool:
    return bool(script.reward_funcs or script.reward_model_name_or_path)


def _folder_problems(option: str, model: str) -> Iterator[str]:
    is_path = model.startswith((".", "~")) or Path(model).is_absolute()
    if is_path and not Path(model).is_dir():
        yield f"{option}={model!r} is not a folder."


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


def stream_problems(script: DataArguments, config: SRPOConfig) -> Iterator[str]:
    """Yield what training on rows that are streamed needs."""
    is_stream = script.streaming if script.datasets else script.dataset_streaming
    if is_stream and config.max_steps <= 0:
        name = "streaming" if script.datasets else "dataset_streaming"
        yield f"{name} gives rows without their number: give max_steps, after which training ends."


def reward_problems(config: SRPOConfig, rewards: Sequence[str]) -> Iterator[str]:
    """Yield what is wrong with options that depend on the reward functions or on other packages."""
    if rewards and config.reward_weights is not None and len(config.reward_weights) != len(rewards):
        yield f"reward_weights={config.reward_weights} must hold one weight for each of {', '.join(rewards)}."
    if rewards and config.correctness_reward not in (None, *rewards):
        yield f"correctness_reward={config.correctness_reward!r} is not one of {', '.join(rewards)}."
    if config.use_vllm and importlib.util.find_spec("vllm") is None:
        yield "use_vllm is on, but vllm is not installed: pip install 'srpo-trl[vllm]', or switch it off."


def reward_name(reward: RewardFunction) -> str:
    """Return the name that messages, and TRL's logs, call a reward by."""
    if isinstance(reward, str):
        return reward.split("/")[-1]
    return getattr(reward, "__name__", type(reward).__name__)
