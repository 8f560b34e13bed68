"""What the rows of a dataset hold, looked at when the trainer is made.

A row is what indexing gives: a transform or a format may hold other columns than the table that is stored. Of a stream,
and of rows that a transform makes, only the first is looked at.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, IterableDataset
from pyarrow import compute

COLUMNS_ALWAYS_KEPT = ("prompt", "image", "images")  # by remove_unused_columns

_BATCH = 2_000  # rows that are looked at together; larger batches of a shuffled dataset are slower
_OTHER = "other"  # the shape of prompts that are neither texts nor messages with a role


class NoRowsError(TypeError):
    """A dataset gives something else than rows."""


def is_as_stored(dataset: Any) -> bool:
    """Return whether a dataset's rows hold the stored values, in whatever format; a transform's do not."""
    return isinstance(dataset, Dataset) and dataset.format["type"] != "custom"


def is_of_tables(dataset: Any) -> bool:
    """Return whether indexing gives tables of another package in place of rows."""
    kind = dataset.format["type"] if isinstance(dataset, Dataset) else None
    return kind in ("arrow", "polars")


def first_row(dataset: Any, *, drops_unused: bool) -> dict[str, Any] | None:
    """Return the first row as the trainer will read it; None where there is none to read.

    Args:
        dataset: a `datasets.Dataset` or `IterableDataset`; of a stream one row is read.
        drops_unused: whether `remove_unused_columns` is on.
    Raises:
        NoRowsError: a stream's format gives tables in place of rows.
        KeyError: a transform misses a column that `remove_unused_columns` has dropped.
    """
    if isinstance(dataset, IterableDataset):
        row = next(iter(dataset.take(1)), None)
        if row is not None and not isinstance(row, Mapping):
            raise NoRowsError(f"a row is of type {type(row).__name__}")
        if row is None or not drops_unused:
            return None if row is None else dict(row)
        return {name: value for name, value in row.items() if name in COLUMNS_ALWAYS_KEPT}
    if not len(dataset):
        return None
    if drops_unused:
        unused = [name for name in dataset.column_names if name not in COLUMNS_ALWAYS_KEPT]
        if len(unused) == len(dataset.column_names):
            return {}
        dataset = dataset.remove_columns(unused)
    return dict(dataset.__getitems__([0])[0])  # as a data loader reads it


def reference_text(row: Mapping[str, Any], column: str | None) -> str:
    """Return what a row holds in the column, as text; empty where it holds nothing (None, NaN, no such column).

    A number is text, 0 too; an array or a tensor, as a format may give one, is the Python value that it holds.
    """
    value: Any = row.get(column) if column is not None else None
    if hasattr(value, "tolist"):
        value = value.tolist()
    return "" if value is None or value != value else str(value)


def foreign_prompt(prompt: Any) -> str | None:
    """Return what a prompt is that is neither text nor messages; None where it is, or where there is none."""
    if prompt is None or isinstance(prompt, str):
        return None
    if isinstance(prompt, list) and all(
        isinstance(message, dict) and "role" in message for message in prompt
    ):
        return None
    if not isinstance(prompt, list):
        return type(prompt).__name__
    kinds = dict.fromkeys(type(message).__name__ for message in prompt)
    without_role = " without 'role'" if list(kinds) == ["dict"] else ""
    return f"list of {', '.join(kinds)}{without_role}"


@dataclass
class PromptShapes:
    """What tells prompts apart that a chat template or a tokenizer may take or not.

    Attributes:
        first: by shape, the first row that has it: the roles of the messages and which of them have no content; of a
            text that is blank, the text.
        count: by shape, how many rows have it.
        num_bytes: of each row's text.
    """

    first: dict[str, int] = field(default_factory=dict)
    count: dict[str, int] = field(default_factory=dict)
    num_bytes: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))


def prompt_shapes(dataset: Dataset) -> PromptShapes:
    """Return the shapes of the stored prompts, batch by batch; a million rows take seconds."""
    found, lengths, start = PromptShapes(), [], 0
    for table in dataset.select_columns("prompt").with_format("arrow").iter(batch_size=_BATCH):
        prompts = table["prompt"]
        prompts = prompts.combine_chunks() if isinstance(prompts, pa.ChunkedArray) else prompts
        shapes, num_bytes = _shapes_and_bytes(prompts)
        encoded = shapes.dictionary_encode()
        places, firsts, counts = np.unique(
            encoded.indices.to_numpy(zero_copy_only=False), return_index=True, return_counts=True
        )
        for place, first, count in zip(places, firsts, counts, strict=True):
            shape = encoded.dictionary[int(place)].as_py()
            found.first.setdefault(shape, start + int(first))
            found.count[shape] = found.count.get(shape, 0) + int(count)
        lengths.append(num_bytes)
        start += len(prompts)
    found.num_bytes = np.concatenate([found.num_bytes, *lengths])
    return found


def _shapes_and_bytes(prompts: pa.Array) -> tuple[pa.Array, np.ndarray]:
    if pa.types.is_string(prompts.type) or pa.types.is_large_string(prompts.type):
        is_blank = compute.equal(compute.utf8_trim_whitespace(prompts), "")
        shapes = compute.if_else(is_blank, prompts, "text").cast(pa.string()).fill_null("")
        return shapes, _lengths(prompts)
    other = pa.array([_OTHER] * len(prompts)), np.zeros(len(prompts), dtype=np.int64)
    if not (pa.types.is_list(prompts.type) or pa.types.is_large_list(prompts.type)):
        return other
    messages = prompts.flatten()
    if not pa.types.is_struct(messages.type) or "role" not in [of.name for of in messages.type]:
        return other
    roles = compute.struct_field(messages, "role").cast(pa.string()).fill_null("(none)")
    num_messages = compute.list_value_length(prompts).fill_null(0).to_numpy(zero_copy_only=False)
    ends = np.concatenate([[0], np.cumsum(num_messages)])
    num_bytes = np.zeros(len(messages), dtype=np.int64)
    if "content" in [of.name for of in messages.type]:
        content = compute.struct_field(messages, "content")
        without = compute.if_else(compute.is_null(content), " without content", "")
        roles = compute.binary_join_element_wise(roles, without, "")
        if pa.types.is_string(content.type) or pa.types.is_large_string(content.type):
            num_bytes = _lengths(content)
    joined = compute.binary_join(pa.ListArray.from_arrays(pa.array(ends, pa.int32()), roles), ", ")
    total = np.concatenate([[0], np.cumsum(num_bytes)])
    return joined, total[ends[1:]] - total[ends[:-1]]


def _lengths(texts: pa.Array) -> np.ndarray:
    lengths: np.ndarray = compute.binary_length(texts).fill_null(0).to_numpy(zero_copy_only=False)
    return lengths.astype(np.int64)


def image_rows(dataset: Dataset, column: str) -> tuple[int, int]:
    """Return in how many rows a stored column holds an image, and the first of them (-1: none)."""
    num_rows, first, start = 0, -1, 0
    for table in dataset.select_columns(column).with_format("arrow").iter(batch_size=_BATCH):
        values = table[column]
        has_image = values.is_valid()
        if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
            has_image = compute.greater(compute.list_value_length(values).fill_null(0), 0)
        rows = compute.indices_nonzero(has_image)
        if len(rows) and first < 0:
            first = start + rows[0].as_py()
        num_rows += len(rows)
        start += len(values)
    return num_rows, first


def image_part_rows(dataset: Dataset) -> tuple[int, int]:
    """Return in how many rows the stored messages have a part that is an image, and the first of them (-1: none)."""
    num_rows, first, start = 0, -1, 0
    for table in dataset.select_columns("prompt").with_format("arrow").iter(batch_size=_BATCH):
        prompts = table["prompt"]
        rows = _with_image_parts(
            prompts.combine_chunks() if isinstance(prompts, pa.ChunkedArray) else prompts
        )
        if len(rows) and first < 0:
            first = start + int(rows[0])
        num_rows += len(rows)
        start += len(prompts)
    return num_rows, first


def _with_image_parts(prompts: pa.Array) -> np.ndarray:
    """Return the rows, in their order, in which a message has content in parts of which one is an image."""
    none = np.empty(0, dtype=np.int64)
    if not _is_list(prompts.type):
        return none
    messages = prompts.flatten()
    content = _field(messages, "content")
    if content is None or not _is_list(content.type):
        return none
    kinds = _field(content.flatten(), "type")
    if kinds is None or not pa.types.is_string(kinds.type):
        return none
    is_image = compute.equal(kinds, "image").fill_null(False)
    messages_of_parts = compute.list_parent_indices(content).filter(is_image)
    rows = compute.list_parent_indices(prompts).take(messages_of_parts)
    return np.unique(rows.to_numpy(zero_copy_only=False))


def _field(values: pa.Array, name: str) -> pa.Array | None:
    if not pa.types.is_struct(values.type) or name not in [of.name for of in values.type]:
        return None
    return compute.struct_field(values, name)


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def stored_values(dataset: Dataset, column: str) -> Iterator[Any]:
    """Yield the distinct values of a stored column of texts."""
    seen: set[Any] = set()
    for table in dataset.select_columns(column).with_format("arrow").iter(batch_size=_BATCH):
        seen |= set(compute.unique(table[column]).to_pylist())
    yield from seen
