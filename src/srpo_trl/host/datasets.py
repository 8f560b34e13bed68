"""What can be wrong between datasets, tokenizer, model and reward functions: each problem with what to do.

Found when the trainer is made, so that no run stops at its first batch, or at its first evaluation, for them.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset, IterableDataset
from torch import nn
from transformers import PretrainedConfig
from trl import is_conversational

from srpo_trl.host.prompt_rows import PromptRows
from srpo_trl.host.rewards.columns import COLUMNS_TAKEN, REWARD_KEYWORDS
from srpo_trl.host.rows import (
    NoRowsError,
    first_row,
    foreign_prompt,
    image_part_rows,
    image_rows,
    is_as_stored,
    is_of_tables,
    prompt_shapes,
    stored_values,
)
from srpo_trl.seams.messages import ROW_ERRORS
from srpo_trl.seams.trl import get_callable_name

_COLUMNS_NOT_PASSED = ("prompt", "completion", "completion_ids")  # by TRL to a reward function

# So many shapes of prompts, and so many of the longest ones, are tokenized when the trainer is made.
_MAX_SHAPES, _MAX_LONGEST = 256, 256


def dataset_problems(
    train_dataset: Any,
    eval_dataset: Any,
    reward_funcs: Sequence[Any],
    *,
    drops_unused: bool,
    read_columns: Mapping[str, str],
    is_evaluated: bool,
    has_environment: bool,
    has_rollout_func: bool,
) -> Iterator[str]:
    """Yield what is wrong with the columns of the datasets.

    Args:
        train_dataset, eval_dataset: as given to the trainer.
        reward_funcs: the functions, models and names of models that score.
        drops_unused: whether `remove_unused_columns` is on.
        read_columns: of the training rows, each with what reads it; evaluation reads none.
        is_evaluated: whether samples of `eval_dataset` are to be scored during training.
        has_environment: an environment can bring prompts of its own.
        has_rollout_func: it can add columns, which only its output shows.
    """
    if is_evaluated:
        empty = [name for name, rows in named_datasets(None, eval_dataset) if _is_empty(rows)]
        empty += ["eval_dataset"] if isinstance(eval_dataset, Mapping) and not eval_dataset else []
        yield from (f"{name} has no rows: there is nothing to evaluate on." for name in empty)
    for name, dataset in named_datasets(train_dataset, eval_dataset):
        row, problem = _first_row_or_problem(name, dataset, drops_unused=drops_unused)
        if problem:
            yield problem
            continue
        columns = list(row)
        shown = (
            ", ".join(map(repr, columns))
            or "none (remove_unused_columns=True keeps prompt, image and images)"
        )
        if "prompt" not in columns and not has_environment:
            yield f"{name} has no column 'prompt'; its columns are {shown}. Rename the one that holds the prompts."
        held = foreign_prompt(row.get("prompt"))
        if held is not None:
            yield (
                f"{name}'s prompts are given as {held}; give texts, or lists of messages with 'role' and 'content'. A "
                "dataset in another format than Python's becomes one with dataset.with_format(None)."
            )
        for column, reader in read_columns.items() if name == "train_dataset" else ():
            if column not in columns:
                yield f"{reader} is not a column of {name}, which has {shown}."
        if not has_rollout_func:
            passed = [column for column in columns if column not in _COLUMNS_NOT_PASSED]
            yield from _call_problems(name, passed, reward_funcs, has_environment)


def _first_row_or_problem(name: str, dataset: Any, *, drops_unused: bool) -> tuple[dict[str, Any], str]:
    """Return the first row, of a dataset without rows its columns, and why there is none to read, if so."""
    tables = (
        f"{name} gives tables in place of rows; take them out of their format with dataset.with_format(None)."
    )
    if is_of_tables(dataset):
        return {}, tables
    try:
        row = first_row(dataset, drops_unused=drops_unused)
    except NoRowsError:
        return {}, tables
    except KeyError as error:
        return {}, (
            f"The first row of {name} cannot be read: {error}. With remove_unused_columns=True a transform gets "
            "the columns prompt, image and images alone; set it to False."
        )
    if row is None and isinstance(dataset, IterableDataset):
        return {}, f"{name} is a stream that gives no row. See what filters them all, or where its files are."
    if row is None:
        row = dict.fromkeys(getattr(dataset, "column_names", None) or ["prompt"])
    return row, ""


def named_datasets(train_dataset: Any, eval_dataset: Any) -> Iterator[tuple[str, Any]]:
    """Yield the datasets that rows are read from, each with what messages call it."""
    named = [("train_dataset", train_dataset)]
    if isinstance(eval_dataset, Mapping):
        named += [(f"eval_dataset[{key!r}]", rows) for key, rows in eval_dataset.items()]
    else:
        named.append(("eval_dataset", eval_dataset))
    yield from ((name, rows) for name, rows in named if isinstance(rows, Dataset | IterableDataset))


def _is_empty(dataset: Any) -> bool:
    return isinstance(dataset, Dataset) and len(dataset) == 0


def _call_problems(
    dataset_name: str, columns: Sequence[str], reward_funcs: Sequence[Any], has_environment: bool
) -> Iterator[str]:
    """Yield the reward functions that cannot be called with TRL's keywords and these columns."""
    taken = [column for column in columns if column in COLUMNS_TAKEN]
    if taken and any(not isinstance(function, str | nn.Module) for function in reward_funcs):
        yield (
            f"{dataset_name} has the column(s) {', '.join(taken)}, a name under which TRL passes something else to "
            "reward functions. Rename or remove them."
        )
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


