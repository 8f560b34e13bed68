"""How far the runs of a comparison have come, from their logs while they are made."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.status import Status

from srpo_trl.commands.compare.jobs import Job
from srpo_trl.runs.durations import format_duration
from srpo_trl.runs.log import LOG_FILE, TRAINING_SECONDS, read_run_log
from srpo_trl.runs.scores import HELD_OUT, common_metric


class RunProgress:
    """Prints a line for each evaluation of each run, and keeps their steps on one line below, in a terminal.

    Args:
        console: to print on.
        metric: the score; None: the one that a run logs.
    """

    def __init__(self, console: Console, metric: str | None) -> None:
        self._console, self._metric = console, metric
        self._evaluated: dict[Job, int] = {}  # step of the last evaluation that was printed
        self._steps: dict[Job, str] = {}  # of the runs under way
        self._status: Status | None = None

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Keep the line of steps for the block."""
        with self._console.status("Training") as self._status:
            yield

    def look(self, job: Job) -> None:
        """Read a run's log, and print what is new."""
        path = job.output_dir / LOG_FILE
        records = read_run_log(path).records if path.is_file() else []
        if not records:
            return
        scored = []
        for record in records:
            logs = record.get("logs", {})
            metric = self._metric or common_metric([logs], HELD_OUT)
            if metric is not None and metric in logs:
                scored.append((record["step"], metric, logs[metric], logs.get(TRAINING_SECONDS, 0.0)))
        for step, metric, score, seconds in scored[-1:]:
            if step > self._evaluated.get(job, -1):
                self._evaluated[job] = step
                trained = format_duration(seconds)
                self._console.print(f"{job.name}: step {step}, {trained} of training, {metric} {score:.3f}")
        self._steps[job] = f"{job.name}: step {records[-1]['step']}"
        self._update()

    def end(self, job: Job) -> None:
        """Take a run that is no longer made off the line of steps."""
        self._steps.pop(job, None)
        self._update()

    def _update(self) -> None:
        if self._status is not None:
            self._status.update("; ".join(self._steps.values()) or "Training")
