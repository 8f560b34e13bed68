"""Runs as the report sees them: what was logged at which step, after how many seconds of training."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from srpo_trl.runs.log import EXAMPLES_FILE, LOG_FILE, Record, read_run_log

STATE_FILE = "trainer_state.json"
GUARDS_FILE = "guards.jsonl"
ELAPSED = "srpo/seconds/elapsed"


@dataclass(frozen=True)
class Series:
    """One metric of one run, in the order of the log.

    Attributes:
        steps: optimizer steps.
        seconds: of training before each value, NaN where the log has no clock.
        values: finite.
    """

    steps: NDArray[np.float64]
    seconds: NDArray[np.float64]
    values: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.values)

    @property
    def has_seconds(self) -> bool:
        """Whether every value has its seconds."""
        return bool(np.isfinite(self.seconds).all())


@dataclass(frozen=True)
class Run:
    """One run's log.

    Attributes:
        name: unlike that of any other run of the report.
        source: file that was read.
        records: each with `step`, `seconds` (None where unknown) and `logs`.
        facts: `options`, `model`, `device` and `versions`, as far as the log has them.
        examples: records of routed rollouts.
        findings: what guards said, each with `step`, `guard`, `message`, `advice` and `action`.
        num_unreadable: lines that were left out because they make no sense.
    """

    name: str
    source: Path
    records: Sequence[Record]
    facts: Record = field(default_factory=dict)
    examples: Sequence[Record] = ()
    findings: Sequence[Record] = ()
    num_unreadable: int = 0

    def series(self, metric: str) -> Series:
        """Return the metric wherever it was logged as a finite number."""
        found = [
            (
                record["step"],
                math.nan if record["seconds"] is None else record["seconds"],
                record["logs"][metric],
            )
            for record in self.records
            if is_number(record["logs"].get(metric))
        ]
        steps, seconds, values = np.array(found, dtype=np.float64).reshape(-1, 3).T
        return Series(steps, seconds, values)

    @property
    def metrics(self) -> set[str]:
        """Names of all metrics that were logged as a finite number."""
        return {name for record in self.records for name, value in record["logs"].items() if is_number(value)}

    @property
    def options(self) -> dict[str, Any]:
        """Options whose value is not their default, and the method."""
        options = self.facts.get("options")
        return options if isinstance(options, dict) else {}

    @property
    def num_steps(self) -> int:
        """Optimizer steps up to the last log."""
        return max((record["step"] for record in self.records), default=0)

    @property
    def seconds(self) -> float | None:
        """Seconds of training up to the last log; None where the log has no clock."""
        known = [record["seconds"] for record in self.records if record["seconds"] is not None]
        return max(known, default=None)


def is_number(value: object) -> bool:
    """Whether the value is a finite number, truth values excepted."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read the output folders of runs.

    Raises:
        ValueError: one or more of them hold no log; every one is named.
    """
    problems, runs = [], []
    for folder, name in zip(folders, distinct_names(folders), strict=True):
        try:
            runs.append(_read_run(folder, name))
        except (ValueError, OSError) as error:
            problems.append(str(error))
    if problems:
        raise ValueError("\n".join(problems))
    return runs


def distinct_names(folders: Sequence[Path]) -> list[str]:
    """Return each folder's own name, with as many folders above it as tell it from all others."""
    paths = [folder.resolve() for folder in folders]
    repeated = [path for i, path in enumerate(paths) if path in paths[:i]]
    if repeated:
        raise ValueError(f"{repeated[0]} was given more than once; name each run once.")
    names = []
    for path in paths:
        others = [other for other in paths if other != path]
        lengths = range(1, len(path.parts) + 1)
        length = next(n for n in lengths if not any(other.parts[-n:] == path.parts[-n:] for other in others))
        names.append("/".join(path.parts[-length:]))
    return names


def _read_run(folder: Path, name: str) -> Run:
    examples, findings = _records(folder / EXAMPLES_FILE), _records(folder / GUARDS_FILE)
    if (folder / LOG_FILE).is_file():
        contents = read_run_log(folder / LOG_FILE)
        return Run(
            name,
            folder / LOG_FILE,
            _timed(contents.records),
            contents.begins[-1] if contents.begins else {},
            examples,
            findings,
            contents.num_unreadable,
        )
    path = _trainer_state(folder)
    return Run(name, path, _timed(_history(path)), examples=examples, findings=findings)


def _records(path: Path) -> list[Record]:
    return read_run_log(path).records if path.is_file() else []


def _trainer_state(folder: Path) -> Path:
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder. Give the output_dir of a training run.")
    numbered = {
        int(checkpoint.name.rpartition("-")[2]): checkpoint / STATE_FILE
        for checkpoint in folder.glob("checkpoint-*")
        if checkpoint.name.rpartition("-")[2].isdecimal()
    }
    for path in [folder / STATE_FILE, *(numbered[step] for step in sorted(numbered, reverse=True))]:
        if path.is_file():
            return path
    raise ValueError(
        f"{folder} holds no log of a run: looked for {LOG_FILE}, {STATE_FILE} and checkpoint-*/{STATE_FILE}. Give "
        "the output_dir of a training run."
    )


def _history(path: Path) -> list[Record]:
    try:
        history = json.loads(path.read_text(encoding="utf-8"))["log_history"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is no trainer state with a log_history ({error!r}). Give another checkpoint or run."
        ) from error
    entries = history if isinstance(history, list) else []
    return [
        {"step": entry["step"], "logs": entry}
        for entry in entries
        if isinstance(entry, dict) and isinstance(entry.get("step"), int)
    ]


def _timed(records: Sequence[Record]) -> list[Record]:
    """Return the records with their seconds; where one has none they are read between those that have."""
    entries = []
    for record in records:
        logs = record.get("logs")
        logs = logs if isinstance(logs, dict) else {}
        seconds = record.get("seconds", logs.get(ELAPSED))
        entries.append(
            {"step": record["step"], "seconds": seconds if is_number(seconds) else None, "logs": logs}
        )
    known = {entry["step"]: entry["seconds"] for entry in entries if entry["seconds"] is not None}
    for entry in entries:
        if known and entry["seconds"] is None:
            entry["seconds"] = float(np.interp(entry["step"], [0, *known], [0.0, *known.values()]))
    return entries
