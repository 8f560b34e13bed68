"""Seconds and bytes of a contender: in turns, and beyond what every contender needs."""

import gc
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.peers import BenchmarkCase, Contender, Size, loss_and_gradients, make_case


class Timing(NamedTuple):
    """Seconds of one call."""

    median: float
    low: float
    high: float

    def times(self, factor: float) -> "Timing":
        """The same of `factor` calls."""
        return Timing(*(factor * value for value in self))


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(device: torch.device) -> float:
    """Read the clock once the device has done what it was given; only differences mean something.

    On a CPU with one thread it is the process's own time, which other processes do not stretch.
    """
    synchronize(device)
    if device.type == "cpu" and torch.get_num_threads() == 1:
        return time.process_time()
    return time.perf_counter()


def time_alternately(
    calls: Mapping[str, Callable[[], object]], device: torch.device, *, repeats: int, warmup: int
) -> dict[str, Timing | None]:
    """Time A B C A B C ..., so that a slow moment of the machine meets all alike; None: it ran out of memory."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    too_large = set()
    for turn in range(warmup + repeats):
        for name, call in calls.items():
            if name in too_large:
                continue
            try:
                start = seconds(device)
                call()
                elapsed = seconds(device) - start
                if turn >= warmup:
                    taken[name].append(elapsed)
            except torch.OutOfMemoryError:
                too_large.add(name)
            if name in too_large:  # only now, as the error held on to what the call had made
                free_memory(device)
    return {
        name: None if name in too_large else Timing(statistics.median(s), min(s), max(s))
        for name, s in taken.items()
    }


def free_memory(device: torch.device) -> None:
    """Give back what nothing refers to any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def extra_bytes(contender: Contender, size: Size, device: torch.device) -> int | None:
    """Return the peak memory of one loss beyond inputs, gradients and the head gradient's float32 accumulator.

    On CUDA from the allocator's peak. Elsewhere from the growth of a fresh process's resident memory.

    Args:
        contender: what to run; sent to a new process where it is not CUDA.
        size: of the case.
        device: to run on.

    Returns:
        Bytes; negative where the contender needs less than counted off. None: it ran out of memory.
    """
    if device.type == "cuda":
        case = make_case(size, device)
        free_memory(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        try:
            loss_and_gradients(contender, case)
        except torch.OutOfMemoryError:
            return None
        peak = torch.cuda.max_memory_allocated(device) - before
        return peak - _counted_off(contender, case)
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as fresh_process:
        return fresh_process.submit(_resident_growth, contender, size, device).result()


def _resident_growth(contender: Contender, size: Size, device: torch.device) -> int:
    loss_and_gradients(contender, make_case(Size(8, 8, 256, size.dtype), device))  # loads what it needs
    case = make_case(size, device)
    free_memory(device)
    before = resident_bytes("VmRSS")
    loss_and_gradients(contender, case)
    return resident_bytes("VmHWM") - before - _counted_off(contender, case)


def _counted_off(contender: Contender, case: BenchmarkCase) -> int:
    return case.gradient_bytes + (case.accumulator_bytes if contender.has_accumulator else 0)


def resident_bytes(field: str) -> int:
    """VmRSS: now; VmHWM: at the most since the process began. Without Linux's /proc, both are the latter.

    Linux's own `ru_maxrss` counts the parent's memory at the moment it started this process.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS, else KiB
        return peak if sys.platform == "darwin" else 1024 * peak
    line = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])
