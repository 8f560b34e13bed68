"""Tiny inputs to try a method on: seeded values of every kind, without a model."""

import itertools
from collections.abc import Sequence

import torch

from srpo_trl.methods.record import (
    Graded,
    GroupMeans,
    Route,
    Scored,
    StudentScores,
    Tokens,
    TokenScores,
)

STEPS = (0, 10**6)  # at a run's start and late in it


def graded(step: int = 0) -> Graded:
    """Three groups of four rollouts: mixed, all failed, all correct; one without a score, some without context."""
    is_correct_PG = torch.tensor([[1, 0, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1]]).bool()
    is_scored_PG = torch.tensor([[1, 1, 0, 1], [1, 1, 1, 1], [1, 1, 1, 1]]).bool()
    has_context_PG = torch.tensor([[1, 1, 1, 0], [1, 0, 1, 1], [1, 1, 1, 0]]).bool()
    score_PG = torch.where(is_scored_PG, is_correct_PG.double(), torch.nan)
    return Graded(score_PG, is_scored_PG, is_correct_PG, has_context_PG, step)


def scored(graded: Graded, route_PG: torch.Tensor, *scorers: str, seed: int = 0) -> Scored:
    """The same once it is routed and scored, with the means of scorers of these names and lengths from 1 to 20."""
    generator, shape = torch.Generator().manual_seed(seed), route_PG.shape
    means = {
        name: GroupMeans(
            *torch.rand(2, *shape, generator=generator, dtype=torch.float64)
            * torch.tensor([-2.0, 2.0])[:, None, None]
        )
        for name in scorers
    }
    length_PG = torch.randint(1, 21, shape, generator=generator)
    ids_PGT = torch.randint(0, 3, (*shape, 20), generator=generator)
    ids_PGT[torch.arange(20) >= length_PG.unsqueeze(2)] = -1
    return Scored(route_PG, *graded, length_PG, graded.is_scored_PG, means, lambda: ids_PGT)


def groups(step: int = 0) -> Graded:
    """Every group of four rollouts that are correct or failed, with context or without, all of them scored."""
    kinds = itertools.product([False, True], repeat=2)
    kinds_PG2 = torch.tensor(list(itertools.product(kinds, repeat=4)))
    is_correct_PG, has_context_PG = kinds_PG2.unbind(2)
    return Graded(is_correct_PG.double(), torch.ones_like(is_correct_PG), is_correct_PG, has_context_PG, step)


def tokens(
    step: int = 0,
    *,
    seed: int = 0,
    is_on_policy: bool = False,
    scorers: Sequence[str] = ("teacher",),
    **rows: torch.Tensor,
) -> Tokens:
    """Four rollouts of up to six tokens, two of them correct, as the functions of a method see them.

    Args:
        step: optimizer steps so far.
        seed: of all values.
        is_on_policy: no update has come between sampling and this pass.
        scorers: names of those that have scored.
        rows: of the method's own `rows`, (4,) each.
    """
    generator = torch.Generator().manual_seed(seed)

    def logps() -> torch.Tensor:
        return -3.0 * torch.rand(4, 6, generator=generator, dtype=torch.float64)

    def scores() -> TokenScores:
        return TokenScores(*(sign * logps() * mask_BT for sign in (-1, 1, -1)))

    mask_BT = torch.arange(6) < torch.tensor([[6], [3], [5], [1]])
    return Tokens(
        mask_BT=mask_BT,
        route_B=torch.tensor([Route.POLICY, Route.BOTH, Route.POLICY, Route.BOTH]),
        advantage_B=torch.tensor([0.75, -0.25, -0.25, -0.25], dtype=torch.float64),
        old_logps_BT=None if is_on_policy else logps() * mask_BT,
        scores={name: scores() for name in scorers},
        rows={"is_correct": torch.tensor([True, False, False, True]), **rows},
        rollout_B=torch.arange(4) + 4 * seed,
        step=step,
        student=StudentScores(*(sign * logps() * mask_BT for sign in (1, -1, -1))),
    )
