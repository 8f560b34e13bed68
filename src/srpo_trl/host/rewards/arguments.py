"""Arguments of a reward function that are its own: what it changes in them, nobody else sees."""

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np

_ATOMS = frozenset({str, bytes, int, float, bool, complex, type(None)})

MAX_COPIED_BYTES = 2**20  # of an array or a tensor; larger ones are shared

# Live objects: that a function acts on them is their point.
SHARED_ARGUMENTS = ("environments",)


def private_arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of what TRL passes to a reward function; `environments` are passed as they are."""
    return {
        name: value if name in SHARED_ARGUMENTS else _private_argument(name, value)
        for name, value in given.items()
    }


def _private_argument(name: str, value: Any) -> Any:
    if name != "trainer_state":
        return private_copy(value)
    state = copy.copy(value)
    for attribute, content in vars(value).items() if hasattr(value, "__dict__") else ():
        setattr(state, attribute, private_copy(content))
    return state


def private_copy(value: Any) -> Any:
    """Return a copy of nested lists, tuples, dicts, sets, and of arrays and tensors up to `MAX_COPIED_BYTES`.

    Everything else (images, large tensors, objects of other classes) is the same object in the copy. What is nested
    too deep for Python is returned as it is: a model can write such JSON into a tool call.
    """
    try:
        return _copied(value)
    except RecursionError:
        return value


def _copied(value: Any) -> Any:
    kind = type(value)
    if kind in _ATOMS:
        return value
    if kind is list:
        # Token ids and texts: millions of them, none of which can be changed.
        return value[:] if _ATOMS.issuperset(map(type, value)) else [_copied(entry) for entry in value]
    if isinstance(value, dict):
        return _filled(value, {key: _copied(entry) for key, entry in value.items()})
    if kind is tuple:
        return tuple(map(_copied, value))
    if isinstance(value, list):
        made = copy.copy(value)
        made[:] = map(_copied, value)
        return made
    if isinstance(value, set | bytearray):
        return copy.copy(value)
    if isinstance(value, np.ndarray):
        return value.copy() if value.nbytes <= MAX_COPIED_BYTES else value
    if hasattr(value, "detach") and hasattr(value, "nbytes"):  # a tensor, without importing torch
        return value.detach().clone() if value.nbytes <= MAX_COPIED_BYTES else value
    return value


def _filled(value: dict[Any, Any], entries: dict[Any, Any]) -> dict[Any, Any]:
    if type(value) is dict:
        return entries
    made = copy.copy(value)  # an OrderedDict, a defaultdict
    made.update(entries)
    return made