def check_size(num_rows: int, generation_batch_size: int, num_generations: int) -> None:
    """Raise ValueError where the training rows do not fill a rollout batch: TRL would end without a step."""
    num_prompts = generation_batch_size // num_generations
    if num_rows < num_prompts:
        raise ValueError(
            f"train_dataset has {num_rows} rows, fewer than the {num_prompts} prompts of one rollout batch "
            f"(generation_batch_size={generation_batch_size} / num_generations={num_generations}), and TRL "
            "drops a batch that is not full. Give more rows, or lower gradient_accumulation_steps or "
            "per_device_train_batch_size."
        )


def check_rows(
    train_dataset: Any,
    eval_dataset: Any,
    first: Mapping[str, Any],
    rows: PromptRows,
    *,
    processing_class: Any,
    chat_template: str | None,
    environments: Sequence[str | None] | None,
) -> None:
    """Refuse rows that cannot be sampled for, as far as tokenizer and model are needed to see it.

    Args:
        train_dataset, eval_dataset: as given to the trainer.
        first: the first row of `train_dataset`; empty where there is none.
        rows: what batches of them are made to fit.
        processing_class: tokenizer or processor.
        chat_template: that TRL uses in place of the tokenizer's; None: the tokenizer's.
        environments: names of the environments, which may write the prompts; None: there are none.
    Raises:
        ValueError: rows that TRL cannot tokenize or whose images the model does not read; conversations without a chat
            template; names of environments that there are not.
    """
    problems: list[str] = []
    for name, dataset in named_datasets(train_dataset, eval_dataset):
        is_train = name == "train_dataset"
        if not rows.reads_images:
            problems += image_problems(name, dataset)
        if environments is not None:
            names = [key for key in environments if key is not None]
            problems += environment_problems(name, dataset, names) if names else []  # each row says which
            continue
        row = first if is_train else first_row(dataset, drops_unused=False) or {}
        without_template = list(chat_template_problems(row.get("prompt"), processing_class, chat_template))
        problems += without_template
        if rows.is_sampled and not without_template:
            room = rows.max_length if is_train else None
            problems += row_problems(name, dataset, row, rows.tokens_of, room)
    if problems:
        raise ValueError("\n".join(problems))


def chat_template_problems(prompt: Any, processing_class: Any, chat_template: str | None) -> Iterator[str]:
    """Yield whether a prompt is a conversation that the tokenizer cannot render.

    Args:
        prompt: of the first training row.
        processing_class: tokenizer or processor.
        chat_template: that TRL uses in place of the tokenizer's; None: the tokenizer's.
    """
    if chat_template is not None or getattr(processing_class, "chat_template", "unknown") is not None:
        return
    if prompt and is_conversational({"prompt": prompt}):
        yield (
            "The prompts are conversations, but the tokenizer has no chat template. Set tokenizer.chat_template, take "
            "the tokenizer of an instruction-tuned model, or give prompts of plain text."
        )


