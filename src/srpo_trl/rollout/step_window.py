"""All micro-batches of an optimizer step, in hand before the first of them is trained on.

Normalizers that span the optimizer step (SRPO, sections 3.2 and 3.3) must be known before its first loss.
"""

from collections.abc import Callable, Sequence
from typing import Any


class StepWindow:
    """The micro-batches of the optimizer step under way."""

    def __init__(self) -> None:
        self._coming: list[Any] = []
        self._ready: list[Any] = []

    @property
    def is_used_up(self) -> bool:
        """Whether the micro-batch handed out last is the step's last."""
        return not self._ready

    def begin(self, batches: Sequence[Any]) -> None:
        """Take the dataloader's batches of the optimizer step that begins."""
        self._coming, self._ready = list(batches), []

    def next(self, prepare: Callable[[int, Any], Any], opened: Callable[[list[Any]], None]) -> Any:
        """Return the step's next micro-batch.

        Args:
            prepare: makes the micro-batch at a position of the step out of the dataloader's batch; called for all
                positions in order before the first micro-batch is returned.
            opened: takes all of them, in order, before the first is returned.
        """
        if not self._ready:
            self._ready = [prepare(position, batch) for position, batch in enumerate(self._coming)]
            opened(self._ready)
        return self._ready.pop(0)
