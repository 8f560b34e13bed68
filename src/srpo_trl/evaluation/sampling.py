"""The pieces of one running evaluation: its questions, what is known of the batch in hand, sampling parameters."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers.trainer_utils import has_length

from srpo_trl.evaluation.batches import PlannedSample
from srpo_trl.evaluation.samples import AnswerParser, Sample
from srpo_trl.evaluation.scores import repeated_ngram_share
from srpo_trl.rewards.correctness import correctness_score, judge_correctness
from srpo_trl.rewards.grading import GRADER_ERRORS


class Questions(Dataset):
    """The rows of a data set by planned sample, so that a batch knows what it was drawn for."""

    def __init__(self, rows: Any) -> None:
        """Take a data set; an iterable one is read to its end.

        Raises:
            ValueError: it has no row.
        """
        self.rows: Any = rows if has_length(rows) else list(rows)
        if not len(self.rows):
            raise ValueError("eval_dataset has no rows: there is nothing to evaluate on.")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, planned: PlannedSample) -> tuple[PlannedSample, dict[str, Any]]:
        return planned, dict(self.rows[planned.question])


class SampleCollector:
    """Puts together what generation and rewards say about the rows of a batch, and keeps the samples.

    Attributes:
        samples: of this process, so far.
    """

    def __init__(
        self,
        reading: AnswerParser,
        *,
        reward_names: Sequence[str],
        reward_weights_F: Tensor,
        correctness_reward: str | None,
        threshold: float,
    ) -> None:
        self.samples: list[Sample] = []
        self.reading = reading
        self._reward_names = reward_names
        self._reward_weights_F = reward_weights_F
        self._correctness_reward = correctness_reward
        self._threshold = threshold
        self._own_token_ids: list[list[int]] = []
        self._is_cut: list[bool] = []
        self._texts: list[str] = []
        self._rewards_BF = torch.empty(0, len(reward_names))

    def take_tokens(
        self,
        completion_ids: Sequence[Sequence[int]],
        tool_mask: Sequence[Sequence[int]] | None,
        ends: set[int],
    ) -> None:
        """Take the completions of a batch; `tool_mask` is 0 on tokens of tools, `ends` are tokens that may end one."""
        masks = tool_mask or [[1] * len(ids) for ids in completion_ids]
        self._own_token_ids = [
            [token for token, is_own in zip(ids, mask, strict=True) if is_own]
            for ids, mask in zip(completion_ids, masks, strict=True)
        ]
        self._is_cut = [ids[-1] not in ends for ids in completion_ids]

    def take_rewards(self, texts: list[str], rewards_BF: Tensor) -> None:
        """Take what was said last in each row of a batch, and its rewards, one column a reward function."""
        self._texts, self._rewards_BF = texts, rewards_BF

    def keep(self, planned: Sequence[PlannedSample]) -> None:
        """Keep the samples of the batch in hand, all but the padding."""
        score_B = correctness_score(
            self._rewards_BF, self._reward_weights_F, self._reward_names, self._correctness_reward
        )
        verdict = judge_correctness(score_B, self._threshold)
        extract_answer, follows_format = self.reading
        for row, (plan, text) in enumerate(zip(planned, self._texts, strict=True)):
            if plan.is_padding:
                continue
            is_scored = bool(verdict.is_scored[row])
            rewards = map(_finite_or_none, self._rewards_BF[row].tolist())
            self.samples.append(
                Sample(
                    question=plan.question,
                    text=text,
                    num_tokens=len(self._own_token_ids[row]),
                    is_cut=self._is_cut[row],
                    repeated_ngrams=repeated_ngram_share(self._own_token_ids[row]),
                    rewards=dict(zip(self._reward_names, rewards, strict=True)),
                    score=float(score_B[row]) if is_scored else None,
                    is_correct=bool(verdict.is_correct[row]) if is_scored else None,
                    answer=_read(extract_answer, text),
                    follows_format=_read(follows_format, text),
                )
            )


@contextmanager
def temporarily_set(target: Any, **values: Any) -> Iterator[None]:
    """Give attributes of `target` these values, and their own ones back at the end, also after an error."""
    own = {name: getattr(target, name) for name in values}
    try:
        for name, value in values.items():
            setattr(target, name, value)
        yield
    finally:
        for name, value in own.items():
            setattr(target, name, value)


def _read(reader: Callable[[str], Any] | None, text: str) -> Any:
    """Return what a reward function reads in a text; None where it reads nothing, or breaks on an odd text."""
    try:
        return reader(text) if reader is not None else None
    except GRADER_ERRORS:
        return None


def _finite_or_none(reward: float) -> float | None:
    return reward if math.isfinite(reward) else None
