"""Runs the sections one after another, each in a process of its own and within its time.

This process never touches the device: whatever a section does to it, the next one has it afresh.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from benchmarks.children import environment_of
from benchmarks.gpu.child import NO_DEVICE
from benchmarks.gpu.record import CUT_OFF, DONE, FAILED, MISSING, RUNNING, SKIPPED, Record, read, write_whole
from benchmarks.gpu.sections import FULL_MINUTES, Section, Setting
from benchmarks.tables import Table, commit, markdown

_LEAST_SECONDS = 2.0  # in which no section gives a figure
_LAST_LINES = 8  # of a log, that are shown where a section fails
_OFFLINE = {  # of a section's process
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "WANDB_MODE": "disabled",
    "TRL_EXPERIMENTAL_SILENCE": "1",
}


class Options(NamedTuple):
    """Of the command."""

    out: Path
    minutes: float
    device: str
    tiny: bool
    model: Path | None


class _FolderError(Exception):
    """The folder cannot be used: by the system, for another run, or for figures that these are not comparable with."""


class _NoDeviceError(Exception):
    """There is no GPU."""


def run(sections: Sequence[Section], options: Options) -> int:
    """Measure what is missing in the folder; return 0 where all is there, 1 where not, 2 where nothing was begun."""
    deadline = time.monotonic() + 60 * options.minutes
    try:
        with _alone(options.out):
            _claim(options)
            try:
                with _terminated_as_exception():
                    _run_all(sections, options, deadline)
            finally:
                write_report(sections, options.out)
    except (_FolderError, _NoDeviceError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"Report: {options.out / 'report.md'}", flush=True)
    statuses = {Record(options.out, section.name).status for section in sections}
    return 0 if statuses <= {DONE, SKIPPED} else 1


def _claim(options: Options) -> None:
    """Write what the folder's figures are measured on, or refuse to mix them with others."""
    path = options.out / "run.json"
    facts = {"device": options.device, "tiny": options.tiny, "commit": commit().split()[0], "card": _card()}
    held = _facts(options.out) or facts
    first_model, model = held.get("model", ""), str(options.model or "")
    facts, held = facts | {"model": model or first_model}, held | {"model": first_model or model}
    if missing := facts.keys() - held.keys():
        raise _FolderError(f"{path} lacks {', '.join(sorted(missing))}. Remove it, or give another --out.")
    if differing := [
        f"{name} {held[name]!r}, now {facts[name]!r}" for name in facts if held[name] != facts[name]
    ]:
        raise _FolderError(
            f"{options.out} holds figures of another run ({'; '.join(differing)}), which would not be comparable. "
            "Give another --out."
        )
    write_whole(path, json.dumps(facts, indent=1) + "\n")


def _facts(folder: Path) -> dict[str, Any]:
    """Return what the folder's figures were measured on; empty where there are none."""
    path = folder / "run.json"
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise _FolderError(
            f"{path} is damaged ({error}), so nobody knows what the figures beside it were measured on. Remove it, or "
            "give another --out."
        ) from error


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Make the folder, and refuse it while another run measures into it: each would have half of the device.

    A lock of the system: it ends with the process, and needs nothing of the package, which may not be installed.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a")
    except OSError as error:
        raise _FolderError(f"--out {folder} cannot be written: {error}. Give another folder.") from error
    with file:
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise _FolderError(f"Another run measures into {folder}. Wait for its end.") from error
        yield


