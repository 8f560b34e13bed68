"""Processes of a command that run a module of the checkout. Needs no package: it starts before one is imported."""

import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]


def environment_of(device: str, settings: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this process's environment with settings, for a child that imports from the checkout.

    On a GPU it sees one card, the first where none is named: no child runs on several.
    """
    environment = {**os.environ, **(settings or {})}
    if device != "cpu":
        environment.setdefault("CUDA_VISIBLE_DEVICES", "0")
    paths = (str(_ROOT), str(_ROOT / "src"), environment.get("PYTHONPATH", ""))
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    return environment


def end_with(parent: int, end: Callable[[], None]) -> None:
    """Call `end` from a thread once the process of this number is no longer the parent, whatever ended it."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        end()

    threading.Thread(target=watch, daemon=True).start()
