"""Whether options have the type that they are annotated with and lie in their range, and rules over several of them.

An option's range stands in its field's metadata. Checks take values, by the options' names, and return or yield
problems: what was given, what is required, what to do.
"""

import re
import types
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from inspect import signature
from numbers import Integral, Real
from typing import Any, Literal, Protocol, Union, get_args, get_origin

LARGEST = 1e30  # of a finite number: its products with sizes and counts stay finite
LARGEST_FLOAT = 2**1024  # whole numbers from here on are no float

Rule = Callable[..., Iterator[str]]


class Values(Protocol):
    """What an option may be, among values of its type; `str` says it in words."""

    def holds(self, value: Any) -> bool:
        """Return whether a value lies inside; True of a value of another type, such as None."""


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, without a bound that is open; never NaN."""

    low: float = -LARGEST
    high: float = LARGEST
    open_low: bool = False
    open_high: bool = False

    def holds(self, value: Any) -> bool:
        """Return whether a number lies inside."""
        is_number = isinstance(value, Real)
        if not is_number:
            return True
        is_open = (self.open_low and value == self.low) or (self.open_high and value == self.high)
        return self.low <= value <= self.high and not is_open

    def __str__(self) -> str:
        low = f"above {self.low:g}" if self.open_low else f"at least {self.low:g}"
        high = f"{'below' if self.open_high else 'at most'} {self.high:g}"
        bounds = [low] * (self.low > -LARGEST) + [high] * (self.high < LARGEST)
        return " and ".join(bounds) or "finite"


@dataclass(frozen=True)
class Fields:
    """Texts that hold each of the names once in braces, and no other name."""

    names: tuple[str, ...]

    def holds(self, value: Any) -> bool:
        """Return whether a text's fields are these."""
        return not isinstance(value, str) or sorted(re.findall(r"\{(\w+)\}", value)) == sorted(self.names)

    def __str__(self) -> str:
        return (
            f"with each of {', '.join(f'{{{name}}}' for name in self.names)} exactly once and no other field"
        )


@dataclass(frozen=True)
class DifferentOf:
    """Lists of one or more different ones of the names."""

    names: tuple[str, ...]

    def holds(self, value: Any) -> bool:
        """Return whether a list has at least one item, each once and each a name."""
        is_set = isinstance(value, list) and len(set(map(str, value))) == len(value)
        return is_set and bool(value) and set(value) <= set(self.names)

    def __str__(self) -> str:
        return f"different ones of {', '.join(map(repr, self.names))}"


FINITE = Range()


def at_least(low: float) -> Range:
    """Return the numbers from `low` on."""
    return Range(low)


def above(low: float, high: float = LARGEST) -> Range:
    """Return the numbers above `low`, up to `high`."""
    return Range(low, high, open_low=True)


class OptionMetadata(dict[str, Any]):
    """Help and range of an option.

    TRL's and transformers' parsers, which pass all of a copy's keys on to argparse, see the help alone.
    """

    def __init__(self, *, help: str, range: Values) -> None:
        super().__init__(help=help, range=range)

    def copy(self) -> dict[str, Any]:
        """Return what argparse knows."""
        return {"help": self["help"]}

    def keys(self) -> Any:
        """Return the keys that argparse knows."""
        return self.copy().keys()


def option(default: Any, help: str, allowed: Values | None = None) -> Any:
    """Return the field of an option.

    Args:
        default: its default.
        help: what it is for.
        allowed: what it may be among values of its type; None: whatever the type allows, numbers if finite.
    """
    return field(
        default=default,
        metadata={"help": help} if allowed is None else OptionMetadata(help=help, range=allowed),
    )


def value_problems(
    values: Mapping[str, Any], annotations: Mapping[str, Any], ranges: Mapping[str, Values]
) -> dict[str, str]:
    """Return, by name, what is wrong with each option alone.

    Args:
        values: of the options.
        annotations: types of the options to check, resolved.
        ranges: what they may be; numbers without one, any finite number.
    """
    problems = {}
    for name, annotation in annotations.items():
        value, allowed = values[name], ranges.get(name, FINITE)
        if not is_of(value, annotation):
            problems[name] = f"{name}={value!r} must be {described(annotation)}."
        elif not allowed.holds(value):
            problems[name] = f"{name}={value!r} must be {described(annotation)}, {allowed}."
    return problems


def rule_problems(rules: Iterable[Rule], values: Mapping[str, Any], wrong: Collection[str]) -> Iterator[str]:
    """Yield what rules over several options find.

    Args:
        rules: functions whose parameters are named as the options that they read.
        values: of all options.
        wrong: options that are wrong by themselves; a rule that reads one is left out.
    """
    for rule in rules:
        names = signature(rule).parameters
        if not set(names) & set(wrong):
            yield from rule(**{name: values[name] for name in names})


def is_of(value: Any, annotation: Any) -> bool:
    """Return whether a value has the annotated type; a bool is no number; a whole number is a float."""
    if _is_union(annotation):
        return any(is_of(value, option) for option in get_args(annotation))
    kind = get_origin(annotation) or annotation
    if kind is Any:
        return True
    if kind is Literal:
        return value in get_args(annotation)
    if kind in (int, float):
        is_number = isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
        return is_number and (isinstance(value, float) or abs(value) < LARGEST_FLOAT)
    if kind is list and get_args(annotation):
        return isinstance(value, list) and all(is_of(item, get_args(annotation)[0]) for item in value)
    if kind is tuple and get_args(annotation):  # a list in YAML and JSON
        kinds = get_args(annotation)
        kinds = kinds[:1] * len(value) if kinds[-1] is Ellipsis and isinstance(value, list | tuple) else kinds
        return isinstance(value, list | tuple) and len(value) == len(kinds) and all(map(is_of, value, kinds))
    return isinstance(value, kind)


def described(annotation: Any) -> str:
    """Return an annotation in words."""
    kind = get_origin(annotation) or annotation
    if _is_union(annotation):
        return " or ".join(dict.fromkeys(map(described, get_args(annotation))))
    if kind is Literal:
        return f"one of {', '.join(map(repr, get_args(annotation)))}"
    if kind is list and get_args(annotation):
        return f"a list, each item {described(get_args(annotation)[0])}"
    if kind is tuple and get_args(annotation):
        kinds = get_args(annotation)
        number = "" if kinds[-1] is Ellipsis else f" of {len(kinds)}"
        return f"a list{number}, each item {' or '.join(dict.fromkeys(described(k) for k in kinds if k is not ...))}"
    words = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "text",
        dict: "a dictionary",
        types.NoneType: "None",
    }
    return words.get(kind) or ("text" if issubclass(kind, str | Enum) else f"a {kind.__name__}")


def _is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, types.UnionType)
