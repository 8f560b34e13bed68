"""Rows of a dataset as TRL samples for them; another row of the batch stands in for each that cannot be sampled for.

Such rows of a stream, or made by a transform, show themselves in the middle of a run. Every rank takes as many rows
as before, so none waits for another. The rollouts of a row that stands in get no score.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from trl import prepare_multimodal_messages

from srpo_trl.host.rewards.columns import RewardColumns
from srpo_trl.host.rows import foreign_prompt
from srpo_trl.rollout.solved_prompts import prompt_key
from srpo_trl.seams.messages import ROW_ERRORS, has_image

logger = logging.getLogger(__name__)

EXCLUDED = "rows/excluded_frac"  # logged for the batches in which there is one

IMAGE_COLUMNS = ("image", "images")
# Beside `prompt`, columns by which TRL tells whether a row is a conversation.
_CONVERSATION_COLUMNS = ("completion", "messages", "chosen", "rejected")
COLUMNS_OF_TRL = ("prompt", "environment", *IMAGE_COLUMNS, *_CONVERSATION_COLUMNS)

# Where no row of a batch can be sampled for.
_STAND_INS: tuple[Any, ...] = ([{"role": "user", "content": "."}], ".")

Row = dict[str, Any]
Generate = Callable[[list[Any]], tuple[Any, ...]]


class PromptRows:
    """The rows of each batch, fitted to TRL, to the model and to reward functions.

    Args:
        tokenize: returns a prompt's token ids, or raises one of `ROW_ERRORS`.
        columns: that reward functions need and take.
        read: columns that are kept whatever reward functions take.
        reads_images: whether the model does.
        is_sampled: whether TRL generates; a rollout function looks after its prompts itself.
        has_environments: environments may write the prompts, so that rows stay as they are.
        max_length: most tokens that a prompt may have; None: any number.

    Attributes:
        excluded: why, of each row of the batch in hand, another one stands there; None where it is itself.
    """

    def __init__(
        self,
        tokenize: Callable[[Any], Sequence[int]],
        columns: RewardColumns,
        read: Sequence[str] = (),
        *,
        reads_images: bool = False,
        is_sampled: bool = True,
        has_environments: bool = False,
        max_length: int | None = None,
    ) -> None:
        self.reads_images, self.is_sampled, self.max_length = reads_images, is_sampled, max_length
        self.excluded: list[str | None] = []
        self._tokenize = tokenize
        self._columns = columns
        self._kept = (*COLUMNS_OF_TRL, *read)
        self._has_environments = has_environments
        self._rows: list[Row] = []  # of the batch in hand
        self._has_warned = False

    def fit(self, rows: Sequence[Row]) -> list[Row]:
        """Return the rows of one batch as TRL is to see them; all of them can be sampled for."""
        if self._has_environments:
            return list(rows)
        self._rows, self.excluded = usable_rows(self._columns.fitted(rows, kept=self._kept), self.problem_of)
        return without_empty_images(self._rows)

    def whole(self, rows: Sequence[Row]) -> list[Row]:
        """Return TRL's rows, to which a rollout function may have added, with the columns that it was not shown."""
        if self._has_environments:
            return list(rows)
        return [{**row, **given} for row, given in zip(self._rows, rows, strict=True)]

    def without_excluded(
        self, rewards_BF: Tensor, gather: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, float]:
        """Return the rewards of all processes, NaN in the place of rows that are left out, and the share of these.

        Args:
            rewards_BF: of all processes, float.
            gather: returns the values of all processes, in their order. A collective: all ranks must call it.
        """
        if self._has_environments:
            return rewards_BF, 0.0
        is_excluded = [int(reason is not None) for reason in self.excluded]
        is_excluded_B = gather(torch.tensor(is_excluded, device=rewards_BF.device)).bool()
        reason = next(filter(None, self.excluded), None)
        if reason is not None and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "A row of the dataset is left out: %s. Its rollouts are those of another row and have no score; the "
                "metric %s counts such rows.",
                reason,
                EXCLUDED,
            )
        return rewards_BF.masked_fill(is_excluded_B.unsqueeze(1), torch.nan), float(
            is_excluded_B.float().mean()
        )

    def problem_of(self, row: Row) -> str | None:
        """Return why a row cannot be sampled for; None where it can."""
        held = foreign_prompt(row["prompt"])
        if held is not None:
            return f"its prompt is given as {held}"
        if row["prompt"] is None or row["prompt"] == []:
            return "it has no prompt"
        if not self.reads_images and (row_images(row) or has_image(row["prompt"])):
            return "it has images, which the model does not read"
        if not self.is_sampled:
            return None
        try:
            num_tokens = len(self.tokens_of(row))
        except ROW_ERRORS as error:
            return f"{type(error).__name__}: {error}"
        if self.max_length is not None and num_tokens > self.max_length:
            return f"its {num_tokens} tokens are more than the {self.max_length} for which the model's context has room"
        return None if num_tokens else "its prompt has no tokens"

    def tokens_of(self, row: Row) -> Sequence[int]:
        """Return a row's prompt as TRL tokenizes it; raises one of `ROW_ERRORS` where it cannot."""
        prompt, images = row["prompt"], row_images(row)
        return self._tokenize(prepare_multimodal_messages(prompt, images=images) if images else prompt)

    def num_tokens(self, row: Row) -> int:
        """Return the tokens of a row's prompt without images; 0 where there are none, or an environment writes it."""
        try:
            return 0 if self._has_environments else len(self._tokenize(row["prompt"]))
        except ROW_ERRORS:
            return 0


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
    stand_in = next((row for row, reason in zip(rows, reasons, strict=True) if reason is None), None)
    if stand_in is None:
        no_images = {column: None for column in columns if column in IMAGE_COLUMNS}
        candidates = [{**rows[0], **no_images, "prompt": prompt} for prompt in _STAND_INS]
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


def with_image_lists(generate: Generate) -> Generate:
    """Return TRL's `_generate` with an empty list in place of None for a prompt without an image.

    Processors, which read its output, want lists; vLLM, which generates inside, wants None.
    """

    def generate_with_lists(prompts: list[Any]) -> tuple[Any, ...]:
        *generated, images, tool_images = generate(prompts)
        return *generated, images and [of_prompt or [] for of_prompt in images], tool_images

    return generate_with_lists
