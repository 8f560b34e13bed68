"""Which mathematical texts and expressions cost too much to be read or compared: towers, factorials, deep nesting.

An alarm cannot interrupt one long product of integers, and these are a few characters of model-written text. The
bounds are estimates in linear time; what is within them takes milliseconds.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

MAX_DIGITS = 50_000  # of a number that a comparison computes
MAX_EXPANDED_POWER = 100  # of a sum with symbols, which a comparison may expand
MAX_TERMS = 10_000  # of a sum or a product over an index
MAX_DEPTH = 25  # of brackets
MAX_BOX = 1_000  # characters in one \boxed{}

MAX_RUN = 500  # characters of numbers, operators and white space in a row
MAX_UNCLOSED = 20  # LaTeX openings without their end

_BOX_OR_BRACE = re.compile(r"\\boxed\s*\{|[{}]")
_RUN = re.compile(r"[\d.\s+\-*/^()×÷]+")
_SPACE = re.compile(r"\s")

# What is computed while a text is read; everything else waits for the comparison.
_COMPUTED_AT_ONCE = re.compile(r"gcd|lcm|binom|choose|\\sqrt\s*\[|//")
_POWER = r"[\s{}()]*(?:\^|\*\*)[\s{}()+-]*"
_HUGE_NUMBERS = re.compile(
    rf"(\d+){_POWER}(\d+){_POWER}(\d+)"  # a tower
    rf"|(?:\^|\*\*)[\s{{}}()+-]*\d{{7,}}"  # a huge exponent
    r"|\d{6,}\s*!|![\s})]*!|\^[\s{}()]*\d+[\s{}()]*!"  # a huge factorial, one of a factorial, one of a power
    r"|binom\s*\{\s*\d{6,}\s*\}\s*\{\s*\d{5,}"
)


def shortened_runs(text: str) -> str:
    """Return the text with nothing that makes math-verify's patterns take quadratic time.

    Runs of numbers and operators of more than `MAX_RUN` characters are broken up by a semicolon at white space, and
    of LaTeX openings without their end the last `MAX_UNCLOSED` stay. Other texts are returned as they are.
    """
    text = _RUN.sub(lambda run: run[0] if len(run[0]) <= MAX_RUN else _broken_up(run[0]), text)
    if text.count(r"\[") > MAX_UNCLOSED:
        text = _few_unclosed(text, r"\[", r"\]")
    if text.count(r"\(") > MAX_UNCLOSED:  # which ends in its line
        text = "\n".join(_few_unclosed(line, r"\(", r"\)") for line in text.split("\n"))
    return text


def _broken_up(run: str) -> str:
    pieces, start = [], 0
    while (space := _SPACE.search(run, start + MAX_RUN // 2)) is not None:
        pieces.append(run[start : space.end()])
        start = space.end()
    return ";".join([*pieces, run[start:]])


def _few_unclosed(text: str, opening: str, closing: str) -> str:
    closed, end, rest = text.rpartition(closing)
    surplus = rest.count(opening) - MAX_UNCLOSED
    return text if surplus <= 0 else closed + end + rest.replace(opening, "", surplus)


def is_costly_text(text: str) -> bool:
    """Whether reading the text may take long: deep brackets, long boxes, or huge numbers that are computed at once."""
    return (
        _depth(text) > MAX_DEPTH
        or _longest_box(text) > MAX_BOX
        or bool(_COMPUTED_AT_ONCE.search(text) and _HUGE_NUMBERS.search(text))
    )


def _longest_box(text: str) -> int:
    r"""Return the number of characters in the longest `\boxed{...}`; one that is not closed extends to the end."""
    longest, starts = 0, []
    for match in _BOX_OR_BRACE.finditer(text):
        if match[0] != "}":
            starts.append(match.end() if len(match[0]) > 1 else None)
        elif starts and (start := starts.pop()) is not None:
            longest = max(longest, match.start() - start)
    return max([longest, *(len(text) - start for start in starts if start is not None)])


def _depth(text: str) -> int:
    depth = deepest = 0
    for character in re.findall(r"[(){}\[\]]", text):
        depth = max(depth + (1 if character in "({[" else -1), 0)
        deepest = max(deepest, depth)
    return deepest


def last_box(text: str) -> str:
    r"""Return the last `\boxed{...}` with all that follows it; empty where there is none."""
    start = text.rfind(r"\boxed")
    return text[start:] if start >= 0 else ""


class _Size(NamedTuple):
    """An upper bound of a number's digits, before or after the point, and whether it is a number without symbols."""

    digits: float
    is_numeric: bool


