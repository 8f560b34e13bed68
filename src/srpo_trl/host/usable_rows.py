"""Rows that cannot be sampled for: another one of the batch stands in for each, and its rollouts get no score.

Such rows of a stream, or made by a transform, show themselves in the middle of a run. Every process takes as many rows
as before, so all go on alike.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from srpo_trl.rollout.solved_prompts import prompt_key

IMAGE_COLUMNS = ("image", "images")
# Beside `prompt`, columns by which TRL tells whether a row is a conversation.
_CONVERSATION_COLUMNS = ("completion", "messages", "chosen", "rejected")
COLUMNS_OF_TRL = ("prompt", "environment", *IMAGE_COLUMNS, *_CONVERSATION_COLUMNS)

# Where no row of a batch can be sampled for.
_STAND_INS: tuple[Any, ...] = ([{"role": "user", "content": "."}], ".")

Row = dict[str, Any]


class UsableRows(NamedTuple):
    """A batch of rows, all of which can be sampled for.

    Attributes:
        rows: one a row that was given, every one with the same columns.
        reasons: why the row that stood there is left out; None where it is itself.
    """

    rows: list[Row]
    reasons: list[str | None]


def usable_rows(rows: Sequence[Row], problem_of: Callable[[Row], str | None]) -> UsableRows:
    """Return the rows with a usable one in place of each that is not; where none is, with a prompt of no meaning.

    TRL takes a batch for conversations or for texts as its first prompt is one: where both are in a batch, the fewer
    are left out.

    Args:
        rows: of this process.
        problem_of: why a row cannot be sampled for, or None; called once for each prompt that follows another.
    """
    columns = list(dict.fromkeys([*(column for row in rows for column in row), "prompt"]))
    rows = [{column: row.get(column) for column in columns} for row in rows]
    reasons: list[str | None] = []
    last_key = None
    for row in rows:  # a group's rows follow one another
        key = prompt_key(row["prompt"])
        reasons.append(reasons[-1] if key == last_key else problem_of(row))
        last_key = key
    usable = [i for i, reason in enumerate(reasons) if reason is None]
    texts = [i for i in usable if isinstance(rows[i]["prompt"], str)]
    if 0 < len(texts) < len(usable):
        is_minority = len(texts) * 2 < len(usable)
        for i in usable:
            if (i in texts) == is_minority:
                reasons[i] = "a text among conversations" if is_minority else "a conversation among texts"
    no_images = {column: None for column in columns if column in IMAGE_COLUMNS}
    candidates = [row for row, reason in zip(rows, reasons, strict=True) if reason is None]
    candidates += [{**rows[0], **no_images, "prompt": prompt} for prompt in _STAND_INS]
    stand_in = next((row for row in candidates if problem_of(row) is None), rows[0])
    return UsableRows(
        [row if reason is None else stand_in for row, reason in zip(rows, reasons, strict=True)], reasons
    )


def row_images(row: Row) -> list[Any]:
    """Return the images in a row's columns, as TRL takes them."""
    if row.get("images"):
        return list(row["images"])
    return [] if row.get("image") is None else [row["image"]]


def without_empty_images(rows: Sequence[Row]) -> list[Row]:
    """Return the rows as TRL is to see them: with columns of images only where one of the rows has an image.

    TRL takes the columns themselves for images, and beside images other columns of messages for the prompt.
    """
    hidden = _CONVERSATION_COLUMNS if any(map(row_images, rows)) else IMAGE_COLUMNS
    return [{column: value for column, value in row.items() if column not in hidden} for row in rows]
