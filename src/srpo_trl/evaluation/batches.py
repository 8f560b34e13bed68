"""Which samples are generated together: batches by length within a token budget, identical on every rank."""

from collections.abc import Sequence
from typing import NamedTuple


class PlannedSample(NamedTuple):
    """One sample to draw.

    Attributes:
        question: row of the data set, from 0.
        is_padding: drawn for equal batches on all processes only, and not to be counted.
    """

    question: int
    is_padding: bool = False


def batch_by_tokens(
    prompt_lengths: Sequence[int],
    *,
    num_samples: int,
    max_completion_length: int,
    tokens_per_batch: int | None,
    num_processes: int,
) -> list[list[PlannedSample]]:
    """Return the batches of all processes together, longest prompts first; process r takes `batch[r::num_processes]`.

    A process's share of a batch holds `tokens_per_batch` tokens at most, each row counted with the batch's longest
    prompt and the longest completion; a row longer than that goes alone. Shares of a batch have the same size on every
    process, as collective generation and gathering need it; the last batch is filled up with padding for that.

    Args:
        prompt_lengths: tokens of each question's prompt.
        num_samples: of each question.
        max_completion_length: tokens.
        tokens_per_batch: on one process. None: everything in one batch, for engines that schedule by themselves.
        num_processes: that share the work.
    """
    longest_first = sorted(
        range(len(prompt_lengths)), key=lambda question: (-prompt_lengths[question], question)
    )
    waiting = [PlannedSample(question) for question in longest_first for _ in range(num_samples)]
    batches = []
    start = 0
    while start < len(waiting):
        rows = -(-(len(waiting) - start) // num_processes)
        if tokens_per_batch is not None:
            row_tokens = prompt_lengths[waiting[start].question] + max_completion_length
            rows = min(rows, max(1, tokens_per_batch // row_tokens))
        batch = waiting[start : start + rows * num_processes]
        start += len(batch)
        padding = PlannedSample(batch[-1].question, is_padding=True)
        batches.append(batch + [padding] * (rows * num_processes - len(batch)))
    return batches
