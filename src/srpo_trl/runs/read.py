"""A run as it is read back: what was logged at which step, after how many seconds of training."""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from srpo_trl.runs.folders import distinct_names, find_runs, saved_states
from srpo_trl.runs.log import (
    EXAMPLES_FILE,
    GUARDS_FILE,
    LOG_FILE,
    TRAINER_STATE_FILE,
    TRAINING_SECONDS,
    Record,
    read_run_logs,
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
        facts: `max_steps`; of `log.jsonl` `options`, `model`, `device` and `versions`; of a trainer state `step`.
        examples: records of routed rollouts.
        findings: what guards said, each with `step`, `guard`, `message`, `advice` and `action`.
        num_unreadable: lines that were left out because they make no sense.
        num_earlier_starts: in the same folder with the same options, which this one stands for.
    """

    name: str
    source: Path
    records: Sequence[Record]
    facts: Record = field(default_factory=dict)
    examples: Sequence[Record] = ()
    findings: Sequence[Record] = ()
    num_unreadable: int = 0
    num_earlier_starts: int = 0

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


def read_runs(folders: Sequence[Path], say: Callable[[str], None] = print) -> list[RunHistory]:
    """Read every run whose log lies in one of the folders or below it.

    Args:
        folders: each a run's, or one of such folders.
        say: is told of each run and folder that cannot be read, where others of the same given folder can.
    Raises:
        ValueError: one or more of them hold no log, or none that can be read; every one is named.
    """
    distinct_names(
        folders
    )  # a folder that is given twice is a slip; one that lies in another given one is not
    problems: list[str] = []
    found: list[dict[Path, Path]] = []
    for folder in folders:
        with _collected(problems):
            found.append({path.resolve(): path for path in find_runs(folder, say)})
    places = {key: path for below in reversed(found) for key, path in below.items()}
    order = dict.fromkeys(key for below in found for key in below)
    runs, unread = [], dict[Path, list[str]]()
    for key, name in zip(order, distinct_names([places[key] for key in order]), strict=True):
        with _collected(unread.setdefault(key, [])):
            runs += _read_folder(places[key], name, say)
    for below in found:
        is_in_part = not all(unread[key] for key in below)
        for key in below:
            for problem in unread[key]:
                say(f"Left out: {problem}") if is_in_part else problems.append(problem)
    if problems:
        raise ValueError("\n".join(dict.fromkeys(problems)))
    return runs


@contextmanager
def _collected(problems: list[str]) -> Iterator[None]:
    try:
        yield
    except (ValueError, OSError) as error:
        problems.append(str(error))


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


def _read_newest_state(folder: Path, name: str, say: Callable[[str], None]) -> RunHistory:
    """Read a run from its newest trainer's state that is whole: a kill leaves one half-written."""
    problems: list[str] = []
    for place in saved_states(folder):
        with _collected(problems):
            run = read_checkpoint(place, name)
            for problem in problems:
                say(f"{problem} An older one of the run is shown: {run.source}.")
            return run
    raise ValueError("\n".join(problems))


def _read_folder(folder: Path, name: str, say: Callable[[str], None]) -> list[RunHistory]:
    """Read the runs that logged into one folder: more than one where it served several in turn."""
    findings, examples = _records(folder / GUARDS_FILE)[-1], _records(folder / EXAMPLES_FILE)
    path = folder / LOG_FILE
    if not path.is_file():
        run = _read_newest_state(folder, name, say)
        return [replace(run, examples=examples[-1], findings=findings)]
    begun = [
        RunHistory(name, path, _timed(records), begins[-1] if begins else {}, num_unreadable=num_unreadable)
        for records, begins, num_unreadable in read_run_logs(path)
    ]
    # Parts of examples.jsonl do not name their run: the last one is of the last run that could have written it.
    able = [index for index, run in enumerate(begun) if _asked_for_examples(run)] or [len(begun) - 1]
    for index, part in zip(reversed(able), reversed(examples), strict=False):
        begun[index] = replace(begun[index], examples=part)
    runs = _without_earlier_starts(begun)
    runs[-1] = replace(runs[-1], findings=findings)
    return _named_by_method(runs) if len(runs) > 1 else runs


def _records(path: Path) -> list[list[Record]]:
    """Return what stands in each part of a log beside `log.jsonl`, with today's names of routes."""
    parts = [part.records for part in read_run_logs(path)] if path.is_file() else [[]]
    return [
        [r | {"route": FORMER_ROUTES.get(r["route"], r["route"])} if "route" in r else r for r in records]
        for records in parts
    ]


def _asked_for_examples(run: RunHistory) -> bool:
    distilled = run.series("srpo/route/distilled_frac").values
    return "log_examples_steps" in run.options and (not len(distilled) or bool(distilled.any()))


def _without_earlier_starts(begun: Sequence[RunHistory]) -> list[RunHistory]:
    """Return the runs that have logged anything; of several with the same options the last one, for all of them."""
    last: dict[str, RunHistory] = {}
    for run in [run for run in begun if run.records] or [begun[-1]]:
        options = json.dumps(run.options, sort_keys=True)
        earlier = last.pop(options, None)
        last[options] = replace(run, num_earlier_starts=earlier.num_earlier_starts + 1) if earlier else run
    return [*last.values()]


def _named_by_method(runs: Sequence[RunHistory]) -> list[RunHistory]:
    """Give runs of one folder names of their own."""
    methods = [str(run.options.get("method", "run")) for run in runs]
    numbers = [methods[: index + 1].count(method) for index, method in enumerate(methods)]
    return [
        replace(run, name=f"{run.name} ({method}{f' {number}' if methods.count(method) > 1 else ''})")
        for run, method, number in zip(runs, methods, numbers, strict=True)
    ]


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
