"""One run a folder: a file in `output_dir` that names the run which writes there, while it does.

A lock is left behind by a run that was killed. On the machine that wrote it, its process tells: it is gone, or its
number belongs to a process that started at another time. Elsewhere (another host, another container) nobody can look,
but a living run touches its lock every few seconds; one that is not touched while a newcomer watches is left behind.
The watch compares the file's times with each other and not with a clock, which machines may disagree on.
"""

import errno
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

LOCK_FILE = "_srpo_run.lock"  # what begins with an underscore is not pushed to the hub
BEAT_SECONDS = 10.0
WATCH_SECONDS = 45.0
_POLL_SECONDS = 1.0
_MAX_PID = 2**31
_MAX_TIME = 2.0**40  # seconds; far beyond what can be written as a date
_CLOCK_TOLERANCE = 2.0  # seconds by which the start time of one process may differ between two looks

# What systems say of a disk without hard links; Windows says EINVAL.
_WITHOUT_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EMLINK}


class FolderInUseError(RuntimeError):
    """Another run writes to the folder."""


@dataclass(frozen=True)
class Holder:
    """The run that holds a folder.

    Attributes:
        host: the machine's name, for people.
        machine: tells machines and containers apart, within which process numbers have a meaning.
        pid: the process.
        started: when the process started, in seconds since 1970 by the clock of that moment.
        booted: when the machine did, by the same clock: the difference stays when the clock is set.
        token: differs between any two runs, those of one process included.
    """

    host: str
    machine: str
    pid: int
    started: float
    booted: float
    token: str

    @classmethod
    def this_process(cls) -> "Holder":
        """Return a new run of this process."""
        booted, started = _times(os.getpid())
        return cls(socket.gethostname(), _machine(), os.getpid(), started, booted, uuid.uuid4().hex)

    def is_gone(self) -> bool | None:
        """Return whether the run's process has ended; None where that cannot be seen from here."""
        if self.machine != _machine():
            return None
        try:
            if psutil.Process(self.pid).status() == psutil.STATUS_ZOMBIE:
                return True
            booted, started = _times(self.pid)
            return abs((started - booted) - (self.started - self.booted)) > _CLOCK_TOLERANCE
        except psutil.NoSuchProcess:
            return True
        except psutil.AccessDenied:  # of another user, and alive
            return False


class RunLock:
    """A folder that is this run's until `release`."""

    def __init__(self, path: Path, holder: Holder) -> None:
        self._path, self._holder = path, holder
        self._is_released = threading.Event()
        threading.Thread(target=self._beat, name="srpo-run-lock", daemon=True).start()

    @classmethod
    def take(
        cls, folder: Path, *, watch_seconds: float = WATCH_SECONDS, say: Callable[[str], None] = print
    ) -> "RunLock":
        """Take the folder, which is made where it is missing.

        Args:
            folder: `output_dir`.
            watch_seconds: how long a lock of another machine must stay untouched to be one that was left behind.
            say: is told that the lock is watched, and that one was removed.

        Raises:
            FolderInUseError: another run has it.
            OSError: the folder cannot be written to.
        """
        folder.mkdir(parents=True, exist_ok=True)
        path, holder = folder / LOCK_FILE, Holder.this_process()
        while not _create(path, holder):
            found = holder_of(folder)
            is_gone = found.is_gone() if found else None
            if is_gone is None:
                say(f"{path} is from another machine or cannot be read; watching for {watch_seconds:.0f} s.")
                is_gone = _stays_untouched(path, watch_seconds)
            if not is_gone:
                raise FolderInUseError(_in_use(path, found))
            if _remove_left_behind(path, found):
                say(f"{path} was left behind by a run that is gone; it is removed.")
        return cls(path, holder)

    def check(self) -> None:
        """Make sure, before something is written, that the folder is still this run's; put a removed lock back.

        Raises:
            FolderInUseError: another run has taken it.
        """
        with suppress(OSError):
            _create(self._path, self._holder)
        found = holder_of(self._path.parent)
        if found is not None and found.token != self._holder.token:
            raise FolderInUseError(
                f"{self._path}: another run, {_name(found)}, has taken the folder. This run stops before it writes "
                "over the other's checkpoints. Start it anew with an output_dir of its own."
            )

    def release(self) -> None:
        """Give the folder back; a process forked from the run's has no part in it."""
        self._is_released.set()
        if os.getpid() != self._holder.pid:
            return
        found = holder_of(self._path.parent)
        if found is not None and found.token == self._holder.token:
            with suppress(OSError):  # a lock left behind is recognized
                self._path.unlink()

    def _beat(self) -> None:
        while not self._is_released.wait(BEAT_SECONDS):
            with suppress(OSError):  # a network disk that is away for a while
                os.utime(self._path)


