"""What a reward function gave, as scores: numbers that float32 holds, or None; everything else is refused by name."""

import math
from collections.abc import Iterable, Mapping, Sequence, Set
from decimal import Decimal
from numbers import Real
from typing import Any

FLOAT32_MAX = (2 - 2**-23) * 2.0**127

Scores = list[float | None]


def score_limits(weights: Sequence[float]) -> list[float]:
    """Return the largest size of a score that each function may give, so that the weighted sum fits into float32.

    Args:
        weights: of the functions, `reward_weights`.
    """
    return [FLOAT32_MAX / max(1.0, abs(weight) * len(weights)) for weight in weights]


def checked_scores(scores: Any, num_rows: int, name: str, limit: float = FLOAT32_MAX) -> Scores:
    """Return what a reward function gave, one number or None per rollout.

    Args:
        scores: a sequence, an iterator, an array or a tensor. Infinity and NaN are let through: they mean no score.
        num_rows: of the batch.
        name: of the function.
        limit: the largest size of a finite score.
    Raises:
        ValueError: it is no sequence, of another length, or holds something else, or a number beyond the limit.
    """
    if hasattr(scores, "tolist"):  # tensors and arrays
        scores = scores.tolist()
    if isinstance(scores, str | bytes | Mapping | Set) or not isinstance(scores, Iterable):
        raise ValueError(
            f"The reward function {name!r} returned {_shown(scores)}; it must return a list with one number, or None, "
            "per completion."
        )
    scores = list(scores)
    if len(scores) != num_rows:
        raise ValueError(
            f"The reward function {name!r} returned {len(scores)} rewards for {num_rows} completions; it must return "
            "one number, or None, per completion."
        )
    return [_checked_score(score, row, name, limit) for row, score in enumerate(scores)]


def _checked_score(score: Any, row: int, name: str, limit: float) -> float | None:
    number = score.item() if hasattr(score, "item") else score
    if number is None:
        return None
    if not isinstance(number, Real | Decimal):
        raise ValueError(
            f"The reward function {name!r} returned {_shown(score)} for completion {row}; it must return a number, or "
            "None where it cannot tell."
        )
    value = _as_float(number)
    if abs(value) > limit and not _is_infinite(number):
        reason = (
            "float32 holds"
            if limit == FLOAT32_MAX
            else "float32 holds once the rewards are weighted and summed (reward_weights)"
        )
        raise ValueError(
            f"The reward function {name!r} returned {_shown(score)} for completion {row}; rewards are float32, and "
            f"{limit:.4g} is the largest that {reason}. Scale the rewards, or return None where it cannot tell."
        )
    return value


def _as_float(number: Any) -> float:
    """Return the number; infinity where it is too large for a float, NaN for a signalling one."""
    if isinstance(number, Decimal) and number.is_nan():
        return math.nan
    try:
        return float(number)
    except OverflowError:  # integers and fractions
        return math.inf if number > 0 else -math.inf


def _is_infinite(number: Any) -> bool:
    """Whether the number itself is infinite; one that no float holds (a long double, an integer) is not."""
    return bool(number in (math.inf, -math.inf))


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python writes
        text = f"a number of {value.bit_length()} bits" if isinstance(value, int) else "a value"
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"
