"""What a method is: a few functions of values that say how each rollout and each token is trained.

Shapes: P prompts, G generations per prompt (global over all processes), B rows of a micro-batch, T completion
positions. Nothing that a method sees carries a gradient.
"""

from collections.abc import Callable, Mapping
from enum import IntFlag
from typing import NamedTuple

import torch
from torch import Tensor


class Route(IntFlag):
    """What trains a rollout."""

    SKIPPED = 0  # excluded from the loss and from the token count
    POLICY = 1  # TRL's policy loss
    DISTILLED = 2  # self-distillation
    BOTH = 3


ROUTE_NAMES = ("skipped", "policy", "distilled", "both")  # by value


def route_names(route_B: Tensor) -> list[str]:
    """Return the name of each rollout's route."""
    return [ROUTE_NAMES[route] for route in route_B.tolist()]


def is_policy(route: Tensor) -> Tensor:
    """Return where the policy loss trains: bool, of the argument's shape."""
    return (route & Route.POLICY) != 0


def is_distilled(route: Tensor) -> Tensor:
    """Return where distillation trains: bool, of the argument's shape."""
    return (route & Route.DISTILLED) != 0


class Scorer(NamedTuple):
    """One pass over the rollouts without gradient: the teacher's weights after the teacher's prompt.

    Attributes:
        name: under which methods find its scores.
    """

    name: str = "teacher"


class Graded(NamedTuple):
    """Every rollout of a rollout batch once it is graded, (P, G) each.

    Attributes:
        score_PG: float; NaN or infinite where no reward function could score the rollout.
        is_scored_PG: bool.
        is_correct_PG: bool, the score reaches the threshold; False where there is none.
        has_context_PG: bool, there is something to show to a teacher.
        step: optimizer steps so far.
    """

    score_PG: Tensor
    is_scored_PG: Tensor
    is_correct_PG: Tensor
    has_context_PG: Tensor
    step: int


class TokenScores(NamedTuple):
    """What a scorer's pass says of the tokens of a micro-batch.

    Attributes:
        entropy_BT: over the full vocabulary, in nats; 0 where the rollout is not distilled.
    """

    entropy_BT: Tensor


class Tokens(NamedTuple):
    """A micro-batch as the token-wise functions of a method see it.

    Attributes:
        mask_BT: bool, tokens that count in the loss.
        advantage_B: TRL's advantages.
        scores: of each scorer, by its name.
        step: optimizer steps so far.
    """

    mask_BT: Tensor
    advantage_B: Tensor
    scores: Mapping[str, TokenScores]
    step: int


def full_strength(step: int) -> float:
    """Return 1 at every optimizer step."""
    return 1.0


class Method(NamedTuple):
    """How rollouts are trained. The trainer executes it and knows no method by name.

    Attributes:
        route: the `Route` of each rollout, (P, G) int64. Called twice: with context assumed everywhere, to find the
            rollouts that need some, and with the context there is. Rollouts without a score are excluded afterwards.
        scorers: the passes whose scores the tokens have; () makes none, and nothing can be distilled.
        weights: w~ of each token's divergence, (B, T), before they are divided by their exact mean over the distilled
            tokens of the optimizer step; None: 1.
        strength: by optimizer step, multiplies the weights after that division.
        advantages: that TRL's policy loss takes, (B,); None: TRL's own.
    """

    route: Callable[[Graded], Tensor]
    scorers: tuple[Scorer, ...] = (Scorer(),)
    weights: Callable[[Tokens], Tensor] | None = None
    strength: Callable[[int], float] = full_strength
    advantages: Callable[[Tokens], Tensor] | None = None

    @property
    def is_plain(self) -> bool:
        """Whether nothing but TRL's own loss trains, so that the trainer is `GRPOTrainer`."""
        return not self.scorers and self.advantages is None

    def raw_weights(self, tokens: Tokens) -> Tensor:
        """Return w~ of each token's divergence, (B, T) float64."""
        if self.weights is None:
            return torch.ones_like(tokens.mask_BT, dtype=torch.float64)
        return self.weights(tokens).double()

    def advantages_of(self, tokens: Tokens) -> Tensor:
        """Return the advantages of the policy loss, (B,)."""
        return tokens.advantage_B if self.advantages is None else self.advantages(tokens)