class _TooLargeError(Exception):
    """A part of the expression is beyond the bounds."""


def is_costly_expression(expression: Any) -> bool:
    """Whether comparing a SymPy expression may compute numbers of more than `MAX_DIGITS` digits, or expand too much.

    Args:
        expression: as math-verify reads it, nothing of it computed yet; a matrix too.
    """
    try:
        _size(expression)
    except (_TooLargeError, RecursionError):
        return True
    return False


def _size(expression: Any) -> _Size:
    import sympy

    if isinstance(expression, sympy.Rational):
        return _Size(math.log10(max(abs(expression.p), expression.q, 1)), True)
    if isinstance(expression, sympy.Float):
        return _Size(_float_digits(expression), True)
    arguments = getattr(expression, "args", None)
    if isinstance(expression, sympy.MatrixBase):
        arguments = tuple(expression)
    if not arguments:
        return _Size(1.0, bool(getattr(expression, "is_number", False)))
    sizes = [_size(argument) for argument in arguments]
    size = _node_size(expression, sizes)
    if not size.digits <= MAX_DIGITS:
        raise _TooLargeError
    return size


def _float_digits(number: Any) -> float:
    _, mantissa, exponent, _ = number._mpf_
    return abs(float(exponent) + int(mantissa).bit_length()) * math.log10(2)


def _node_size(expression: Any, sizes: Sequence[_Size]) -> _Size:
    import sympy

    is_numeric = all(size.is_numeric for size in sizes)
    total = sum(size.digits for size in sizes) + 1.0
    if isinstance(expression, sympy.Pow):
        return _Size(_power_digits(expression, *sizes), is_numeric)
    if isinstance(expression, sympy.Sum | sympy.Product):
        if any(size.digits > math.log10(MAX_TERMS) for size in sizes[1:]):
            raise _TooLargeError
        return _Size(total, is_numeric)
    of_function = _GROWTH.get(type(expression).__name__)
    if of_function is not None and is_numeric:
        return _Size(of_function(sizes), True)
    return _Size(total, is_numeric)


def _power_digits(power: Any, base: _Size, exponent: _Size) -> float:
    if not exponent.is_numeric:
        return base.digits + exponent.digits
    times = _ten_to_the(exponent.digits)
    if not base.is_numeric and power.base.is_Add and times > MAX_EXPANDED_POWER:
        raise _TooLargeError
    return base.digits * times if base.digits else 0.0


def _factorial_digits(sizes: Sequence[_Size]) -> float:
    number = _ten_to_the(max(size.digits for size in sizes))
    return number * max(math.log10(number), 1.0)


def _binomial_digits(sizes: Sequence[_Size]) -> float:
    return _ten_to_the(min(size.digits for size in sizes)) * max(size.digits for size in sizes)


def _ten_to_the(digits: float) -> float:
    return math.pow(10.0, min(digits, 300.0))


_GROWTH: dict[str, Callable[[Sequence[_Size]], float]] = {
    **dict.fromkeys(
        ("factorial", "factorial2", "subfactorial", "gamma", "RisingFactorial", "FallingFactorial"),
        _factorial_digits,
    ),
    **dict.fromkeys(("fibonacci", "lucas", "catalan", "bell", "bernoulli", "euler"), _factorial_digits),
    "binomial": _binomial_digits,
}