def holder_of(folder: Path) -> Holder | None:
    """Return whose run holds a folder; None where there is no lock, or none that can be read."""
    return _read(folder / LOCK_FILE)


def may_be_in_use(folder: Path) -> bool:
    """Return whether a run may be writing to the folder; without a wait, so True where it cannot be seen."""
    if not (folder / LOCK_FILE).exists():
        return False
    found = holder_of(folder)
    return found is None or not found.is_gone()


def _create(path: Path, holder: Holder) -> bool:
    """Put the lock where there is none, in one step and with its content; return whether there was none."""
    if path.exists():
        return False
    content, prepared = json.dumps(asdict(holder)) + "\n", path.with_name(f"{LOCK_FILE}.{holder.token}")
    try:
        prepared.write_text(content, encoding="utf-8")
        os.link(prepared, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno in _WITHOUT_LINKS:
            return _create_in_two_steps(path, content)
        raise
    finally:
        prepared.unlink(missing_ok=True)
    return True


def _create_in_two_steps(path: Path, content: str) -> bool:
    """Do it where the disk has no hard links; a run killed between the steps leaves a lock that nobody can read."""
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(content)
    return True


def _stays_untouched(path: Path, seconds: float) -> bool:
    """Watch a lock; return whether it is still the same, and has not been touched, after so many seconds."""
    first, end = _look(path), time.monotonic() + seconds
    while first is not None and time.monotonic() < end:
        time.sleep(min(_POLL_SECONDS, seconds))
        if _look(path) != first:
            return _look(path) is None  # released meanwhile
    return True


def _look(path: Path) -> tuple[float, bytes] | None:
    """Return the time and the content of a lock; opening it makes a network disk look again."""
    try:
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_mtime, file.read()
    except FileNotFoundError:
        return None


def _remove_left_behind(path: Path, found: Holder | None) -> bool:
    """Remove the lock that was looked at, and not one that a third run has put in its place meanwhile."""
    aside = path.with_name(f"{LOCK_FILE}.{uuid.uuid4().hex}")
    try:
        path.rename(aside)
    except FileNotFoundError:
        return False
    if (other := _read(aside)) != found:
        with suppress(OSError):
            os.link(aside, path)
    aside.unlink(missing_ok=True)
    return other == found


def _read(path: Path) -> Holder | None:
    try:
        found = Holder(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    is_text = all(isinstance(value, str) for value in (found.host, found.machine, found.token))
    is_process = type(found.pid) is int and 0 < found.pid < _MAX_PID
    times = (found.started, found.booted)
    are_times = all(type(time_) in (int, float) and 0 <= time_ < _MAX_TIME for time_ in times)
    return found if is_text and is_process and are_times else None


def _in_use(path: Path, found: Holder | None) -> str:
    return (
        f"output_dir={str(path.parent)!r} is in use by another run{f', {_name(found)}' if found else ''}. Two runs in "
        "one folder overwrite each other's checkpoints and logs. Give this one another output_dir, or end the other. "
        f"If there is no other run, remove {path}."
    )


def _name(holder: Holder) -> str:
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder.started))
    return f"process {holder.pid} on {holder.host}, started {since}"


def _times(pid: int) -> tuple[float, float]:
    """Return when the machine and a process started, in seconds since 1970 by today's clock."""
    return psutil.boot_time(), psutil.Process(pid).create_time()


def _machine() -> str:
    """Return what differs between machines, their starts, and containers with process numbers of their own."""
    parts = [socket.gethostname()]
    for place, read in (("/proc/sys/kernel/random/boot_id", Path.read_text), ("/proc/self/ns/pid", _inode)):
        with suppress(OSError):  # systems other than Linux
            parts.append(str(read(Path(place))).strip())
    return " ".join(parts)


def _inode(path: Path) -> int:
    return path.stat().st_ino
