"""From the scores of reward functions to the verdict on each rollout.

Shapes: B rollouts of all processes; F reward functions; P prompts, G generations per prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Correctness(NamedTuple):
    """Verdict on each rollout, bool of the score's shape; `is_correct` is False wherever `is_scored` is False."""

    is_scored: Tensor
    is_correct: Tensor

    @property
    def accuracy(self) -> float | None:
        """Share of correct rollouts among the scored ones; None where nothing was scored."""
        num_scored = int(self.is_scored.sum())
        return int(self.is_correct.sum()) / num_scored if num_scored else None


def correctness_score(
    rewards_BF: Tensor, reward_weights_F: Tensor, names: Sequence[str], correctness_reward: str | None
) -> Tensor:
    """Return the score that is compared with the threshold, (B,), NaN where nothing could score the rollout.

    It is one named function's score, or the weighted sum over the functions that gave one.
    """
    if correctness_reward is not None:
        return rewards_BF[:, list(names).index(correctness_reward)]
    score_B = (rewards_BF * reward_weights_F.to(rewards_BF)).nansum(dim=1)
    return torch.where(rewards_BF.isnan().all(dim=1), torch.nan, score_B)


def judge_correctness(score_PG: Tensor, threshold: float) -> Correctness:
    """Return which rollouts were scored and which are correct: `c_i = (r_i >= threshold)` (SRPO, section 3.1).

    Args:
        score_PG: the score that decides, float; NaN or infinite where no grader could score the rollout. Any shape.
        threshold: smallest score of a correct rollout.
    """
    is_scored = torch.isfinite(score_PG)
    return Correctness(is_scored, is_scored & (score_PG >= threshold))


@dataclass(frozen=True)
class Judge:
    """What decides which rollouts are correct.

    Attributes:
        reward_weights_F: of the reward functions.
        names: of the reward functions.
        correctness_reward: the one whose score decides alone; None: the weighted sum does.
        threshold: smallest score of a correct rollout.
    """

    reward_weights_F: Tensor
    names: Sequence[str]
    correctness_reward: str | None
    threshold: float

    def score(self, rewards_BF: Tensor) -> Tensor:
        """Return the score that decides, (B,)."""
        return correctness_score(rewards_BF, self.reward_weights_F, self.names, self.correctness_reward)

    def __call__(self, rewards_BF: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the score that decides, which rollouts have one, and which are correct, (B,) each."""
        score_B = self.score(rewards_BF)
        return score_B, *judge_correctness(score_B, self.threshold)
