"""What can be wrong with each of the trainer's arguments alone, found before a model is loaded.

TRL finds some of it after it has loaded the model, and the rest where the argument is first used.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from datasets import Dataset, IterableDataset, LargeList, List, Value
from peft import PeftConfig
from pyarrow import compute
from torch import nn
from transformers import PreTrainedTokenizerBase, ProcessorMixin, TrainerCallback

from srpo_trl.host.rows import is_as_stored

# By argument, what it must be an instance of, and how a message says so.
_KINDS: dict[str, tuple[Any, str]] = {
    "model": (str | nn.Module, "a hub id, a local folder, or a transformers model"),
    "train_dataset": (Dataset | IterableDataset | None, "a datasets.Dataset or IterableDataset"),
    "processing_class": (PreTrainedTokenizerBase | ProcessorMixin | None, "a tokenizer or a processor"),
    "peft_config": (PeftConfig | None, "a peft.PeftConfig, peft.LoraConfig for one"),
    "rollout_func": (Callable | None, "a function"),
}


def check_each_argument(arguments: Mapping[str, Any]) -> None:
    """Refuse arguments of the trainer that are not what they must be.

    Args:
        arguments: of `GRPOTrainer`, by name.
    Raises:
        ValueError: every problem found, in one message.
    """
    problems = list(_problems(arguments))
    if problems:
        raise ValueError(
            f"SRPOTrainer has {len(problems)} wrong argument(s):\n" + "\n".join(f"- {p}" for p in problems)
        )


def _problems(arguments: Mapping[str, Any]) -> Iterator[str]:
    for name, (kind, required) in _KINDS.items():
        value = arguments[name]
        if not isinstance(value, kind):
            of_splits = (
                ", one of its splits" if name == "train_dataset" and isinstance(value, Mapping) else ""
            )
            yield f"{name} is of type {type(value).__name__}; give {required}{of_splits}."
    yield from _reward_problems(arguments["reward_funcs"])
    yield from _prompt_problems("train_dataset", arguments["train_dataset"])
    yield from _eval_dataset_problems(arguments["eval_dataset"])
    factory = arguments["environment_factory"]
    factories = factory if isinstance(factory, dict) else {None: factory}
    if factory is not None and not (factories and all(map(callable, factories.values()))):
        yield f"environment_factory={factory!r} must be a function, or a dictionary of at least one."
    for name, is_right, required in (
        ("tools", callable, "functions"),
        ("callbacks", _is_callback, "transformers.TrainerCallback objects"),
    ):
        values = arguments[name]
        if values is not None and not (isinstance(values, list) and all(map(is_right, values))):
            yield f"{name}={values!r} must be a list of {required}."


def _is_callback(value: Any) -> bool:
    return issubclass(value if isinstance(value, type) else type(value), TrainerCallback)


def _reward_problems(reward_funcs: Any) -> Iterator[str]:
    functions = reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]
    for function in functions if reward_funcs is not None else ():
        if not isinstance(function, str) and not callable(function):
            held = type(function).__name__
            yield f"reward_funcs holds something of type {held}; give a function, a reward model, its name, or a list."


def _eval_dataset_problems(dataset: Any) -> Iterator[str]:
    by_name = dict(dataset) if isinstance(dataset, Mapping) else {None: dataset}
    for key, rows in by_name.items():
        shown = "eval_dataset" if key is None else f"eval_dataset[{key!r}]"
        if not isinstance(rows, Dataset | IterableDataset | None):
            yield f"{shown} is of type {type(rows).__name__}; give a datasets.Dataset, or a dictionary of them."
        yield from _prompt_problems(shown, rows)


def _prompt_problems(name: str, dataset: Any) -> Iterator[str]:
    """Yield whether stored prompts are neither text nor conversation, or empty; a stream's rows are not looked at."""
    if not isinstance(dataset, Dataset | IterableDataset) or "prompt" not in (dataset.features or ()):
        return
    if isinstance(dataset, Dataset) and not is_as_stored(dataset):
        return
    kind = dataset.features["prompt"]
    is_list = isinstance(kind, List | LargeList)
    value = kind.feature if is_list else kind
    if isinstance(value, Value) and not (value is kind and "string" in kind.dtype):
        yield f"{name}'s prompts are {kind}; give texts, or lists of messages with 'role' and 'content'."
    elif isinstance(dataset, Dataset) and len(dataset):
        prompts = dataset.select_columns("prompt").with_format("arrow")[:]["prompt"]
        is_missing = prompts.is_null()
        if is_list:
            is_missing = compute.or_kleene(is_missing, compute.equal(compute.list_value_length(prompts), 0))
        missing = compute.indices_nonzero(is_missing)
        if len(missing):
            yield f"{name} has no prompt in {len(missing)} of its rows, row {missing[0]} first. Leave them out."
