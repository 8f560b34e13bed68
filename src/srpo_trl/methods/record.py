"""What a method is: a few functions of values that say how each rollout and each token is trained.

Shapes: P prompts, G generations per prompt (global over all processes), B rows of a micro-batch, T completion
positions. Nothing that a method sees carries a gradient.
"""

import dataclasses
from collections.abc import Callable, Mapping
from enum import IntFlag
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

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
TEACHER_CONTEXT, OWN_CONTEXT = "teacher", "own"  # values of `Scorer.context`; others are dataset columns
ROUTE_NAMES = ("skipped", "policy", "distilled", "both")  # by value


def route_names(route_B: Tensor) -> list[str]:
    """Return the name of each rollout's route."""
    return [ROUTE_NAMES[route] for route in route_B.tolist()]


def is_trained(route: Tensor) -> Tensor:
    """Return where anything trains: bool, of the argument's shape."""
    return route != Route.SKIPPED


def is_policy(route: Tensor) -> Tensor:
    """Return where the policy loss trains: bool, of the argument's shape."""
    return (route & Route.POLICY) != 0


def is_distilled(route: Tensor) -> Tensor:
    """Return where distillation trains: bool, of the argument's shape."""
    return (route & Route.DISTILLED) != 0


ScorerWeights = Literal["teacher", "student", "initial", "external", "cached"]
Distance = Literal["kl", "hellinger"]


class Scorer(NamedTuple):
    """One pass over the rollouts without gradient, as soon as they are graded.

    Attributes:
        name: under which methods find its scores.
        weights: "teacher": the self-teacher's, as the options have it; "student": those that train, as they are then;
            "initial": those before training; "external": of `teacher_model`; "cached": log-probabilities that came with
            stored rollouts (`srpo_trl.rollout.offline`), without entropies.
        model: which of several external teachers, by name; empty: the only one, or that which `teacher_column` names.
        context: the prompt that the rollout follows. "teacher": with what a teacher is shown; "own": the student's;
            else the dataset column that has it.
        distils: whether the divergence is taken to it; else its scores are all that remains.
        has_logps: whether it has the tokens' log-probabilities although it distils; those that do not always have.
        against: an earlier scorer. There is then the distance to it of each token that it has scored, over the whole
            vocabulary.
        distance: "kl": KL(this || that) in nats; "hellinger": from 0 to 1.
    """

    name: str = "teacher"
    weights: ScorerWeights = "teacher"
    model: str = ""
    context: str = "teacher"
    distils: bool = True
    has_logps: bool = False
    against: str | None = None
    distance: Distance = "kl"

    @property
    def gives_logps(self) -> bool:
        """Whether it has the tokens' log-probabilities."""
        return self.has_logps or not self.distils


class Graded(NamedTuple):
    """Every rollout of a rollout batch once it is graded, (P, G) each.

    Attributes:
        score_PG: float; NaN or infinite where no reward function could score the rollout.
        is_scored_PG: bool.
        is_correct_PG: bool, the score reaches the threshold; False where there is none.
        has_context_PG: bool, there is a prompt for every scorer.
        step: optimizer steps so far.
    """

    score_PG: Tensor
    is_scored_PG: Tensor
    is_correct_PG: Tensor
    has_context_PG: Tensor
    step: int


class GroupMeans(NamedTuple):
    """Means over the tokens of each rollout of what a scorer says, (P, G) float64; 0 where it has not scored.

    Attributes:
        logp_PG, entropy_PG: as in `TokenScores`.
    """

    logp_PG: Tensor
    entropy_PG: Tensor


