"""Whether an option's value has the type that the option is annotated with, and that type in words."""

import types
from dataclasses import Field
from enum import Enum
from numbers import Integral, Real
from typing import Any, Literal, Union, get_args, get_origin

LARGEST_FLOAT = 2**1024  # whole numbers from here on are no float


def is_of(value: Any, annotation: Any) -> bool:
    """Return whether a value has the annotated type; a bool is no number; a whole number is a float."""
    if annotation is Any:
        return True
    if _is_union(annotation):
        return any(is_of(value, option) for option in get_args(annotation))
    kind = get_origin(annotation) or annotation
    if kind is Literal:
        return value in get_args(annotation)
    if kind in (int, float):
        is_number = isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
        return is_number and (isinstance(value, float) or abs(value) < LARGEST_FLOAT)
    if kind is list and get_args(annotation):
        return isinstance(value, list) and all(is_of(item, get_args(annotation)[0]) for item in value)
    return isinstance(value, kind)


def described(annotation: Any) -> str:
    """Return an annotation in words."""
    if _is_union(annotation):
        return " or ".join(dict.fromkeys(map(described, get_args(annotation))))
    kind = get_origin(annotation) or annotation
    if kind is Literal:
        return " or ".join(map(repr, get_args(annotation)))
    if kind is list and get_args(annotation):
        return f"a list, each item {described(get_args(annotation)[0])}"
    words = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "text",
        dict: "a dictionary",
        types.NoneType: "None",
    }
    return words.get(kind) or ("text" if issubclass(kind, str) else f"a {kind.__name__}")


def choices_of(field: Field, annotation: Any) -> tuple[str, ...]:
    """Return the values that an option's text is one of, by its enum or its help; empty where any text will do."""
    options = get_args(annotation) if _is_union(annotation) else (annotation,)
    enums = [option for option in options if isinstance(option, type) and issubclass(option, Enum)]
    return (*(member.value for enum in enums for member in enum), *(field.metadata.get("choices") or ()))


def _is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, types.UnionType)