def row_problems(
    name: str,
    dataset: Any,
    first: Mapping[str, Any],
    tokens_of: Callable[[dict[str, Any]], Sequence[int]],
    room: int | None,
) -> Iterator[str]:
    """Yield which rows cannot be sampled for, as far as one row of each kind and the longest ones show it.

    Args:
        name: of the dataset, for messages.
        dataset: the rows; of a stream, and of one with a transform, only the first is looked at.
        first: that row; empty where there is none.
        tokens_of: returns a row's prompt as TRL tokenizes it, or raises one of `ROW_ERRORS`.
        room: most tokens that a prompt may have; None: any number.
    """
    if not is_as_stored(dataset) or "prompt" not in dataset.column_names:
        if first.get("prompt"):
            yield from _tokenization_problems(name, {0: dict(first)}, {0: 1}, tokens_of)
        return
    shapes = prompt_shapes(dataset)
    counts = {row: shapes.count[shape] for shape, row in shapes.first.items()}
    looked_at = sorted(counts)[:_MAX_SHAPES]
    plain = dataset.with_format(None)
    problems = list(_tokenization_problems(name, {i: plain[i] for i in looked_at}, counts, tokens_of))
    yield from problems
    if room is None or problems:
        return
    # A token has at least about a byte, a chat template some of its own: others than these cannot be too long.
    candidates = np.flatnonzero(2 * shapes.num_bytes + 512 > room)
    longest = candidates[np.argsort(-shapes.num_bytes[candidates], kind="stable")][:_MAX_LONGEST]
    lengths = {int(i): _num_tokens(plain[int(i)], tokens_of) for i in longest}
    too_long = sorted(i for i, length in lengths.items() if length > room)
    if too_long:
        yield (
            f"A prompt of {lengths[too_long[0]]} tokens (row {too_long[0]} of {name}, the first of {len(too_long)} "
            "that are too long) and a completion of max_completion_length do not fit into the model's context. Drop "
            f"prompts of more than {room} tokens from the dataset, or lower max_completion_length."
        )


def _num_tokens(row: dict[str, Any], tokens_of: Callable[[dict[str, Any]], Sequence[int]]) -> int:
    try:
        return len(tokens_of(row))
    except ROW_ERRORS:  # a row that is looked at for its length alone: it is left out when it comes
        return 0


def _tokenization_problems(
    name: str,
    rows: Mapping[int, dict[str, Any]],
    counts: Mapping[int, int],
    tokens_of: Callable[[dict[str, Any]], Sequence[int]],
) -> Iterator[str]:
    """Yield which of these rows, and so many like each, have no tokens."""
    for i, row in rows.items():
        try:
            reason = "" if len(tokens_of(row)) else "it has no tokens"
        except ROW_ERRORS as error:
            reason = f"{type(error).__name__}: {error}"
        if reason:
            yield (
                f"{name} has {counts[i]} row(s) whose prompt cannot be sampled for, row {i} first ({reason}): "
                f"{str(row['prompt'])[:200]}. Leave them out, or change the chat template."
            )


def image_problems(name: str, dataset: Any) -> Iterator[str]:
    """Yield the columns in which a dataset has images for a model that reads text alone."""
    if is_as_stored(dataset) and "prompt" in dataset.column_names:
        num_rows, first = image_part_rows(dataset)
        if num_rows:
            yield (
                f"{name} has images in the prompts of {num_rows} row(s), row {first} first, which the model does not "
                "read. Leave these rows out, or train a vision-language model."
            )
    for column in ("image", "images") if is_as_stored(dataset) else ():
        if column not in dataset.column_names:
            continue
        num_rows, first = image_rows(dataset, column)
        if num_rows:
            yield (
                f"{name} has something in its column {column!r} in {num_rows} row(s), row {first} first, and TRL takes "
                "it for images, which the model does not read. Remove or rename the column, leave these rows out, or "
                "train a vision-language model."
            )


def environment_problems(name: str, dataset: Any, environments: Sequence[str]) -> Iterator[str]:
    """Yield the names in the column `environment` that are none of the environments."""
    if not is_as_stored(dataset) or "environment" not in dataset.column_names:
        return
    unknown = sorted({str(value) for value in stored_values(dataset, "environment")} - set(environments))
    if unknown:
        yield (
            f"{name} names the environment(s) {', '.join(map(repr, unknown))}; environment_factory has "
            f"{', '.join(map(repr, environments))}."
        )


def max_prompt_length(config: PretrainedConfig, max_completion_length: int | None) -> int | None:
    """Return how many tokens of a prompt the model's context has room for before a completion of full length.

    Rotary embeddings that are stretched by a factor count. None: the model's positions are not bounded.
    """
    text_config = config.get_text_config()
    longest: int | None = getattr(text_config, "max_position_embeddings", None)
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
    room = max_prompt_length(config, max_completion_length)
    if room is not None and room < 1:
        yield (
            f"max_completion_length={max_completion_length} leaves no room for a prompt in the model's context of "
            f"{room + (max_completion_length or 0)} tokens. Lower it, or take a model with a longer context."
        )
