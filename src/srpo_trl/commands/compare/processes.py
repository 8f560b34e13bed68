"""Makes the runs: one process each, a few at a time, each resumed where it stopped and none made twice."""

import fcntl
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
from transformers.trainer import TRAINER_STATE_NAME

from srpo_trl.commands.compare.jobs import Plan, Run
from srpo_trl.commands.compare.start import OPTIONS_FILE
from srpo_trl.commands.train import last_complete_checkpoint
from srpo_trl.host.training_clock import TRAINING_SECONDS

LOG_FILE = "log.txt"
LOCK_FILE = "lock"
HARDWARE_FILE = "hardware.json"
LOG_TAIL = 12  # lines


def run_all(plan: Plan, console: Console) -> dict[Run, str]:
    """Make every run that is not finished; return those that still are not, with the reason.

    Ended by Ctrl-C or SIGTERM, it ends its runs; the next call resumes them from their checkpoints.
    """
    processes: dict[Run, subprocess.Popen[bytes]] = {}
    with _sigterm_as_exit(), ThreadPoolExecutor(max_workers=plan.jobs) as pool:
        try:
            reasons = list(pool.map(lambda run: _make(run, plan, processes, console), plan.runs))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(processes.values()):
                process.terminate()
            raise
    return {run: reason for run, reason in zip(plan.runs, reasons, strict=True) if reason}


def _make(run: Run, plan: Plan, processes: dict[Run, "subprocess.Popen[bytes]"], console: Console) -> str:
    """Train one run to its end and return "", or why it has not come there."""
    if is_finished(run, plan.max_seconds):
        return ""
    run.output_dir.mkdir(parents=True, exist_ok=True)
    with _lock(run.output_dir / LOCK_FILE) as lock:
        if lock is None:
            return "another process is making it"
        if is_finished(run, plan.max_seconds):
            return ""
        began = time.perf_counter()
        name = f"{run.variant}, seed {run.seed}"
        console.print(
            f"{name}: {'resumed' if last_complete_checkpoint(str(run.output_dir), reads_contents=False) else 'started'}"
        )
        (run.output_dir / OPTIONS_FILE).write_text(run.options, encoding="utf-8")
        _note_hardware(run, plan.jobs)
        with (run.output_dir / LOG_FILE).open("ab") as log:
            # The lock stays with the run: it holds as long as the process lives, whatever becomes of this one.
            process = subprocess.Popen(run.command, stdout=log, stderr=log, pass_fds=[lock.fileno()])
            processes[run] = process
            status = process.wait()
        if status == 0 and is_finished(run, plan.max_seconds):
            console.print(f"{name}: finished, {time.perf_counter() - began:.0f} s")
            return ""
    lines = (run.output_dir / LOG_FILE).read_text(encoding="utf-8", errors="replace").splitlines()
    tail = "\n".join(lines[-LOG_TAIL:])
    return f"it ended with status {status}; the last lines of {run.output_dir / LOG_FILE}:\n{tail}"


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
    """Hold the lock of one run, or yield None where a live process holds it."""
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield file


def read_state(run: Run) -> dict[str, Any] | None:
    """Return the trainer's state in the run's last complete checkpoint, or None where there is none."""
    checkpoint = last_complete_checkpoint(str(run.output_dir), reads_contents=False)
    if checkpoint is None:
        return None
    return json.loads((Path(checkpoint) / TRAINER_STATE_NAME).read_text(encoding="utf-8"))


def is_finished(run: Run, max_seconds: float | None) -> bool:
    """Whether the run has come to its last step or used up its training time."""
    state = read_state(run)
    if state is None:
        return False
    used = max((entry.get(TRAINING_SECONDS, 0.0) for entry in state["log_history"]), default=0.0)
    return state["global_step"] >= state["max_steps"] or (max_seconds is not None and used >= max_seconds)


def _note_hardware(run: Run, jobs: int) -> None:
    """Add what this part of the run is trained on to the run's list of hardware."""
    known = read_hardware(run)
    here = {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine() + " CPU",
        "devices": torch.cuda.device_count() or 1,
        "cpu_cores": os.cpu_count(),
        "torch": version("torch"),
        "runs_at_a_time": jobs,
    }
    if here not in known:
        (run.output_dir / HARDWARE_FILE).write_text(json.dumps([*known, here], indent=2) + "\n")


def read_hardware(run: Run) -> list[dict[str, Any]]:
    """Return what the parts of the run were trained on."""
    path = run.output_dir / HARDWARE_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
