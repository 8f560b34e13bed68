"""Logs of a run as JSON lines that survive a kill and a resume; read without torch.

Every part of a run starts with a line `{"begin": {"step": s}}`. A part that resumes from step s takes back whatever an
earlier part logged beyond s, since those steps are made again; a part that starts at 0 is a run of its own. Lines are
only ever added, so that a killed run loses at most its last one, which the next part removes where it was cut off.
"""

import json
import os
from pathlib import Path
from typing import IO, Any, NamedTuple

LOG_FILE = "log.jsonl"
EXAMPLES_FILE = "examples.jsonl"
GUARDS_FILE = "guards.jsonl"
NONFINITE_FOLDER = "nonfinite"  # batches of optimizer steps that were not finite
TRAINER_STATE_FILE = "trainer_state.json"  # transformers', in each checkpoint
TRAINING_SECONDS = "training_seconds"  # in every log of a run with a clock: seconds inside training steps

Record = dict[str, Any]


class RunLog:
    """Adds records to one file; the folder is made at the first of them.

    Args:
        path: of the file, which may hold earlier parts of the run.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def exists(self) -> bool:
        """Whether an earlier part of the run has written to the file."""
        return self._path.exists()

    def begin(self, step: int, **facts: Any) -> None:
        """Start a part of the run after `step` optimizer steps."""
        self.append({"begin": {"step": step, **facts}})

    def append(self, record: Record) -> None:
        """Add a record, which has its optimizer step under `step`."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps(record, ensure_ascii=False, default=str)
        try:
            with self._path.open("a+b") as file:
                _end_last_line(file)
                # A lone surrogate of a broken tokenizer has no UTF-8; it must not end a run.
                file.write(f"{line}\n".encode("utf-8", "backslashreplace"))
        except OSError as error:  # whose own message does not say where
            error.add_note(
                f"Raised while a line was added to {self._path}. The lines before it and the last checkpoint are "
                "whole. Make room or repair the folder, then resume with resume_from_checkpoint."
            )
            raise


class LogContents(NamedTuple):
    """What a log holds of a run: records that stand, the facts of each part, and how many lines make no sense."""

    records: list[Record]
    begins: list[Record]
    num_unreadable: int


def read_run_log(path: Path) -> LogContents:
    """Return what stands of the last run that began in a log, after all of its parts.

    Raises:
        OSError: the file cannot be opened.
    """
    return read_run_logs(path)[-1]


def read_run_logs(path: Path) -> list[LogContents]:
    """Return what stands of each run that began in a log, in order; of an empty log, one run without anything.

    Raises:
        OSError: the file cannot be opened.
    """
    runs = [LogContents([], [], 0)]
    for line in path.read_bytes().split(b"\n"):
        record, (records, begins, num_unreadable) = _parse(line), runs[-1]
        if "begin" in record:
            first = record["begin"]["step"]
            if first == 0 and (records or begins):
                runs.append(LogContents([], [record["begin"]], 0))
            else:
                begins.append(record["begin"])
                records[:] = [earlier for earlier in records if 0 < first >= earlier["step"]]
        elif record:
            records.append(record)
        else:
            runs[-1] = LogContents(records, begins, num_unreadable + bool(line.strip()))
    return runs


def _end_last_line(file: IO[bytes]) -> None:
    """End the last line of a file where a kill left it without an end: complete it, or remove what is no record."""
    if not file.seek(0, os.SEEK_END):
        return
    file.seek(-1, os.SEEK_END)
    if file.read(1) == b"\n":
        return
    file.seek(0)
    contents = file.read()
    start = contents.rfind(b"\n") + 1
    if _parse(contents[start:]):
        file.write(b"\n")
    else:
        file.truncate(start)


def _parse(line: bytes) -> Record:
    """Return the line's object; an empty one where it is none or names no step."""
    try:
        record = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return {}
    if not isinstance(record, dict):
        return {}
    step_holder = record.get("begin", record)
    is_placed = isinstance(step_holder, dict) and isinstance(step_holder.get("step"), int)
    return record if is_placed else {}