def _card() -> str:
    """Return the card's name as the driver's own tool gives it; empty where there is none."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return "; ".join(done.stdout.split("\n")).strip("; ") if done.returncode == 0 else ""


def _run_all(sections: Sequence[Section], options: Options, deadline: float) -> None:
    waiting = [section for section in sections if _is_wanted(section, options)]
    call = str(time.time_ns())
    standby: _Child | None = None
    try:
        for number, section in enumerate(waiting):
            limit = min(section.limit * options.minutes / FULL_MINUTES, deadline - time.monotonic())
            if limit < _LEAST_SECONDS:
                print(f"[{section.name}] not begun: the time is up", flush=True)
                continue
            print(f"[{section.name}] begins, at most {limit:.0f} s", flush=True)
            child = standby or _Child(section, options)
            is_last = number + 1 == len(waiting)
            standby = None if is_last else _Child(waiting[number + 1], options)  # imports in the meantime
            _run_section(section, child, options, call, time.monotonic() + limit)
            write_report(sections, options.out)
            print(Record(options.out, section.name).markdown(), flush=True)
    finally:
        if standby is not None:
            standby.end()


def _is_wanted(section: Section, options: Options) -> bool:
    """Whether the section is to be run; says why where it is not."""
    record = Record(options.out, section.name)
    if record.status == RUNNING:  # of a call that was killed
        _note_cut_off(record, "the run was killed")
    if record.status == DONE:
        print(f"[{section.name}] done before", flush=True)
        return False
    reason = section.lacks(Setting(options.device, options.tiny, options.model, 0.0))
    if reason is not None:
        record.note_section(SKIPPED, reason)
        print(f"[{section.name}] skipped: {reason}", flush=True)
    return reason is None


def _run_section(section: Section, child: "_Child", options: Options, call: str, deadline: float) -> None:
    """Run one section to its end or to its deadline; a process that dies leaves its other parts to a new one."""
    Record(options.out, section.name).note_section(RUNNING)
    left: set[str] = set()
    try:
        while True:
            child.begin(deadline - time.monotonic(), call)
            status = child.wait(deadline)
            record = Record(options.out, section.name)
            if status is None:
                return _note_cut_off(record, "over its time")
            if status == NO_DEVICE:
                record.note_section(MISSING)
                raise _NoDeviceError(
                    "No CUDA device is to be had. To see whether all of it runs: --device cpu --tiny."
                )
            for name in record.with_status(RUNNING):
                record.note_part(name, FAILED, reason=_death(status))
            before, left = left, record.left(call)
            if status == 0 or not left or left == before:
                return _conclude(record, status, child.last_lines())
            child.end()
            child = _Child(section, options)
    finally:
        child.end()
        record = Record(options.out, section.name)
        if record.status == RUNNING:  # this process was told to end
            _note_cut_off(record, "the run was ended")


def _note_cut_off(record: Record, reason: str) -> None:
    for name in record.with_status(RUNNING):
        record.note_part(name, CUT_OFF, reason=reason)
    record.note_section(CUT_OFF, reason)


def _conclude(record: Record, status: int, last_lines: str) -> None:
    """Write what became of a section whose process has ended."""
    not_done = [name for name, part in record.parts.items() if part["status"] != DONE]
    if record.parts and not not_done:
        record.note_section(DONE)
    elif record.parts:
        record.note_section(FAILED, f"{len(not_done)} of {len(record.parts)} parts, see below")
    else:
        record.note_section(FAILED, f"{_death(status)}: {last_lines}" if status else "it has no parts")


def _death(status: int) -> str:
    name = signal.Signals(-status).name if status < 0 else f"exit status {status}"
    return f"the process ended with {name}"


class _Child:
    """The process of one section."""

    def __init__(self, section: Section, options: Options) -> None:
        command = [
            sys.executable,
            "-m",
            "benchmarks.gpu.child",
            str(os.getpid()),
            section.name,
            section.module,
            str(options.out),
        ]
        command += [options.device, "1" if options.tiny else "0", str(options.model or "")]
        self._log = options.out / f"{section.name}.log"
        settings = {**_OFFLINE, **(section.on_cpu if options.device == "cpu" else {})}
        with self._log.open("a", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                command,
                env=environment_of(options.device, settings),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )

    def begin(self, seconds: float, call: str) -> None:
        """Let it touch the device."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has died; `wait` says how
            self._process.stdin.write(json.dumps({"seconds": seconds, "call": call}) + "\n")
            self._process.stdin.flush()

    def wait(self, deadline: float) -> int | None:
        """Return its exit status, or None where it is still running at the deadline."""
        try:
            return self._process.wait(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            return None

    def end(self) -> None:
        """End it and everything that it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()

    def last_lines(self) -> str:
        """Return the end of its log."""
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return " / ".join(lines[-_LAST_LINES:])


@contextmanager
def _terminated_as_exception() -> Iterator[None]:
    """Let SIGTERM end this process as Ctrl-C does, so that the sections' processes end and their records say why."""

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def write_report(sections: Sequence[Section], folder: Path) -> None:
    """Write `report.md`: what was measured and what not, then the tables, also of sections measured before."""
    written = {path.stem for path in folder.glob("*.json") if read(path) is not None}
    records = [Record(folder, name) for name in sorted({section.name for section in sections} | written)]
    rows = [
        {
            "section": record.name.replace("_", " "),
            "status": record.status,
            "parts": f"{len(record.with_status(DONE))} of {len(record.parts)}" if record.parts else "",
            "seconds": round(sum(part["seconds"] for part in record.parts.values()), 1),
            "why": record.reason,
        }
        for record in records
    ]
    texts = [markdown(Table("What was measured", rows)), *(r.markdown() for r in records if r.parts)]
    write_whole(folder / "report.md", f"# Measured {_place(folder)}\n\n" + "\n".join(texts))


def _place(folder: Path) -> str:
    facts = _facts(folder)
    size = ", tiny sizes" if facts.get("tiny") else ""
    return f"on {facts.get('card') or facts.get('device', 'nothing')}{size}"
