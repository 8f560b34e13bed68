"""What takes memory in the phases of a step that can be its peak.

sampling -> teacher pass -> forward and loss -> backward -> update
"""

from dataclasses import dataclass, field
from typing import NamedTuple

PHASES = ("sampling", "teacher pass", "forward", "backward", "update")
SAMPLING, TEACHER, FORWARD, BACKWARD, UPDATE = PHASES


class Component(NamedTuple):
    """Something that takes memory.

    Attributes:
        name: what it is.
        num_shards: processes that hold equal parts of it; 1: every process holds all of it.
        on_cpu: whether it lies in CPU memory instead of the device's.
        phases: bytes on one process in each phase in which there are any.
    """

    name: str
    num_shards: int
    on_cpu: bool
    phases: dict[str, int]


@dataclass(frozen=True)
class MemoryEstimate:
    """The memory of a run with one micro-batch size.

    Attributes:
        micro_batch: rows of a micro-batch.
        accumulation: micro-batches of an optimizer step.
        components: those that take any memory, the largest first.
    """

    micro_batch: int
    accumulation: int
    components: tuple[Component, ...] = field(repr=False)

    def total(self, phase: str, *, on_cpu: bool = False) -> int:
        """Bytes of one process in a phase."""
        return sum(c.phases.get(phase, 0) for c in self.components if c.on_cpu == on_cpu)

    @property
    def peak_phase(self) -> str:
        """The phase in which one process holds most."""
        return max(PHASES, key=self.total)

    @property
    def peak(self) -> int:
        """Bytes of one process in that phase."""
        return self.total(self.peak_phase)

    @property
    def cpu_peak(self) -> int:
        """Most bytes that one process puts into CPU memory."""
        return max(self.total(phase, on_cpu=True) for phase in PHASES)
