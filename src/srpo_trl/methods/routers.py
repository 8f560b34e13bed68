"""Which branch trains which rollout, and which correct sibling each failed one is shown (SRPO, section 3.1).

Shapes: B rollouts of all processes together, in order, so that rows g*G .. g*G+G-1 are the G rollouts of group g.
"""

import hashlib
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

INELIGIBLE_RANK = torch.iinfo(torch.int64).max
NO_SIBLING = -1


class Route(IntEnum):
    """The one destination of a rollout."""

    SKIPPED = 0  # trained by nothing, counted in no denominator
    POLICY = 1  # GRPO's reward-driven update
    DISTILLED = 2  # self-distillation
    BOTH = 3  # both, weighted per token (advantage mix)


ROUTE_NAMES = {
    Route.SKIPPED: "skipped",
    Route.POLICY: "policy",
    Route.DISTILLED: "distilled",
    Route.BOTH: "both",
}


class Correctness(NamedTuple):
    """Verdict on each rollout; `is_correct_B` is False wherever `is_scored_B` is False."""

    is_scored_B: Tensor
    is_correct_B: Tensor


def judge_correctness(score_B: Tensor, threshold: float) -> Correctness:
    """Return which rollouts were scored and which are correct: `c_i = (r_i >= threshold)` (SRPO, section 3.1).

    Args:
        score_B: the score that decides, float; NaN or infinite where no grader could score the rollout.
        threshold: smallest score of a correct rollout.
    Returns:
        Correctness of two bool tensors (B,).
    """
    is_scored_B = torch.isfinite(score_B)
    return Correctness(is_scored_B, is_scored_B & (score_B >= threshold))


def _srpo(is_correct: Tensor, has_teacher: Tensor) -> Tensor:
    return torch.where(~is_correct & has_teacher, Route.DISTILLED, Route.POLICY)


def _grpo(is_correct: Tensor, has_teacher: Tensor) -> Tensor:
    return torch.full_like(is_correct, Route.POLICY, dtype=torch.int64)


def _sdpo(is_correct: Tensor, has_teacher: Tensor) -> Tensor:
    return torch.where(has_teacher, Route.DISTILLED, Route.SKIPPED)


def _sdpo_failed(is_correct: Tensor, has_teacher: Tensor) -> Tensor:
    return torch.where(has_teacher & ~is_correct, Route.DISTILLED, Route.SKIPPED)


def _sdpo_correct(is_correct: Tensor, has_teacher: Tensor) -> Tensor:
    return torch.where(has_teacher & is_correct, Route.DISTILLED, Route.SKIPPED)


def _advantage_mix(is_correct: Tensor, has_teacher: Tensor) -> Tensor:
    return torch.where(has_teacher, Route.BOTH, Route.POLICY)


ROUTERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "srpo": _srpo,
    "grpo": _grpo,
    "sdpo": _sdpo,
    "sdpo_failed": _sdpo_failed,
    "sdpo_correct": _sdpo_correct,
    "advantage_mix": _advantage_mix,
}


def needs_teacher(routing: str, correctness: Correctness) -> Tensor:
    """Return which rollouts this routing would distil if teacher information exists for them, (B,) bool."""
    everywhere = torch.ones_like(correctness.is_correct_B)
    routes_B = ROUTERS[routing](correctness.is_correct_B, everywhere)
    return correctness.is_scored_B & (routes_B >= Route.DISTILLED)


def route_samples(routing: str, correctness: Correctness, has_teacher_B: Tensor) -> Tensor:
    """Return each rollout's `Route`: SRPO's `z_sdpo = (1 - c) * m`, `z_grpo = 1 - z_sdpo` (section 3.1).

    Args:
        routing: a key of `ROUTERS`.
        correctness: verdicts (B,).
        has_teacher_B: bool, m_i: teacher information is available for the rollout.
    Returns:
        (B,) int64 of `Route` values; every rollout without a score is SKIP.
    """
    routes_B = ROUTERS[routing](correctness.is_correct_B, has_teacher_B)
    return torch.where(correctness.is_scored_B, routes_B, Route.SKIPPED)


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
