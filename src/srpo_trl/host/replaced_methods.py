"""Methods of one object replaced for a while, where a subclass would override them for good."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def replaced_methods(target: Any, **methods: Callable[..., Any]) -> Iterator[None]:
    """Let methods of `target`, and of no other object of its class, be these for the length of the block."""
    own = {name: vars(target)[name] for name in methods if name in vars(target)}
    vars(target).update(methods)
    try:
        yield
    finally:
        for name in methods:
            delattr(target, name)
        vars(target).update(own)
