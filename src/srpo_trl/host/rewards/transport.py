"""Reward functions and their arguments as bytes for another process, or why they cannot be sent there.

What a module defines is sent by its name; what a script, a notebook or a function body defines is sent as it is (dill).
Nothing is sent whose copy would not be the same thing: locks, files, connections, memory of an accelerator.
"""

import io
import pickle
import sys
import threading
from collections.abc import Iterator, Mapping
from types import GeneratorType, SimpleNamespace
from typing import Any

from srpo_trl.host.rewards.run import LOGS, NamedFunction

MAX_FUNCTION_BYTES = 256 * 2**20

_LIVE_TYPES = (type(threading.Lock()), type(threading.RLock()), threading.Thread, io.IOBase, GeneratorType)
_LIVE_CLASSES = (  # of modules that are looked up only where they are imported already
    ("transformers.trainer", "Trainer"),
    ("accelerate.accelerator", "Accelerator"),
    ("torch.distributed", "ProcessGroup"),
    ("socket", "socket"),
)


class CannotBeSentError(Exception):
    """A function or an argument cannot be taken to another process; the message says why."""


def function_bytes(function: NamedFunction) -> bytes:
    """Return a reward function for `read_function`, with whatever it refers to.

    Raises:
        CannotBeSentError: it holds something that lives in this process alone, or is too large.
    """
    import dill

    live_types = (*_LIVE_TYPES, *_imported_classes())

    class Pickler(dill.Pickler):
        def save(self, obj: Any, save_persistent_id: bool = True) -> None:
            if isinstance(obj, live_types):
                raise CannotBeSentError(
                    f"it holds a {type(obj).__name__}, which lives in the training process"
                )
            if getattr(obj, "is_cuda", False) is True:
                raise CannotBeSentError("it holds a tensor on a GPU, of which there would be two")
            super().save(obj, save_persistent_id)

    buffer = _BoundedBytes()
    try:
        Pickler(buffer, recurse=True).dump(function)
    except CannotBeSentError:
        raise
    except Exception as error:  # whatever the methods raise by which an object is pickled
        raise CannotBeSentError(f"it cannot be pickled ({type(error).__name__}: {error})") from error
    return buffer.getvalue()


def read_function(data: bytes) -> NamedFunction:
    """Return the reward function of `function_bytes`."""
    import dill

    function: NamedFunction = dill.loads(data)
    return function


def arguments_bytes(given: Mapping[str, Any]) -> bytes:
    """Return, pickled, the arguments that TRL passes without its logs, and the names of those.

    `trainer_state` becomes a plain object with the same attributes: its class would import transformers.

    Raises:
        CannotBeSentError: there are environments, or an argument cannot be pickled.
    """
    if given.get("environments") is not None:
        raise CannotBeSentError("it is given `environments`, which live in the training process")
    arguments = {name: value for name, value in given.items() if name not in LOGS}
    logs = [name for name in LOGS if name in given]
    if hasattr(arguments.get("trainer_state"), "__dict__"):
        arguments["trainer_state"] = SimpleNamespace(**vars(arguments["trainer_state"]))
    try:
        return pickle.dumps((arguments, logs), protocol=pickle.HIGHEST_PROTOCOL)
    except Exception as error:  # whatever the methods raise by which an object is pickled
        name = next((name for name, value in arguments.items() if not _is_picklable(value)), "")
        raise CannotBeSentError(
            f"its argument {name!r} cannot be pickled ({type(error).__name__}: {error})"
        ) from error


def _is_picklable(value: Any) -> bool:
    try:
        pickle.dumps(value)
    except Exception:  # as above
        return False
    return True


def _imported_classes() -> Iterator[type]:
    for module, name in _LIVE_CLASSES:
        found = getattr(sys.modules.get(module), name, None)
        if isinstance(found, type):
            yield found


class _BoundedBytes(io.BytesIO):
    def write(self, data: Any) -> int:
        if self.tell() + len(data) > MAX_FUNCTION_BYTES:
            raise CannotBeSentError(
                f"with what it refers to it is larger than {MAX_FUNCTION_BYTES >> 20} MiB"
            )
        return super().write(data)
