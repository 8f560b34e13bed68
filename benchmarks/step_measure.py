"""Seconds and peak memory of a trainer's steps: in turns, each time from a fresh model."""

import statistics
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from multiprocessing import get_context
from typing import NamedTuple

import torch

from benchmarks.earlier import found_first
from benchmarks.measure import free_memory, resident_bytes
from benchmarks.step_rollouts import Case
from benchmarks.step_trainers import PARTS, make_model, make_trainer

AT = " at "  # between a contender's name and a commit


class Run(NamedTuple):
    """What some steps of one trainer took.

    Attributes:
        steps: of each step after the first, seconds by part.
        peak_bytes: at the most, above the model alone.
    """

    steps: list[dict[str, float]]
    peak_bytes: int

    @property
    def seconds(self) -> float:
        """Median of the steps."""
        return statistics.median(sum(step.values()) for step in self.steps)


def train(contender: str, case: Case, device: torch.device, num_steps: int) -> Run:
    """Train a fresh model for `num_steps` steps after one that warms up.

    Returns:
        Its run. On a CPU the peak is that of the process, and means nothing where the process has done more before.
    """
    on_gpu = device.type == "cuda"
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(case, device)
        free_memory(device)
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device) if on_gpu else resident_bytes("VmRSS")
        trainer = make_trainer(contender, case, model, device, folder, 1 + num_steps)
        trainer.train()
        peak = torch.cuda.max_memory_allocated(device) if on_gpu else resident_bytes("VmHWM")
    return Run(trainer.watch.steps[1:], peak - before)


def train_apart(contender: str, case: Case, device: torch.device, num_steps: int) -> Run:
    """Do the same in a process of its own, so that the peak is this trainer's, or that of another commit."""
    name, _, commit = contender.partition(AT)
    with (
        found_first(commit) if commit else nullcontext(),
        ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as fresh_process,
    ):
        return fresh_process.submit(train, name, case, device, num_steps).result()


def alternate(
    contenders: Sequence[str],
    case: Case,
    device: torch.device,
    *,
    num_steps: int,
    rounds: int,
    apart: bool | None = None,
) -> dict[str, list[Run] | None]:
    """Train all contenders in turn, every second round in the opposite order.

    Args:
        contenders: keys of `CONTENDERS`, each with `AT` and a commit behind it where another commit's is meant.
        case: what they train on.
        device: to run on.
        num_steps: that are timed of each run.
        rounds: runs of each contender.
        apart: whether each run has a process of its own; None: on a CPU, where memory is measured by process.

    Returns:
        The runs by contender, in the order of the rounds; None: it ran out of memory.
    """
    if apart is None:
        apart = device.type == "cpu"
    runs: dict[str, list[Run] | None] = {name: [] for name in contenders}
    for number in range(rounds):
        for name in contenders[:: -1 if number % 2 else 1]:
            taken = runs[name]
            if taken is None:
                continue
            try:
                run = train_apart if apart or AT in name else train
                taken.append(run(name, case, device, num_steps))
            except torch.OutOfMemoryError:
                runs[name] = None
            free_memory(device)  # only now, as the error held on to what the step had made
    return runs


def medians(runs: Sequence[Run]) -> dict[str, float]:
    """Return the median seconds of each part over all steps."""
    steps = [step for run in runs for step in run.steps]
    return {name: statistics.median(step[name] for step in steps) for name in PARTS}
