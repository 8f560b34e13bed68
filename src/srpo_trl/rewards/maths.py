r"""Mathematical answers, compared by math-verify: LaTeX (`\boxed{}` first) or a plain expression."""

import functools
import os
import re
import threading
from decimal import Decimal
from typing import Any, NamedTuple

from srpo_trl.rewards.expression_bounds import is_costly_expression, is_costly_text, last_box, shortened_runs
from srpo_trl.rewards.grading import Grade, GradedReward, shorten

PARSING_TIMEOUT_SECONDS = 10
VERIFY_TIMEOUT_SECONDS = 5

_SCIENTIFIC_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?[eE][+-]?\d+")
_LATEX_DELIMITER = re.compile(r"(?<!\\)\$|\\boxed|\\\(|\\\[")
_LATEX_TEXT = re.compile(r"\\(text|textbf|mathrm|mbox)\{[^{}]*\}")
_PROSE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")  # letters that are not a LaTeX command


def get_math_reward(*, reveal_answer: bool = False) -> GradedReward:
    r"""Reward 1 where math-verify finds the completion's answer equal to the reference, else 0.

    The reference comes from the dataset column `answer`: a number, or text with LaTeX or a plain expression;
    one in which no expression is found is unusable and rewarded None.

    What would take long to compute, such as a tower of powers, is compared as text alone: an answer that is written
    as the reference is correct, another one is not, and a reference gets None for every other answer.

    math-verify bounds its own running time by an alarm signal, which only a process's main thread may set. With
    `reward_timeout` the reward runs in the main thread of a process of its own. Called from another thread, or on
    Windows, which has no alarms, it runs without that bound, as TRL's `accuracy_reward` does in a thread.

    Args:
        reveal_answer: let the feedback give the reference answer.
    Returns:
        A TRL reward function named `math_reward`.
    """
    return GradedReward(
        "math_reward",
        functools.partial(grade_math, reveal_answer=reveal_answer),
        extract_answer=extract_expression,
        follows_format=has_one_box,
    )


def grade_math(text: str, answer: Any, *, reveal_answer: bool = False) -> Grade:
    """Grade of one completion; the reference is the gold side of math-verify's asymmetric comparison."""
    from math_verify import verify

    gold = _read(_gold_text(answer))
    if not gold.items:
        return Grade(reward=None, answer_problem=f"no expression found in {shorten(repr(answer))}")
    predicted = _read(text)
    timeout_seconds = VERIFY_TIMEOUT_SECONDS if _has_alarms() else None
    if verify(gold.items, predicted.items, timeout_seconds=timeout_seconds):
        return Grade(reward=1.0)
    if gold.is_costly:
        return Grade(reward=None, answer_problem=f"{shorten(repr(answer))} takes too long to compute")
    feedback = _feedback(predicted)
    if reveal_answer:
        feedback += f" The correct answer is {answer}."
    return Grade(reward=0.0, feedback=feedback)


def extract_expression(text: str) -> str | None:
    """The final answer as math-verify read it, white space apart; equal values written differently stay different."""
    read_texts = _read_texts(_read(text).items)
    return "".join(read_texts[-1].split()) if read_texts else None


def has_one_box(text: str) -> bool:
    r"""Whether `text` has exactly one `\boxed{...}`, closed and not empty."""
    _, opening, rest = text.partition(r"\boxed{")
    if not opening or r"\boxed{" in rest:
        return False
    depth = 1
    for position, character in enumerate(rest):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return bool(rest[:position].strip())
    return False


def _gold_text(answer: Any) -> str:
    """Reference as text whose expression is delimited wherever it is nothing but an expression.

    Undelimited, math-verify takes the last plain number of a text: 10 of `10^{-3}`, 2 of `(1, 2)`.
    """
    if not isinstance(answer, str | int | float):
        return ""
    text = str(answer).strip()
    if _SCIENTIFIC_NUMBER.fullmatch(text):
        text = f"{Decimal(str(float(text))):f}"
    is_bare = text and not _LATEX_DELIMITER.search(text) and not _PROSE.search(_LATEX_TEXT.sub("", text))
    return f"${text}$" if is_bare else text


class _Reading(NamedTuple):
    """What math-verify read, an expression and its text, and whether its expression was left out as too costly."""

    items: list[Any]
    is_costly: bool


def _read(text: str) -> _Reading:
    text = shortened_runs(text)
    if is_costly_text(text):
        text = last_box(text)
        if is_costly_text(text):
            return _Reading([text], is_costly=True)
    items = _parse(text)
    if any(is_costly_expression(item) for item in items if not isinstance(item, str)):
        return _Reading(_read_texts(items), is_costly=True)
    return _Reading(items, is_costly=False)


def _parse(text: str) -> list[Any]:
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    items: list[Any] = parse(
        text,
        extraction_config=[LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()],
        parsing_timeout=PARSING_TIMEOUT_SECONDS if _has_alarms() else None,
    )
    return items


def _feedback(predicted: _Reading) -> str:
    read_texts = _read_texts(predicted.items)
    if not read_texts:
        return "The response has no final answer that can be read; it must be given in \\boxed{}."
    if predicted.is_costly:
        return f"The answer {shorten(read_texts[-1])} takes too long to compute."
    return f"The answer {shorten(read_texts[-1])} is wrong."


def _read_texts(predicted: list[Any]) -> list[str]:
    """The texts that math-verify read, not its expressions: printing one of SymPy's can take unbounded time."""
    return [item for item in predicted if isinstance(item, str)]


def _has_alarms() -> bool:
    return os.name == "posix" and threading.current_thread() is threading.main_thread()


math_reward = get_math_reward()
