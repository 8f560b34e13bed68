"""Whether the score and the threshold that decide what is correct fit each other, and what to tell the user.

A rollout is correct when its deciding score, one reward function's or the weighted sum of all, is at least
`success_reward_threshold`.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

REMINDER_BATCHES = 20
_FAR_ABOVE = 10.0  # times the threshold
_EQUAL = 1e-6  # relative difference of sums in another order


def decision_note(
    names: Sequence[str],
    weights: Sequence[float],
    correctness_reward: str | None,
    threshold: float,
) -> str:
    """Return what can be seen to be doubtful about the decision before anything is scored; empty where nothing is.

    Args:
        names: of the reward functions.
        weights: one for each, in the weighted sum.
        correctness_reward: the function that decides alone; None: the sum does.
        threshold: smallest score of a correct rollout.
    """
    weight_of = [(name, weight) for name, weight in zip(names, weights, strict=True) if weight]
    if correctness_reward is not None or not weight_of:
        return ""
    notes = []
    if len(weight_of) > 1:
        alone = [name for name, weight in weight_of if weight >= threshold > 0]
        functions = ", ".join(f"{name!r} (weight {weight:g})" for name, weight in weight_of)
        notes.append(
            f"{len(weight_of)} reward functions decide together which rollouts are correct: the weighted sum of "
            f"{functions} is compared with success_reward_threshold={threshold:g}."
        )
        if alone:
            notes.append(f"A reward of 1 from {' or '.join(map(repr, alone))} alone makes a rollout correct.")
    largest = sum(weight for _, weight in weight_of if weight > 0)
    if largest < threshold and any(weight != 1 for _, weight in weight_of):
        shown = ", ".join(f"{weight:g}" for _, weight in weight_of)
        notes.append(
            f"With rewards from 0 to 1 no rollout can be correct: the weights [{shown}] add up to "
            f"{largest:g}, below success_reward_threshold={threshold:g}."
        )
    return " ".join([*notes, _remedy(names)]) if notes else ""


def _remedy(names: Sequence[str]) -> str:
    functions = f" ({', '.join(map(repr, names))})" if len(names) > 1 else ""
    return (
        f"Set correctness_reward to the name of the reward function that grades the answer{functions}, whose "
        "unweighted score then decides alone, or success_reward_threshold to the smallest score of a right answer."
    )


class Scores(NamedTuple):
    """The finite scores of some rollouts."""

    number: int
    smallest: float
    largest: float

    @property
    def differ(self) -> bool:
        """Whether they are not all the same, but for rounding."""
        size = max(abs(self.smallest), abs(self.largest))
        return self.number > 0 and self.largest - self.smallest > _EQUAL * size

    def with_others(self, others: "Scores") -> "Scores":
        """Return those of both."""
        smallest, largest = min(self.smallest, others.smallest), max(self.largest, others.largest)
        return Scores(self.number + others.number, smallest, largest)


NO_SCORES = Scores(0, math.inf, -math.inf)


def batch_scores(values: Sequence[float]) -> Scores:
    """Return the finite ones among the scores of some rollouts."""
    finite = [value for value in values if math.isfinite(value)]
    return Scores(len(finite), min(finite), max(finite)) if finite else NO_SCORES


def one_verdict(scores: Scores, threshold: float) -> str:
    """Return "correct" or "failed" where all scores, although they differ, lie on one side; else an empty text."""
    if not scores.differ:
        return ""
    if scores.smallest >= threshold:
        return "correct"
    return "failed" if scores.largest < threshold else ""


def is_far_below(values: Sequence[float], threshold: float) -> bool:
    """Return whether the threshold is that of another scale: correct scores differ twofold, ten times above it.

    As where rewards from 0 to 100 are compared with 0.5.
    """
    correct = [value for value in values if math.isfinite(value) and value >= threshold]
    return threshold > 0 and bool(correct) and max(correct) >= max(_FAR_ABOVE * threshold, 2 * min(correct))


class CorrectnessWatch:
    """Tells, once and again after `REMINDER_BATCHES` rollout batches, that the threshold tells no rollouts apart.

    It stops for good once one rollout was correct and another was not, so a run whose last batches are all correct is
    not disturbed. Rewards that are all the same say nothing: every group may have failed.

    Args:
        names: of the reward functions.
        correctness_reward: the function that decides alone; None: the weighted sum does.
        threshold: smallest score of a correct rollout.
    """

    def __init__(self, names: Sequence[str], correctness_reward: str | None, threshold: float) -> None:
        # Scores are float32, and compared with the threshold as such: 0.7 is 0.69999999 on both sides.
        self._threshold = torch.tensor(threshold, dtype=torch.float32).item()
        self._names = names
        self._deciding = repr(correctness_reward) if correctness_reward else "the weighted sum of the rewards"
        self._scores = NO_SCORES
        self._num_batches = 0
        self._was_told = self._was_told_scale = False

    def observe(self, values: Sequence[float]) -> str:
        """Take the deciding scores of one rollout batch of all processes; return what to tell, mostly nothing."""
        self._scores, self._num_batches = (
            self._scores.with_others(batch_scores(values)),
            self._num_batches + 1,
        )
        verdict = one_verdict(self._scores, self._threshold)
        if verdict and (not self._was_told or self._num_batches == REMINDER_BATCHES):
            self._was_told = True
            return self._one_sided(verdict)
        if not verdict and not self._was_told_scale and is_far_below(values, self._threshold):
            self._was_told_scale = True
            return (
                f"Rewards go up to {self._scores.largest:g}, and {self._deciding} counts as correct from "
                f"success_reward_threshold={self._threshold:g} on, which is low on that scale. {_remedy(self._names)}"
            )
        return ""

    def _one_sided(self, verdict: str) -> str:
        scores, batches = self._scores, self._num_batches
        what = "no rollout has been correct" if verdict == "failed" else "every rollout has been correct"
        return (
            f"In {batches} rollout batch{'es' if batches > 1 else ''} {what} although rewards differ: {self._deciding} "
            f"was between {scores.smallest:g} and {scores.largest:g} in {scores.number} rollouts, and "
            f"success_reward_threshold={self._threshold:g}. Nothing to do where that is how good the answers are. "
            f"Otherwise: {_remedy(self._names)}"
        )

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must hold; options are not part of it."""
        return {
            "scores": list(self._scores) if self._scores.number else None,
            "num_batches": self._num_batches,
            "was_told": self._was_told,
            "was_told_scale": self._was_told_scale,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take what `state` returned."""
        self._scores = Scores(*state["scores"]) if state["scores"] else NO_SCORES
        self._num_batches = state["num_batches"]
        self._was_told, self._was_told_scale = state["was_told"], state["was_told_scale"]
