"""Rewards for the shape of a completion, whatever its answer: its elements (format) and its length.

Both report no feedback: a batch has one feedback text per completion, and it is the correctness grader's.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

from srpo_trl.rewards.grading import completion_text
from srpo_trl.seams.public import get_soft_overlong_punishment

_ELEMENT_NAME = re.compile(r"[A-Za-z_][\w-]*")


class FormatReward:
    """A TRL reward function that checks the elements of a completion; an object so that it pickles."""

    def __init__(self, elements: tuple[str, ...]) -> None:
        self.__name__ = "format_reward"
        self.elements = elements

    def __call__(self, completions: list[Any], **kwargs: Any) -> list[float]:
        """1 for each completion that has the elements, else 0; see `get_format_reward`."""
        return [float(self.follows_format(completion_text(completion))) for completion in completions]

    def follows_format(self, text: str) -> bool:
        """Whether `text` has the elements."""
        return has_elements(text, self.elements)


def get_format_reward(elements: Sequence[str] = ("answer",)) -> FormatReward:
    """Reward 1 where every element occurs exactly once, closed, not empty, and in the order given; else 0.

    The paper's science prompts ask for `("reasoning", "answer")`; only `answer` is graded, hence the default.
    Text outside the elements is free.

    Args:
        elements: names of the elements, without angle brackets.
    Returns:
        A TRL reward function named `format_reward`.
    Raises:
        ValueError: no element is given, a name is not a tag's name, or one occurs twice.
    """
    names = [elements] if isinstance(elements, str) else list(elements)
    wrong_names = [name for name in names if not _ELEMENT_NAME.fullmatch(name)]
    if not names or wrong_names or len(set(names)) < len(names):
        raise ValueError(
            f"elements={elements!r} must be one or more different tag names without angle brackets, such as "
            '("reasoning", "answer").'
        )
    return FormatReward(tuple(names))


def has_elements(text: str, elements: Sequence[str]) -> bool:
    """Whether each element occurs exactly once in `text`, closed, not empty, and after the one before it."""
    position = 0
    for name in elements:
        opening, closing = f"<{name}>", f"</{name}>"
        if text.count(opening) != 1 or text.count(closing) != 1:
            return False
        start, end = text.find(opening, position), text.find(closing, position)
        if start < 0 or end < start or not text[start + len(opening) : end].strip():
            return False
        position = end + len(closing)
    return True


def get_length_reward(
    max_completion_length: int = 8192, soft_punish_cache: int | None = None
) -> Callable[..., list[float]]:
    """TRL's soft overlong punishment (DAPO, arXiv:2503.14476, eq. 13), in tokens of `completion_ids`.

        0 up to `max_completion_length - soft_punish_cache`, then linear down to -1 at `max_completion_length`

    Args:
        max_completion_length: the run's own `max_completion_length`; the paper's is 8192.
        soft_punish_cache: width of the linear part; None: a fifth of the maximum (DAPO: 4096 of 20480).
    Returns:
        A TRL reward function named `length_reward`, with values in [-1, 0].
    Raises:
        ValueError: a length is out of range.
    """
    cache = max_completion_length // 5 if soft_punish_cache is None else soft_punish_cache
    if max_completion_length < 1 or not 0 <= cache <= max_completion_length:
        raise ValueError(
            f"max_completion_length={max_completion_length}, soft_punish_cache={soft_punish_cache}: "
            "the first must be at least 1 and the second from 0 to the first (or None)."
        )
    reward: Callable[..., list[float]] = get_soft_overlong_punishment(
        max_completion_len=max_completion_length, soft_punish_cache=cache
    )
    reward.__name__ = "length_reward"
    return reward


format_reward = get_format_reward()
length_reward = get_length_reward()
