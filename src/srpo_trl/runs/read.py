"""A run as it is read back: what was logged at which step, after how many seconds of training."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from srpo_trl.runs.log import (
    EXAMPLES_FILE,
    GUARDS_FILE,
    LOG_FILE,
    TRAINER_STATE_FILE,
    TRAINING_SECONDS,
    Record,
    read_run_log,
)
from srpo_trl.runs.scores import LearningCurve, Point

FORMER_METRICS = {
    "srpo/seconds/elapsed": TRAINING_SECONDS,
    "srpo/route/grpo_frac": "srpo/route/policy_frac",
    "srpo/route/sdpo_frac": "srpo/route/distilled_frac",
    "srpo/route/mix_frac": "srpo/route/both_frac",
    "srpo/route/skip_frac": "srpo/route/skipped_frac",
    "srpo/loss/grpo": "srpo/loss/policy",
    "srpo/loss/sdpo": "srpo/loss/distilled",
    "srpo/loss/sdpo_share": "srpo/loss/distilled_share",
    "srpo/gradient/grpo_norm": "srpo/gradient/policy_norm",
    "srpo/gradient/sdpo_norm": "srpo/gradient/distilled_norm",
    "srpo/gradient/sdpo_share": "srpo/gradient/distilled_share",
}
FORMER_ROUTES = {
    old.split("/")[2].removesuffix("_frac"): new.split("/")[2].removesuffix("_frac")
    for old, new in FORMER_METRICS.items()
    if old.startswith("srpo/route/")
}


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
class RunHistory:
    """What one run has logged.

    Attributes:
        name: unlike that of any other run that was read with it.
        source: file that was read.
        records: each with `step`, `seconds` (NaN where unknown) and `logs`.
        facts: of `log.jsonl` `options`, `model`, `device` and `versions`; of a trainer state `step` and `max_steps`.
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
            (record["step"], record["seconds"], record["logs"][metric])
            for record in self.records
            if is_number(record["logs"].get(metric))
        ]
        steps, seconds, values = np.array(found, dtype=np.float64).reshape(-1, 3).T
        return Series(steps, seconds, values)

    def curve(self, metric: str, max_seconds: float | None = None) -> LearningCurve:
        """Return the metric's learning curve; a resumed run that evaluates a step again adds no point.

        Args:
            metric: larger is better.
            max_seconds: of training, after which the run is not to be trained any further.
        """
        series = self.series(metric)
        columns = (series.steps.astype(int).tolist(), series.seconds.tolist(), series.values.tolist())
        first = {point.step: point for point in reversed([*map(Point, *columns)])}
        in_order = tuple(first[step] for step in sorted(first))
        return LearningCurve(in_order, self.num_steps, self.seconds, self.has_ended(max_seconds))

    def has_ended(self, max_seconds: float | None = None) -> bool:
        """Whether the run has come to its last step, as far as that is known, or used up its seconds of training."""
        is_out_of_time = max_seconds is not None and self.seconds >= max_seconds
        return is_out_of_time or self.num_steps >= self.facts.get("max_steps", math.inf)

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
        """Optimizer steps so far."""
        steps: list[int] = [self.facts.get("step", 0), *(record["step"] for record in self.records)]
        return max(steps)

    @property
    def seconds(self) -> float:
        """Seconds of training up to the last log; NaN where the log has no clock."""
        return max((r["seconds"] for r in self.records if not math.isnan(r["seconds"])), default=math.nan)


def is_number(value: object) -> bool:
    """Whether the value is a finite number, truth values excepted."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def read_runs(folders: Sequence[Path]) -> list[RunHistory]:
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


def read_checkpoint(folder: Path, name: str = "") -> RunHistory:
    """Read a run from the trainer's state in a checkpoint, or in an output folder that has one.

    Raises:
        ValueError: the file is no such state.
        OSError: there is none.
    """
    path = folder / TRAINER_STATE_FILE
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        history = state["log_history"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is no trainer state with a log_history ({error!r}). Give another checkpoint or run."
        ) from error
    counts = {"step": state.get("global_step"), "max_steps": state.get("max_steps")}
    entries = history if isinstance(history, list) else []
    placed = [e for e in entries if isinstance(e, dict) and isinstance(e.get("step"), int)]
    return RunHistory(
        name,
        path,
        _timed([{"step": entry["step"], "logs": entry} for entry in placed]),
        {count: value for count, value in counts.items() if is_number(value)},
    )


def _read_run(folder: Path, name: str) -> RunHistory:
    examples, findings = _records(folder / EXAMPLES_FILE), _records(folder / GUARDS_FILE)
    if not (folder / LOG_FILE).is_file():
        return replace(read_checkpoint(_newest_state(folder), name), examples=examples, findings=findings)
    contents = read_run_log(folder / LOG_FILE)
    facts = contents.begins[-1] if contents.begins else {}
    records, num_unreadable = _timed(contents.records), contents.num_unreadable
    return RunHistory(name, folder / LOG_FILE, records, facts, examples, findings, num_unreadable)


def _records(path: Path) -> list[Record]:
    """Return what stands in a log beside `log.jsonl`, with today's names of routes."""
    records = read_run_log(path).records if path.is_file() else []
    return [r | {"route": FORMER_ROUTES.get(r["route"], r["route"])} if "route" in r else r for r in records]


def _newest_state(folder: Path) -> Path:
    """Return the folder, or its checkpoint with the highest step, that has a trainer's state."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder. Give the output_dir of a training run.")
    steps = {path: path.name.rpartition("-")[2] for path in folder.glob("checkpoint-*")}
    numbered = sorted((path for path in steps if steps[path].isdecimal()), key=lambda path: int(steps[path]))
    for place in [folder, *reversed(numbered)]:
        if (place / TRAINER_STATE_FILE).is_file():
            return place
    raise ValueError(
        f"{folder} holds no log of a run: looked for {LOG_FILE}, {TRAINER_STATE_FILE} and "
        f"checkpoint-*/{TRAINER_STATE_FILE}. Give the output_dir of a training run."
    )


def _timed(records: Sequence[Record]) -> list[Record]:
    """Return the records with their seconds; where one has none they are read between those that have."""
    entries, known = [], {0: 0.0}
    for record in records:
        logs = record.get("logs")
        logs = {FORMER_METRICS.get(k, k): v for k, v in logs.items()} if isinstance(logs, dict) else {}
        seconds = record.get("seconds", logs.get(TRAINING_SECONDS))
        entry = {"step": record["step"], "seconds": seconds if is_number(seconds) else math.nan, "logs": logs}
        entries.append(entry)
        if not math.isnan(entry["seconds"]):
            known[entry["step"]] = entry["seconds"]
    for entry in entries if len(known) > 1 else []:
        if math.isnan(entry["seconds"]):
            entry["seconds"] = float(np.interp(entry["step"], [*known], [*known.values()]))
    return entries
