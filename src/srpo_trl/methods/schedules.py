"""Values by optimizer step."""

from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")


def constant(value: Value) -> Callable[[int], Value]:
    """Return the same value at every step."""
    return lambda step: value


def switch(before: Value, after: Value, at_step: int | None) -> Callable[[int], Value]:
    """Return `before` for the first `at_step` optimizer steps, then `after`; None: never."""
    return lambda step: before if at_step is None or step < at_step else after


def linear(start: float, end: float, *, hold: int = 0, steps: int | None) -> Callable[[int], float]:
    """Return `start` for `hold` steps, which then goes to `end` over `steps` more; None: it stays.

    Raises:
        ValueError: `steps` is below 1.
    """
    if steps is not None and steps < 1:
        raise ValueError(f"a schedule over {steps} steps; there must be at least 1")

    def at(step: int) -> float:
        if steps is None:
            return start
        return start + (end - start) * min(max(step - hold, 0) / steps, 1.0)

    return at
