"""Attributes of one object, methods too, set for a while, where a subclass would set them for good."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def temporarily_set(target: Any, **values: Any) -> Iterator[None]:
    """Give attributes of `target` these values, and take them back at the end, also after an error."""
    own = {name: vars(target)[name] for name in values if name in vars(target)}
    try:
        vars(target).update(values)
        yield
    finally:
        for name in values:
            vars(target).pop(name, None)
        vars(target).update(own)