class Scored(NamedTuple):
    """Every rollout of a rollout batch once it is routed and scored, (P, G) each.

    Attributes:
        route_PG: int64 of `Route`.
        score_PG, is_scored_PG, is_correct_PG, has_context_PG, step: as in `Graded`.
        length_PG: int64, tokens that count in the loss.
        is_rescored_PG: bool, the method's scorers have scored it.
        means: of each scorer, by its name.
        token_ids: returns the ids of all completions, (P, G, T) int64, -1 where a token does not count. A collective.
    """

    route_PG: Tensor
    score_PG: Tensor
    is_scored_PG: Tensor
    is_correct_PG: Tensor
    has_context_PG: Tensor
    step: int
    length_PG: Tensor
    is_rescored_PG: Tensor
    means: Mapping[str, GroupMeans]
    token_ids: Callable[[], Tensor]


class TokenScores(NamedTuple):
    """What a scorer's pass says of the tokens of a micro-batch; 0 where it has not scored.

    Attributes:
        entropy_BT: over the full vocabulary, in nats.
        logps_BT: log-probability of each token, at the sampling temperature; empty where the scorer has none.
        divergence_BT: distance to the scorer that it is held against; empty where there is none.
    """

    entropy_BT: Tensor
    logps_BT: Tensor
    divergence_BT: Tensor


class StudentScores(NamedTuple):
    """What the student's pass in hand says of its own tokens; 0 where the policy loss does not train.

    Attributes:
        logps_BT: log-probability of each token, at the sampling temperature.
        entropy_BT: over the full vocabulary, in nats.
        divergence_BT: D to the first scorer that distils, in nats; 0 where that does not train.
    """

    logps_BT: Tensor
    entropy_BT: Tensor
    divergence_BT: Tensor


NOTHING_YET = StudentScores(*torch.empty(3, 0))  # before the student's pass


class Tokens(NamedTuple):
    """A micro-batch as the token-wise functions of a method see it.

    Attributes:
        mask_BT: bool, tokens that count in the loss.
        route_B: int64 of `Route`.
        advantage_B: TRL's advantages.
        old_logps_BT: log pi_old; None on-policy, where it is the student's own.
        scores: of each scorer, by its name.
        rows: of the method's `rows`, (B,) each or (B, T), and "is_correct".
        rollout_B: int64, different for every rollout of a run; a seed.
        step: optimizer steps so far.
        student: of this very pass; empty for `Method.weights`, which are counted before it.
    """

    mask_BT: Tensor
    route_B: Tensor
    advantage_B: Tensor
    old_logps_BT: Tensor | None
    scores: Mapping[str, TokenScores]
    rows: Mapping[str, Tensor]
    rollout_B: Tensor
    step: int
    student: StudentScores = NOTHING_YET

    @property
    def is_correct_B(self) -> Tensor:
        """Whether each rollout's score reaches the threshold, bool."""
        return self.rows["is_correct"].bool()

    @property
    def policy_BT(self) -> Tensor:
        """Tokens that the policy loss trains, bool."""
        return self.mask_BT & is_policy(self.route_B).unsqueeze(1)

    def gap_BT(self, scorer: str = "teacher") -> Tensor:
        """Return d = log scorer(y) - log pi(y) of each token."""
        return self.scores[scorer].logps_BT - self.student.logps_BT


def full_strength(step: int) -> float:
    """Return 1 at every optimizer step."""
    return 1.0


