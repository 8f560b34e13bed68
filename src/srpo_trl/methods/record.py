"""What a method is: a few functions of values that say how each rollout and each token is trained.

Shapes: P prompts, G generations per prompt (global over all processes), B rows of a micro-batch, T completion
positions. Nothing that a method sees carries a gradient.
"""

import dataclasses
from collections.abc import Callable, Mapping
from enum import IntFlag
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from srpo_trl.loss.ops import DistillationSpec


class Route(IntFlag):
    """What trains a rollout."""

    SKIPPED = 0  # excluded from the loss and from the token count
    POLICY = 1  # TRL's policy loss
    DISTILLED = 2  # self-distillation
    BOTH = 3


_DEFAULT = DistillationSpec()
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


class Scored(NamedTuple):
    """Every rollout of a rollout batch once it is routed and scored, (P, G) each.

    Attributes:
        route_PG: int64 of `Route`.
        score_PG, is_scored_PG, is_correct_PG, has_context_PG, step: as in `Graded`.
    """

    route_PG: Tensor
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


class StudentScores(NamedTuple):
    """What the student's pass in hand says of its own tokens; 0 where the policy loss does not train.

    Attributes:
        logps_BT: log-probability of each token, at the sampling temperature.
        entropy_BT: over the full vocabulary, in nats.
    """

    logps_BT: Tensor
    entropy_BT: Tensor


class Tokens(NamedTuple):
    """A micro-batch as the token-wise functions of a method see it.

    Attributes:
        mask_BT: bool, tokens that count in the loss.
        route_B: int64 of `Route`.
        advantage_B: TRL's advantages.
        old_logps_BT: log pi_old; None on-policy, where it is the student's own.
        scores: of each scorer, by its name.
        rows: of the method's `rows`, (B,) each, and "is_correct".
        rollout_B: int64, different for every rollout of a run; a seed.
        step: optimizer steps so far.
        student: of this very pass; None for `Method.weights`, which are counted before it.
    """

    mask_BT: Tensor
    route_B: Tensor
    advantage_B: Tensor
    old_logps_BT: Tensor | None
    scores: Mapping[str, TokenScores]
    rows: Mapping[str, Tensor]
    rollout_B: Tensor
    step: int
    student: StudentScores | None = None

    @property
    def is_correct_B(self) -> Tensor:
        """Whether each rollout's score reaches the threshold, bool."""
        return self.rows["is_correct"].bool()

    @property
    def policy_BT(self) -> Tensor:
        """Tokens that the policy loss trains, bool."""
        return self.mask_BT & is_policy(self.route_B).unsqueeze(1)


def full_strength(step: int) -> float:
    """Return 1 at every optimizer step."""
    return 1.0


class Method(NamedTuple):
    """How rollouts are trained. The trainer executes it and knows no method by name.

    Attributes:
        route: the `Route` of each rollout, (P, G) int64. Called twice: with context assumed everywhere, to find the
            rollouts that need some, and with the context there is. Rollouts without a score are excluded afterwards.
        scorers: the passes whose scores the tokens have; () makes none, and nothing can be distilled.
        divergence: fields of `DistillationSpec` that take the place of the options, each a value or a function of the
            optimizer step.
        rows: what the tokens are told of their rollout, from whole groups: (P, G) each, by name.
        weights: w~ of each token's divergence, (B, T), or (B, 1) where a rollout's tokens have the same; None: 1.
        mean_one: whether they are divided by their exact mean over the distilled tokens of the optimizer step.
        strength: by optimizer step, multiplies the weights after that division.
        advantages: that TRL's policy loss takes, inside its clip: (B,), or (B, T) token by token; None: TRL's own.
        pull: k of each token, (B, T): adds -k log pi to the token's loss, outside the clip; k carries no gradient.
    """

    route: Callable[[Graded], Tensor]
    scorers: tuple[Scorer, ...] = (Scorer(),)
    divergence: Mapping[str, Any] = MappingProxyType({})
    rows: Callable[[Scored], Mapping[str, Tensor]] | None = None
    weights: Callable[[Tokens], Tensor] | None = None
    mean_one: bool = True
    strength: Callable[[int], float] = full_strength
    advantages: Callable[[Tokens], Tensor] | None = None
    pull: Callable[[Tokens], Tensor] | None = None

    @property
    def is_plain(self) -> bool:
        """Whether nothing but TRL's own loss trains, so that the trainer is `GRPOTrainer`."""
        return not self.scorers and self.advantages is None and self.pull is None

    def divergence_at(self, step: int, of_options: DistillationSpec = _DEFAULT) -> DistillationSpec:
        """Return the divergence at an optimizer step: that of the options, with the method's own fields.

        Raises:
            TypeError: a field has no such name.
            ValueError: one is outside its range.
        """
        fields = {name: value(step) if callable(value) else value for name, value in self.divergence.items()}
        return dataclasses.replace(of_options, **fields)

    def raw_weights(self, tokens: Tokens) -> Tensor:
        """Return w~ of each token's divergence, (B, T) float64."""
        if self.weights is None:
            return torch.ones_like(tokens.mask_BT, dtype=torch.float64)
        return self.weights(tokens).double().expand(tokens.mask_BT.shape)
