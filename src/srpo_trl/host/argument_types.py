"""What can be wrong with each of the trainer's arguments alone, found before a model is loaded.

TRL finds some of it after it has loaded the model, and the rest where the argument is first used.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from datasets import Dataset, IterableDataset, LargeList, List, Value
from peft import PeftConfig
from pyarrow import compute
from torch import nn
from transformers import PreTrainedTokenizerBase, ProcessorMixin, TrainerCallback

from srpo_trl.host.rows import is_as_stored

DATASETS = (Dataset, IterableDataset)


def check_each_argument(arguments: Mapping[str, Any]) -> None:
    """Refuse arguments of the trainer that are not what they must be.

    Args:
        arguments: of `SRPOTrainer`, by name; `args` aside.
    Raises:
        ValueError: every problem found, in one message.
    """
    problems = [problem for name, find in PROBLEMS.items() for problem in find(name, arguments[name])]
    if problems:
        raise ValueError(
            f"SRPOTrainer has {len(problems)} wrong argument(s):\n" + "\n".join(f"- {p}" for p in problems)
        )


def _model_problems(name: str, model: Any) -> Iterator[str]:
    if not isinstance(model, str | nn.Module):
        yield f"{name} is of type {type(model).__name__}; give a hub id, a local folder, or a transformers model."


def _reward_problems(name: str, reward_funcs: Any) -> Iterator[str]:
    functions = reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]
    for function in functions if reward_funcs is not None else ():
        if not isinstance(function, str) and not callable(function):
            held = type(function).__name__
            yield f"{name} holds something of type {held}; give a function, a reward model, its name, or a list."


def _train_dataset_problems(name: str, dataset: Any) -> Iterator[str]:
    if dataset is not None and not isinstance(dataset, DATASETS):
        of_splits = ", one of its splits" if isinstance(dataset, Mapping) else ""
        yield f"{name} is of type {type(dataset).__name__}; give a datasets.Dataset or IterableDataset{of_splits}."
    yield from _prompt_problems(name, dataset)


def _eval_dataset_problems(name: str, dataset: Any) -> Iterator[str]:
    by_name = dict(dataset) if isinstance(dataset, Mapping) else {None: dataset}
    for key, rows in by_name.items():
        shown = name if key is None else f"{name}[{key!r}]"
        if rows is not None and not isinstance(rows, DATASETS):
            yield f"{shown} is of type {type(rows).__name__}; give a datasets.Dataset, or a dictionary of them."
        yield from _prompt_problems(shown, rows)


def _prompt_problems(name: str, dataset: Any) -> Iterator[str]:
    """Yield whether stored prompts are neither text nor conversation, or empty; a stream's rows are not looked at."""
    if not isinstance(dataset, DATASETS) or "prompt" not in (dataset.features or ()):
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


def _callable_problems(name: str, function: Any) -> Iterator[str]:
    if function is not None and not callable(function):
        yield f"{name} is of type {type(function).__name__}; give a function."


def _environment_problems(name: str, factory: Any) -> Iterator[str]:
    factories = factory if isinstance(factory, dict) else {None: factory}
    if factory is not None and not (factories and all(map(callable, factories.values()))):
        yield f"{name}={factory!r} must be a function, or a dictionary of at least one."


def _list_problems(name: str, values: Any, is_right: Any, required: str) -> Iterator[str]:
    if values is not None and not (isinstance(values, list) and all(map(is_right, values))):
        yield f"{name}={values!r} must be a list of {required}."


def _tools_problems(name: str, tools: Any) -> Iterator[str]:
    yield from _list_problems(name, tools, callable, "functions")


def _callbacks_problems(name: str, callbacks: Any) -> Iterator[str]:
    def is_callback(value: Any) -> bool:
        kind = value if isinstance(value, type) else type(value)
        return issubclass(kind, TrainerCallback)

    yield from _list_problems(name, callbacks, is_callback, "transformers.TrainerCallback objects")


def _peft_problems(name: str, peft_config: Any) -> Iterator[str]:
    if peft_config is not None and not isinstance(peft_config, PeftConfig):
        yield f"{name} is of type {type(peft_config).__name__}; give a peft.PeftConfig, peft.LoraConfig for one."


def _processing_problems(name: str, processing_class: Any) -> Iterator[str]:
    if processing_class is not None and not isinstance(
        processing_class, PreTrainedTokenizerBase | ProcessorMixin
    ):
        yield f"{name} is of type {type(processing_class).__name__}; give a tokenizer or a processor."


PROBLEMS = {
    "model": _model_problems,
    "reward_funcs": _reward_problems,
    "train_dataset": _train_dataset_problems,
    "eval_dataset": _eval_dataset_problems,
    "processing_class": _processing_problems,
    "callbacks": _callbacks_problems,
    "peft_config": _peft_problems,
    "tools": _tools_problems,
    "rollout_func": _callable_problems,
    "environment_factory": _environment_problems,
}