class Method(NamedTuple):
    """How rollouts are trained. The trainer executes it and knows no method by name.

    Attributes:
        route: the `Route` of each rollout, (P, G) int64. Called twice: with context assumed everywhere, to find the
            rollouts that need some, and with the context there is. Rollouts without a score are excluded afterwards.
        scorers: the passes whose scores the tokens have, in order; () makes none, and nothing can be distilled.
        divergence: fields of `DistillationSpec` that take the place of the options, each a value or a function of the
            optimizer step.
        rows: what the tokens are told of their rollout, from whole groups, by name: (P, G) each, or (P, G, T) token by
            token.
        weights: w~ of each token's divergence, (B, T), or (B, 1) where a rollout's tokens have the same; None: 1. With
            several scorers that distil, one for each of them.
        mean_one: whether they are divided by the exact mean of their sum over the distilled tokens of the step.
        strength: by optimizer step, multiplies the weights after that division.
        advantages: that TRL's policy loss takes, inside its clip: (B,), or (B, T) token by token; None: TRL's own.
        pull: k of each token, (B, T): adds -k log pi to the token's loss, outside the clip; k carries no gradient.
        anchor: of each token, (B, T), what takes the place of log pi_old in the ratio of TRL's policy loss.
        spans: whether the rows have "spans", (B, T): the tokens that a reward function marks with
            log_extra("spans", ...), for each rollout a list of (first, end) positions in its completion_ids, or None.

    Where a rollout has no context, advantages, pull and anchor do not apply, if the method has a scorer with
    log-probabilities: there are none to compute them from.
    """

    route: Callable[[Graded], Tensor]
    scorers: tuple[Scorer, ...] = (Scorer(),)
    divergence: Mapping[str, Any] = MappingProxyType({})
    rows: Callable[[Scored], Mapping[str, Tensor]] | None = None
    weights: Callable[[Tokens], Tensor | tuple[Tensor, ...]] | None = None
    mean_one: bool = True
    strength: Callable[[int], float] = full_strength
    advantages: Callable[[Tokens], Tensor] | None = None
    pull: Callable[[Tokens], Tensor] | None = None
    anchor: Callable[[Tokens], Tensor] | None = None
    spans: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether nothing but TRL's own loss trains, so that the trainer is `GRPOTrainer`."""
        return not self.scorers and not self.acts_on_policy

    @property
    def acts_on_policy(self) -> bool:
        """Whether it has a say in TRL's policy loss, once the student's pass has scored its tokens."""
        return any(part is not None for part in (self.advantages, self.pull, self.anchor))

    @property
    def reads_logps(self) -> bool:
        """Whether scorers have log-probabilities, which only rollouts with context have."""
        return any(scorer.gives_logps for scorer in self.scorers)

    @property
    def reads_stored(self) -> bool:
        """Whether a scorer's log-probabilities come with stored rollouts; others have no context."""
        return any(scorer.weights == "cached" for scorer in self.scorers)

    @property
    def distilling(self) -> tuple[Scorer, ...]:
        """Scorers that the divergence is taken to."""
        return tuple(scorer for scorer in self.scorers if scorer.distils)

    @property
    def contexts(self) -> tuple[str, ...]:
        """Of its scorers, each one once: those of prompts that the student has not read."""
        return tuple(dict.fromkeys(s.context for s in self.scorers if s.context != OWN_CONTEXT))

    @property
    def columns(self) -> tuple[str, ...]:
        """Dataset columns that hold whole prompts of its scorers."""
        return tuple(context for context in self.contexts if context != TEACHER_CONTEXT)

    def divergence_at(self, step: int, of_options: DistillationSpec = _DEFAULT) -> DistillationSpec:
        """Return the divergence at an optimizer step: that of the options, with the method's own fields.

        Raises:
            TypeError: a field has no such name.
            ValueError: one is outside its range.
        """
        fields = {name: value(step) if callable(value) else value for name, value in self.divergence.items()}
        return dataclasses.replace(of_options, **fields)

    def raw_weights(self, tokens: Tokens) -> tuple[Tensor, ...]:
        """Return w~ of each token's divergence to each scorer that distils, (B, T) float64.

        Raises:
            ValueError: there is not one for each of these scorers, or one is neither (B, T) nor (B, 1).
        """
        shape, num_scorers = tokens.mask_BT.shape, len(self.distilling)
        if self.weights is None:
            return (torch.ones_like(tokens.mask_BT, dtype=torch.float64),) * num_scorers
        made = self.weights(tokens)
        weights = (made,) if isinstance(made, Tensor) else made
        found = [tuple(weight.shape) for weight in weights]
        if len(found) != num_scorers or not {*found} <= {tuple(shape), (shape[0], 1)}:
            raise ValueError(
                f"The method's weights are {found}; {tuple(shape)} or {(shape[0], 1)} is required, for each of the "
                f"{num_scorers} scorers that distil."
            )
        return tuple(weight.double().expand(shape) for weight in weights)
