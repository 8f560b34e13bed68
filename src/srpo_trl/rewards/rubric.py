"""A reward by a rubric (ROPD, arXiv:2605.07396): the share of its points that a completion reaches."""

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

from srpo_trl.rewards.grading import completion_text, shorten

logger = logging.getLogger(__name__)

Rubric = Sequence[tuple[str, float]]


class RubricReward:
    """A TRL reward function that has each completion judged by the criteria of its prompt's rubric.

        reward = sum_j points_j met_j / sum_j points_j, in [0, 1]

    Both functions may ask a model or a service: whatever they raise, or give that is not as below, leaves the rollout
    without a score. The authors' code gives 0 there, which would make it a wrong one. To pickle the object, give
    functions of a module.

    Args:
        make_rubric: prompt -> (criterion, points), points at least 0 and not all 0; asked once for each prompt.
        judge: (prompt, completion's text, criteria) -> how far each criterion is met, a bool or a number in [0, 1].
        name: of the reward in metrics and tables.
    """

    def __init__(
        self,
        make_rubric: Callable[[Any], Rubric],
        judge: Callable[[Any, str, list[str]], Sequence[float]],
        name: str = "rubric_reward",
    ) -> None:
        self.__name__ = name
        self.make_rubric, self.judge = make_rubric, judge
        self._rubrics: dict[str, Rubric] = {}

    def __call__(
        self,
        prompts: list[Any],
        completions: list[Any],
        log_metric: Callable[[str, float], None] | None = None,
        **kwargs: Any,
    ) -> list[float | None]:
        """Rewards of a batch.

        Args:
            prompts: one string or one list of messages per row, which the two functions get as it is.
            completions: likewise; the last assistant message is judged.
            log_metric: receives the fraction of rows without a reward.
            kwargs: everything else that TRL passes; not used.
        Returns:
            One reward per row; None where there is no judgment (one warning is logged).
        """
        rewards: list[float | None] = []
        problems: list[str] = []
        for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            try:
                rewards.append(self._share(prompt, completion_text(completion)))
            except Exception as error:  # of a model's or service's client, whatever its kind
                rewards.append(None)
                problems.append(f"row {row}: {shorten(repr(error))}")
        if problems:
            logger.warning(
                "%s: %d of %d rows have no judgment and get no reward, first %s",
                *(self.__name__, len(problems), len(rewards), problems[0]),
            )
        if log_metric is not None and rewards:
            log_metric(f"rewards/{self.__name__}/unscorable_frac", len(problems) / len(rewards))
        return rewards

    def _share(self, prompt: Any, text: str) -> float:
        rubric = self._rubrics.get(repr(prompt))
        if rubric is None:
            rubric = [
                (str(criterion), _number(points, math.inf)) for criterion, points in self.make_rubric(prompt)
            ]
            if not any(points for _, points in rubric):
                raise ValueError(f"a rubric needs criteria with points above 0: {rubric}")
            self._rubrics[repr(prompt)] = rubric
        found = self.judge(prompt, text, [criterion for criterion, _ in rubric])
        met = [_number(value, 1.0) for value in found]
        total = math.fsum(points for _, points in rubric)
        return math.fsum(points * value for (_, points), value in zip(rubric, met, strict=True)) / total


def _number(value: Any, highest: float) -> float:
    """Return a finite number from 0 to the highest as a float, bools among them."""
    number = math.nan if isinstance(value, str) else float(value)
    if not 0.0 <= number <= highest or math.isinf(number):
        raise ValueError(f"{value!r} is not a number in [0, {highest:g}]")
    return number
