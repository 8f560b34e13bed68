"""The list of a checkpoint's files, written last: whether each is still there, as long as it was, and unchanged.

The checksum is SHA-256: 0.8 s for 1 GB on a processor with SHA instructions, of which reading takes 0.4 s; blake2b
takes 1.4 s. CRC-32 takes no time beside reading, but anyone can check SHA-256 with `sha256sum`, and no two files agree
by chance. Files are read in parallel. A file that is added later (a README, say) is no fault.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

from accelerate.utils import gather_object
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from srpo_trl.host.unlisted import flaw_without_manifest

logger = logging.getLogger(__name__)

MANIFEST_FILE = "srpo_manifest.json"
_CHUNK = 1 << 22
_MAX_READERS = 8
_MAX_WAIT = 5.0  # seconds for a file of another process to appear


class BrokenCheckpointError(ValueError):
    """A checkpoint is not as its run wrote it, or holds too little to resume from; the message names the file."""


class NewestWhole(NamedTuple):
    """The newest checkpoint that is whole, None where there is none, and why each newer one was passed over."""

    folder: Path | None
    passed_over: tuple[str, ...]


class Manifest:
    """Lists the files of checkpoints, once every process has written its own.

    Args:
        writes: whether this process writes the list (`TrainingArguments.should_save`).
        is_resumable: whether checkpoints hold more than a model.
        has_own_disk: whether each node lists what lies on its own disk (`save_on_each_node`).
    """

    def __init__(self, *, writes: bool = True, is_resumable: bool = True, has_own_disk: bool = False) -> None:
        self._writes, self._is_resumable, self._has_own_disk = writes, is_resumable, has_own_disk

    def write(self, folder: Path) -> None:
        """List the files of all processes that write to this disk. A collective: all ranks must call it."""
        names = names_in(folder) if folder.is_dir() else []
        seen = [names] if self._has_own_disk else gather_object([names])
        if not self._writes:
            return
        names, elsewhere = names_of_processes(folder, seen)
        if elsewhere:
            logger.warning(
                "%s: %s of other processes do not appear on this disk. Save to a disk that all share, or set "
                "save_on_each_node=True; else the checkpoint cannot be resumed.",
                folder.name,
                ", ".join(elsewhere),
            )
        write_manifest(folder, names, is_resumable=self._is_resumable)


def names_in(folder: Path) -> list[str]:
    """Return the files below a folder, but the list itself, as sorted paths with forward slashes."""
    files = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in files if name != MANIFEST_FILE)


def names_of_processes(folder: Path, seen: Iterable[Iterable[str]]) -> tuple[list[str], list[str]]:
    """Return the files that processes have seen in a folder, and those of them that do not appear here.

    A network disk may show a file of another machine a moment late.
    """
    names = set().union(*seen, names_in(folder))
    end = time.monotonic() + _MAX_WAIT
    while (missing := {name for name in names if not (folder / name).is_file()}) and time.monotonic() < end:
        time.sleep(_MAX_WAIT / 10)
    return sorted(names - missing), sorted(missing)


def write_manifest(folder: Path, names: Iterable[str], *, is_resumable: bool) -> None:
    """List these files of a folder with their sizes and checksums in `MANIFEST_FILE`.

    Args:
        folder: a checkpoint that every process has finished writing.
        names: paths below it, of all processes.
        is_resumable: whether it holds more than a model.

    Raises:
        OSError: one of the files cannot be read, or the list cannot be written.
    """
    ordered = sorted(set(names))
    with ThreadPoolExecutor(_num_readers()) as pool:
        entries = pool.map(lambda name: _entry(folder / name), ordered)
        content = {
            "format": 1,
            "is_resumable": is_resumable,
            "files": dict(zip(ordered, entries, strict=True)),
        }
    (folder / MANIFEST_FILE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def flaw_of(
    folder: Path, *, reads_contents: bool = True, to_resume: bool = True, without: Sequence[str] = ()
) -> str:
    """Return what is wrong with a checkpoint, with the file's name; empty where nothing is.

    Args:
        folder: the checkpoint. One without a list, as other trainers write, is looked through for what is cut off.
        reads_contents: whether to compare checksums, for which every file is read; else existence and size.
        to_resume: whether it must hold more than a model.
        without: patterns of files that are not looked at.
    """
    if not folder.is_dir():
        return "it is no folder"
    path = folder / MANIFEST_FILE
    if not path.exists():
        return flaw_without_manifest(folder, to_resume=to_resume)
    try:
        entries, is_resumable = _entries_of(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        return f"{MANIFEST_FILE} cannot be read ({error!r})"
    files = {
        name: entry
        for name, entry in entries.items()
        if not any(fnmatch(name, pattern) for pattern in without)
    }
    if to_resume and not is_resumable:
        return "it holds the model alone (save_only_model=True), without the optimizer and the run's counters"
    for name, entry in files.items():
        if flaw := _size_flaw(folder / name, name, entry["bytes"]):
            return flaw
    if not reads_contents:
        return ""
    with ThreadPoolExecutor(_num_readers()) as pool:
        flaws = pool.map(lambda item: _content_flaw(folder / item[0], *item), files.items())
        return next(filter(None, flaws), "")


def newest_whole(run_dir: Path, flaw: Callable[[Path], str] = flaw_of) -> NewestWhole:
    """Return the checkpoint with the highest step that has no flaw."""
    passed_over: list[str] = []
    for _step, folder in reversed(checkpoints_in(run_dir)):
        found = flaw(folder)
        if not found:
            return NewestWhole(folder, tuple(passed_over))
        passed_over.append(f"{folder} is passed over: {found}.")
    return NewestWhole(None, tuple(passed_over))


def remedy(folder: Path, flaw: str) -> str:
    """Return the message for a checkpoint that was named and has a flaw."""
    return (
        f"{folder} cannot be resumed from: {flaw}. Copy the checkpoint again, or resume from another one "
        "(resume_from_checkpoint='auto' takes output_dir's latest complete one). If you changed a file on purpose, "
        f"remove {MANIFEST_FILE} from the checkpoint, and it is taken as it is."
    )


def checkpoints_in(run_dir: Path) -> list[tuple[int, Path]]:
    """Return the checkpoint folders of a run with their steps, by step."""
    prefix = f"{PREFIX_CHECKPOINT_DIR}-"
    named = ((path.name.removeprefix(prefix), path) for path in run_dir.glob(f"{prefix}*") if path.is_dir())
    return sorted((int(step), path) for step, path in named if step.isascii() and step.isdecimal())


def expendable(steps: Sequence[int], limit: int | None, current: int, best: int | None) -> list[int]:
    """Return the steps whose checkpoints may go, so that at most `limit` are kept.

    A run writes its checkpoints in the order of their steps, so those of later steps than the current one are older:
    they were left by a run from whose earlier checkpoint this one resumes, or by another one.

    Args:
        steps: of all checkpoints in the folder.
        limit: `save_total_limit`; None or less than 1 for no limit.
        current: the step just saved, which stays.
        best: the step of the best checkpoint, which stays; None where there is none.
    """
    if limit is None or limit < 1:
        return []
    kept = {current, best} & set(steps)
    by_age = sorted(steps, key=lambda step: (step <= current, step))
    num_expendable = len(steps) - max(limit, len(kept))
    return [step for step in by_age if step not in kept][: max(num_expendable, 0)]


def _entries_of(content: Any) -> tuple[dict[str, dict[str, Any]], bool]:
    """Return a list's entries by name, and whether the checkpoint holds more than a model.

    Raises:
        ValueError: it is no list as `write_manifest` writes it.
    """
    files = content.get("files") if isinstance(content, dict) else None
    if not isinstance(files, dict) or not files:
        raise ValueError("it lists no files")
    for name, entry in files.items():
        size, digest = (entry.get("bytes"), entry.get("sha256")) if isinstance(entry, dict) else (None, None)
        if type(size) is not int or not isinstance(digest, str):
            raise ValueError(f"the entry of {name!r} has no size or no checksum")
    is_resumable = content.get("is_resumable")
    if not isinstance(is_resumable, bool):
        raise ValueError("it does not say is_resumable")
    return files, is_resumable


def _entry(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": _sha256(path)}


def _sha256(path: Path) -> str:
    digest, buffer = hashlib.sha256(), bytearray(_CHUNK)
    view = memoryview(buffer)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(view[:count])
    return digest.hexdigest()


def _size_flaw(path: Path, name: str, size: int) -> str:
    try:
        found = path.stat().st_size
    except FileNotFoundError:
        return f"{name} is missing"
    except OSError as error:
        return f"{name} cannot be read ({error})"
    if found < size:
        return f"{name} is cut off: it has {found} of {size} bytes"
    return f"{name} has changed: it has {found} bytes and had {size}" if found != size else ""


def _content_flaw(path: Path, name: str, entry: dict[str, Any]) -> str:
    try:
        return "" if _sha256(path) == entry["sha256"] else f"{name} has changed: its SHA-256 is another one"
    except OSError as error:
        return f"{name} cannot be read ({error})"


def _num_readers() -> int:
    return min(_MAX_READERS, os.cpu_count() or 1)
