"""What a run has cost so far: seconds of training over all of its parts, and memory at its peak."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Seconds of training. It stands still before, between and after the parts of a run, and while one evaluates."""

    def __init__(self) -> None:
        self._earlier = 0.0
        self._started_at: float | None = None

    @property
    def seconds(self) -> float:
        """Seconds of training so far."""
        running = 0.0 if self._started_at is None else time.perf_counter() - self._started_at
        return self._earlier + running

    def start(self, earlier: float) -> None:
        """Run on from `earlier` seconds, those of the run's earlier parts."""
        self._earlier, self._started_at = earlier, time.perf_counter()

    def stop(self) -> None:
        """Stand still."""
        self._earlier, self._started_at = self.seconds, None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stand still while the block runs, then go on where the clock was running."""
        was_running = self._started_at is not None
        self.stop()
        try:
            yield
        finally:
            if was_running:
                self.start(self._earlier)


def peak_memory_gb(device: torch.device) -> float:
    """Return this process's peak memory since its start, in 10^9 bytes.

    On a CUDA device what torch has held in tensors there, else the resident memory of the whole process.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    import resource  # which Windows lacks

    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
