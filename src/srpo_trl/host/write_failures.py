"""What a failed write means: the disk is full, a quota or a limit on files is reached, the disk is read-only."""

import errno
import os
import re
import tempfile
from pathlib import Path
from typing import NamedTuple

_PROBE_BYTES = 1 << 16


class Cause(NamedTuple):
    """Why a write failed, in words, and what to do."""

    reason: str
    what_to_do: str


# EDQUOT and ESTALE are missing on Windows.
_CAUSES = {
    getattr(errno, name): Cause(reason, what_to_do)
    for name, reason, what_to_do in (
        ("ENOSPC", "the disk is full", "Make room"),
        (
            "EDQUOT",
            "the quota on this disk is used up",
            "Remove files of your own, or ask for a larger quota",
        ),
        (
            "EFBIG",
            "a file would become larger than this process or this disk allows, whatever room there is",
            "Raise the limit (`ulimit -f` shows it, in blocks), or write to a disk without it",
        ),
        ("EROFS", "the disk is read-only", "Make it writable, or write to another disk"),
        ("EACCES", "there is no right to write there", "Change the folder's rights"),
        ("EPERM", "there is no right to write there", "Change the folder's rights"),
        ("EIO", "the disk reports an error", "Check the disk, or write to another one"),
        ("ESTALE", "the network disk has lost the folder", "Mount it again"),
        (
            "ENOENT",
            "the folder was removed or moved meanwhile",
            "Leave output_dir alone while a run writes to it",
        ),
        ("EMFILE", "this process has too many open files", "Raise the limit (`ulimit -n` shows it)"),
        ("ENFILE", "the system has too many open files", "End other processes"),
    )
    if hasattr(errno, name)
}
_UNKNOWN = Cause("", "Repair the folder or make room")


def cause_of(error: BaseException, folder: str) -> tuple[int | None, Cause]:
    """Return the number and the meaning of a failed write below a folder; None and no reason where none is known.

    torch.save hides the system's error, and safetensors gives it as text. Where none is to be had, a small file is
    written into the folder to see what the system says, and the limit on the size of files is looked at.
    """
    number = _number_of(error)
    if number is None and os.path.isdir(folder):
        number = errno.EFBIG if _reaches_the_limit(folder) else _number_of_a_probe(folder)
    return number, _CAUSES.get(number, _UNKNOWN) if number is not None else _UNKNOWN


def _number_of(error: BaseException | None) -> int | None:
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            return error.errno
        if found := re.search(
            r"\(os error (\d+)\)", str(error)
        ):  # Rust's way of saying it, as safetensors does
            return int(found.group(1))
        error = error.__cause__
    return None


def _number_of_a_probe(folder: str) -> int | None:
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(os.urandom(_PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.errno
    return None


def _reaches_the_limit(folder: str) -> bool:
    """Whether a file below the folder is as large as this process may make one."""
    try:
        import resource  # missing on Windows
    except ModuleNotFoundError:
        return False
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if limit == resource.RLIM_INFINITY:
        return False
    sizes = (path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    return max(sizes, default=0) >= limit
