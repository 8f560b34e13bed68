"""How rollouts are packed into the teacher's passes: the rows, their layout, and which of them go together."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

Layout = Literal["shared", "packed", "padded"]


class TeacherRow(NamedTuple):
    """One rollout to re-score: the teacher's prompt and the rollout's own token ids."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]

    def ids_at(self, mask_T: Tensor) -> Tensor:
        """Return the completion's ids at the masked positions, int64, on the mask's device; padding may follow."""
        return torch.tensor(self.completion_ids, device=mask_T.device)[mask_T[: len(self.completion_ids)]]


_ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}


def row_layout(model: PreTrainedModel) -> Layout:
    """Return how rows are laid out in a pass of this model, the cheapest that its attention allows.

    "shared": a prompt that several rows have is encoded once; needs a plain key-value cache that can be copied
    from row to row. "packed": rows one after another without padding; needs attention that keeps them apart
    without a mask, as flash attention does. "padded": the rest.
    """
    if can_share_prompts(model):
        return "shared"
    keeps_rows_apart = "flash" in str(model.config._attn_implementation)
    return "packed" if keeps_rows_apart and _layer_types(model) <= _ATTENTION else "padded"


def can_share_prompts(model: PreTrainedModel) -> bool:
    """Return whether the model keeps a plain key-value cache that can be copied from row to row."""
    return _layer_types(model) <= {"full_attention"}


def _layer_types(model: PreTrainedModel) -> set[str]:
    """Return the kinds of the model's layers; "state" stands for any that carry a state along the sequence."""
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ("full_attention",))
    has_cache = bool(getattr(model, "_supports_default_dynamic_cache", lambda: True)())
    return kinds | ({"state"} if getattr(model, "_is_stateful", False) or not has_cache else set())


def plan_passes(rows: Sequence[TeacherRow], *, max_tokens: int, layout: Layout) -> Iterator[list[int]]:
    """Yield batches of row numbers, batched by length, rows of one prompt side by side where prompts are shared.

    A batch holds at most `max_tokens` tokens, padding counted where the layout pads and a shared prompt counted
    once; a longer row comes alone.
    """

    def order(i: int) -> tuple[Any, ...]:
        prompt, completion = rows[i]
        if layout == "shared":
            return len(prompt), prompt, len(completion)
        return (len(prompt) + len(completion),)

    batch: list[int] = []
    size = _PassSize(layout)
    for i in sorted(range(len(rows)), key=order):
        larger = size.with_row(rows[i], shares_last_prompt=bool(batch) and rows[i][0] == rows[batch[-1]][0])
        if batch and larger.num_tokens > max_tokens:
            yield batch
            batch, larger = [], _PassSize(layout).with_row(rows[i], shares_last_prompt=False)
        batch.append(i)
        size = larger
    if batch:
        yield batch


class _PassSize(NamedTuple):
    """What decides how many tokens one pass runs."""

    layout: Layout
    num_rows: int = 0
    num_prompts: int = 0
    longest_prompt: int = 0
    longest_completion: int = 0
    longest_row: int = 0
    sum_of_rows: int = 0

    def with_row(self, row: TeacherRow, *, shares_last_prompt: bool) -> "_PassSize":
        """Return the size with one row more."""
        prompt_length, completion_length = len(row.prompt_ids), len(row.completion_ids)
        return _PassSize(
            self.layout,
            self.num_rows + 1,
            self.num_prompts + (not shares_last_prompt),
            max(self.longest_prompt, prompt_length),
            max(self.longest_completion, completion_length),
            max(self.longest_row, prompt_length + completion_length),
            self.sum_of_rows + prompt_length + completion_length,
        )

    @property
    def num_tokens(self) -> int:
        """Tokens that the pass runs, padding included."""
        if self.layout == "shared" and self.num_prompts < self.num_rows:
            return self.num_prompts * self.longest_prompt + self.num_rows * self.longest_completion
        return self.sum_of_rows if self.layout == "packed" else self.longest_row * self.num_rows


def num_backbone_calls(rows: Sequence[TeacherRow], layout: Layout) -> int:
    """Return how often `forward_rows` calls the backbone: a shared prompt, then what is left to run after it."""
    shares = shares_prompts(rows, layout)
    return 2 if shares and any(len(row.completion_ids) > 1 for row in rows) else 1


def shares_prompts(rows: Sequence[TeacherRow], layout: Layout) -> bool:
    """Return whether a pass encodes a prompt once for several of its rows."""
    return layout == "shared" and len({row.prompt_ids for row in rows}) < len(rows)
