"""A plan: what takes memory at the moments of a step that can be its peak.

sampling -> teacher pass -> forward and loss -> backward -> update
"""

from dataclasses import dataclass, field
from typing import NamedTuple

MOMENTS = ("sampling", "teacher pass", "forward", "backward", "update")
SAMPLING, TEACHER, FORWARD, BACKWARD, UPDATE = MOMENTS


class Component(NamedTuple):
    """Something that takes memory.

    Attributes:
        name: what it is.
        num_parts: processes that hold equal parts of it; 1: every process holds all of it.
        on_cpu: it lies in the host's memory.
        moments: bytes on one process at each moment at which there are any.
    """

    name: str
    num_parts: int
    on_cpu: bool
    moments: dict[str, int]


@dataclass(frozen=True)
class Plan:
    """The memory of a run with one micro-batch size.

    Attributes:
        micro_batch: rows of a micro-batch.
        accumulation: micro-batches of an optimizer step.
        components: those that take any memory, the largest first.
    """

    micro_batch: int
    accumulation: int
    components: tuple[Component, ...] = field(repr=False)

    def total(self, moment: str, *, on_cpu: bool = False) -> int:
        """Bytes of one process at a moment."""
        return sum(c.moments.get(moment, 0) for c in self.components if c.on_cpu == on_cpu)

    @property
    def peak_moment(self) -> str:
        """The moment at which one process holds most."""
        return max(MOMENTS, key=self.total)

    @property
    def peak(self) -> int:
        """Bytes of one process at that moment."""
        return self.total(self.peak_moment)

    @property
    def host_peak(self) -> int:
        """Most bytes that one process puts into the host's memory."""
        return max(self.total(moment, on_cpu=True) for moment in MOMENTS)
