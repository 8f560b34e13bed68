"""What can be wrong between datasets, tokenizer, model and reward functions: each problem with what to do.

Found when the trainer is made, so that no run stops at its first batch, or at its first evaluation, for them.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from datasets import Dataset
from torch import nn
from transformers import PretrainedConfig
from trl import is_conversational

from srpo_trl.config import SRPOConfig
from srpo_trl.trl_seams import get_callable_name

# What TRL passes to a reward function beside the dataset's columns, and the columns that it does not pass.
REWARD_KEYWORDS = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")
_COLUMNS_NOT_PASSED = ("prompt", "completion", "completion_ids")
_COLUMNS_ALWAYS_KEPT = ("prompt", "image", "images")  # by remove_unused_columns


def dataset_problems(
    args: SRPOConfig,
    train_dataset: Any,
    eval_dataset: Any,
    reward_funcs: Sequence[Any],
    *,
    has_environment: bool,
    has_rollout_func: bool,
) -> Iterator[str]:
    """Yield what is wrong with the columns of the datasets.

    Args:
        args: the configuration.
        train_dataset, eval_dataset: as given to the trainer.
        reward_funcs: the functions, models and names of models that score.
        has_environment: an environment can bring prompts of its own.
        has_rollout_func: it can add columns, which only its output shows.
    """
    datasets = {"train_dataset": train_dataset}
    datasets |= (
        {f"eval_dataset[{key!r}]": rows for key, rows in eval_dataset.items()}
        if isinstance(eval_dataset, Mapping)
        else {"eval_dataset": eval_dataset}
    )
    for name, dataset in datasets.items():
        columns = getattr(dataset, "column_names", None)  # a stream may not know them
        if not columns:
            continue
        shown = ", ".join(map(repr, columns))
        if "prompt" not in columns and not has_environment:
            yield f"{name} has no column 'prompt'; its columns are {shown}. Rename the one that holds the prompts."
        is_routed = name == "train_dataset"  # evaluation is not
        if is_routed and args.reference_column is not None and args.reference_column not in columns:
            yield f"reference_column={args.reference_column!r} is not a column of {name}, which has {shown}."
        if not has_rollout_func:
            kept = _COLUMNS_ALWAYS_KEPT if args.remove_unused_columns else columns
            passed = [column for column in columns if column in kept and column not in _COLUMNS_NOT_PASSED]
            yield from _call_problems(name, passed, reward_funcs, has_environment)


def _call_problems(
    dataset_name: str, columns: Sequence[str], reward_funcs: Sequence[Any], has_environment: bool
) -> Iterator[str]:
    """Yield the reward functions that cannot be called with TRL's keywords and these columns."""
    keywords = [*REWARD_KEYWORDS, *(["environments"] if has_environment else [])]
    for function in reward_funcs:
        if isinstance(function, str | nn.Module):
            continue
        try:
            inspect.signature(function).bind(**dict.fromkeys([*keywords, *columns]))
        except TypeError as error:
            yield (
                f"The reward function {get_callable_name(function)!r} cannot be called on {dataset_name}: {error}. It "
                f"gets the keywords {', '.join(keywords)} and the columns {', '.join(columns) or '(none)'}. Give the "
                "dataset the columns it needs, keep them with remove_unused_columns=False, and let it take **kwargs."
            )


def size_problems(args: SRPOConfig, num_rows: int) -> Iterator[str]:
    """Yield whether the training rows do not fill a single rollout batch: TRL would end without a step."""
    assert args.generation_batch_size is not None  # set by GRPOConfig
    assert args.num_generations is not None
    num_prompts = args.generation_batch_size // args.num_generations
    if num_rows < num_prompts:
        yield (
            f"train_dataset has {num_rows} rows, fewer than the {num_prompts} prompts of one rollout batch "
            f"(generation_batch_size={args.generation_batch_size} / num_generations={args.num_generations}), and TRL "
            "drops a batch that is not full. Give more rows, or lower gradient_accumulation_steps or "
            "per_device_train_batch_size."
        )


def chat_template_problems(dataset: Any, processing_class: Any, chat_template: str | None) -> Iterator[str]:
    """Yield whether the prompts are conversations that the tokenizer cannot render.

    Args:
        dataset: the training rows; of a stream nothing is known before training.
        processing_class: tokenizer or processor.
        chat_template: that TRL uses in place of the tokenizer's; None: the tokenizer's.
    """
    if chat_template is not None or getattr(processing_class, "chat_template", "unknown") is not None:
        return
    prompt = dataset[0].get("prompt") if isinstance(dataset, Dataset) and len(dataset) else None
    if prompt and is_conversational({"prompt": prompt}):
        yield (
            "The prompts are conversations, but the tokenizer has no chat template. Set tokenizer.chat_template, take "
            "the tokenizer of an instruction-tuned model, or give prompts of plain text."
        )


def prompt_room(config: PretrainedConfig, max_completion_length: int | None) -> int | None:
    """Return how many tokens of a prompt the model's context has room for before a completion of full length.

    Rotary embeddings that are stretched by a factor count. None: the model's positions are not bounded.
    """
    text_config = config.get_text_config()
    longest = getattr(text_config, "max_position_embeddings", None)
    if longest is None:
        return None
    rope = getattr(text_config, "rope_parameters", None) or {}
    of_layers = [kind for kind in rope.values() if isinstance(kind, dict)] or [rope]
    stretched = [
        int(kind["factor"] * kind.get("original_max_position_embeddings", longest))
        for kind in of_layers
        if kind.get("factor")
    ]
    return max(longest, *stretched, 0) - (max_completion_length or 0)


def context_problems(config: PretrainedConfig, max_completion_length: int | None) -> Iterator[str]:
    """Yield whether the model's context leaves no room for a prompt before a completion of full length."""
    room = prompt_room(config, max_completion_length)
    if room is not None and room < 1:
        yield (
            f"max_completion_length={max_completion_length} leaves no room for a prompt in the model's context of "
            f"{room + (max_completion_length or 0)} tokens. Lower it, or take a model with a longer context."
        )
