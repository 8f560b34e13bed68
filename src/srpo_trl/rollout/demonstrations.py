"""Which correct sibling each rollout's teacher is shown (SRPO, section 3.1).

Shapes: B rollouts of all processes, in order, so that rows g*G .. g*G+G-1 are the G rollouts of group g.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

INELIGIBLE_RANK = torch.iinfo(torch.int64).max
NO_SIBLING = -1


def demonstration_rank(completion_ids: Sequence[int], seed: int, step: int) -> int:
    """Return a pseudo-random rank of a completion as demonstration, in [0, 2**63 - 2].

    It depends on the completion's tokens, the seed and the optimizer step alone, so the choice is the same in
    whatever order, micro-batch or process the rollouts lie.
    """
    digest = hashlib.blake2b(f"{seed}:{step}:".encode(), digest_size=8)
    digest.update(torch.tensor(completion_ids, dtype=torch.int64).numpy().tobytes())
    return int.from_bytes(digest.digest(), "little") % INELIGIBLE_RANK


def choose_demonstrations(key_B: Tensor, num_generations: int) -> Tensor:
    """Return, for each rollout, the row of the sibling that is shown to its teacher, never its own row.

    Each group has one demonstration, the eligible rollout of smallest key, which serves every other rollout of
    the group; that rollout itself is shown the second smallest.

    Args:
        key_B: int64, `demonstration_rank` of each eligible rollout, `INELIGIBLE_RANK` elsewhere.
        num_generations: G; divides B.
    Returns:
        (B,) int64 rows in [0, B), `NO_SIBLING` where no eligible sibling exists.
    Raises:
        ValueError: B is not a multiple of G.
    """
    if key_B.numel() % num_generations:
        raise ValueError(
            f"{key_B.numel()} rollouts cannot be split into groups of num_generations={num_generations}."
        )
    key_PG = key_B.view(-1, num_generations)
    # A stable sort puts equal keys (equal completions) in row order.
    sorted_key_PG, order_PG = key_PG.sort(dim=1, stable=True)
    first_row_P1 = torch.arange(key_PG.shape[0], device=key_B.device).unsqueeze(1) * num_generations
    best_P1, second_P1 = order_PG[:, :1], order_PG[:, 1:2]
    own_PG = torch.arange(num_generations, device=key_B.device).expand_as(key_PG)
    is_best_PG = own_PG == best_P1
    chosen_PG = torch.where(is_best_PG, second_P1, best_P1)
    chosen_key_PG = torch.where(is_best_PG, sorted_key_PG[:, 1:2], sorted_key_PG[:, :1])
    rows_PG = torch.where(chosen_key_PG < INELIGIBLE_RANK, chosen_PG + first_row_P1, NO_SIBLING)
    return rows_PG.reshape(-1)


def demonstration_ranks(
    texts: Mapping[int, str], completion_ids: Sequence[Sequence[int]], first_row: int, seed: int, step: int
) -> list[int]:
    """Return the rank of each rollout of this process; `texts`, by row, are those of demonstrations."""
    return [
        demonstration_rank(ids, seed, step) if texts.get(row) else INELIGIBLE_RANK
        for row, ids in enumerate(completion_ids, start=first_row)
    ]


def exchange_texts(
    texts: Mapping[int, str],
    chosen_B: Tensor,
    needs_context_B: Tensor,
    own_rows: slice,
    gather_object: Callable[[list[Any]], list[Any]],
) -> list[str]:
    """Return the demonstration of each rollout of this process, empty where it has none.

    Args:
        texts: of this process's demonstrations, by row.
        chosen_B: from `choose_demonstrations`.
        needs_context_B: bool; texts that no such rollout is shown are not sent to other processes.
        own_rows: of this process.
        gather_object: over all processes, in their order. A collective: all ranks must call this.
    """
    needed = set(chosen_B[needs_context_B].tolist())
    text_of_row = dict(gather_object([(row, text) for row, text in texts.items() if row in needed]))
    return [text_of_row.get(row, "") for row in chosen_B[own_rows].tolist()]
