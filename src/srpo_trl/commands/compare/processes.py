"""Does the jobs: one process each, a few at a time, each resumed where it stopped and none made twice."""

import json
import os
import platform
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, NoReturn

import torch
from rich.console import Console

from srpo_trl.commands.compare.jobs import Comparison, Job
from srpo_trl.commands.compare.progress import RunProgress
from srpo_trl.commands.compare.start import OPTIONS_FILE
from srpo_trl.commands.train import last_complete_checkpoint
from srpo_trl.runs.read import RunHistory, read_checkpoint

OUTPUT_FILE = "output.txt"
JOB_LOCK_FILE = "lock"
HARDWARE_FILE = "hardware.json"
OUTPUT_TAIL = 12  # lines
LOOK_SECONDS = 2.0  # between two looks at a run's log


def run_all(comparison: Comparison, console: Console) -> dict[Job, str]:
    """Do every job that is not finished; return those that still are not, with the reason.

    Ended by Ctrl-C or SIGTERM, it ends its processes; the next call resumes the runs from their checkpoints.
    """
    processes: list[subprocess.Popen[bytes]] = []
    progress = RunProgress(console, comparison.metric)

    def done(job: Job) -> str:
        return _do(job, comparison, processes, progress, console)

    workers = ThreadPoolExecutor(max_workers=comparison.num_parallel)
    with _sigterm_as_exit(), progress.shown(), workers as pool:
        try:
            reasons = list(pool.map(done, comparison.jobs))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(processes):
                process.terminate()
            raise
    return {job: reason for job, reason in zip(comparison.jobs, reasons, strict=True) if reason}


def _do(
    job: Job,
    comparison: Comparison,
    processes: "list[subprocess.Popen[bytes]]",
    progress: RunProgress,
    console: Console,
) -> str:
    """Train one job to its end and return "", or why it has not come there."""
    if is_finished(job, comparison.max_seconds):
        return ""
    job.output_dir.mkdir(parents=True, exist_ok=True)
    with _lock(job.output_dir / JOB_LOCK_FILE) as lock:
        if lock is None:
            return "another process is making it"
        history = read_job(job)
        if history is not None and history.has_ended(comparison.max_seconds):
            return ""
        began = time.perf_counter()
        console.print(f"{job.name}: {'started' if history is None else 'resumed'}")
        (job.output_dir / OPTIONS_FILE).write_text(job.options, encoding="utf-8")
        _note_hardware(job, comparison.num_parallel)
        with (job.output_dir / OUTPUT_FILE).open("ab") as output:
            # The lock stays with the run: it holds as long as the process lives, whatever becomes of this one.
            inherited = [] if os.name == "nt" else [lock.fileno()]
            process = subprocess.Popen(job.command, stdout=output, stderr=output, pass_fds=inherited)
            processes.append(process)
            status = _followed(process, job, progress)
        if status == 0 and is_finished(job, comparison.max_seconds):
            console.print(f"{job.name}: finished, {time.perf_counter() - began:.0f} s")
            return ""
    lines = (job.output_dir / OUTPUT_FILE).read_text(encoding="utf-8", errors="replace").splitlines()
    tail = "\n".join(lines[-OUTPUT_TAIL:])
    return f"it ended with status {status}; the last lines of {job.output_dir / OUTPUT_FILE}:\n{tail}"


def _followed(process: "subprocess.Popen[bytes]", job: Job, progress: RunProgress) -> int:
    """Return the status that a run ends with, and say meanwhile how far it has come."""
    while True:
        try:
            status = process.wait(LOOK_SECONDS)
        except subprocess.TimeoutExpired:
            progress.look(job)
        else:
            progress.look(job)
            progress.end(job)
            return status


@contextmanager
def _sigterm_as_exit() -> Iterator[None]:
    """Let SIGTERM raise SystemExit in the block, so that what it has started is ended, too."""

    def leave(signal_number: int, frame: object) -> NoReturn:
        raise SystemExit(128 + signal_number)

    earlier = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier)


@contextmanager
def _lock(path: Path) -> Iterator[IO[bytes] | None]:
    """Hold the lock of one run, or yield None where a live process holds it; Windows has no such lock."""
    with path.open("ab") as file:
        if os.name == "nt":
            yield file
            return
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield file


def read_job(job: Job) -> RunHistory | None:
    """Return what the run had logged at its last complete checkpoint, or None where there is none."""
    checkpoint = last_complete_checkpoint(str(job.output_dir), reads_contents=False)
    return None if checkpoint is None else read_checkpoint(Path(checkpoint))


def is_finished(job: Job, max_seconds: float | None) -> bool:
    """Whether the run has come to its last step or used up its training time."""
    history = read_job(job)
    return history is not None and history.has_ended(max_seconds)


def _note_hardware(job: Job, num_parallel: int) -> None:
    """Add what this part of the run is trained on to the run's list of hardware."""
    known = read_hardware(job)
    here = {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine() + " CPU",
        "devices": torch.cuda.device_count() or 1,
        "cpu_cores": os.cpu_count(),
        "torch": version("torch"),
        "runs_at_a_time": num_parallel,
    }
    if here not in known:
        (job.output_dir / HARDWARE_FILE).write_text(
            json.dumps([*known, here], indent=2) + "\n", encoding="utf-8"
        )


def read_hardware(job: Job) -> list[dict[str, Any]]:
    """Return what the parts of the run were trained on."""
    path = job.output_dir / HARDWARE_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
