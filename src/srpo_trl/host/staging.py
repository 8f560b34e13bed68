"""How a checkpoint becomes visible: whole, or not at all.

`Trainer` writes a checkpoint file by file into its final folder, so a run killed in the middle of a save leaves a
folder that looks like the last checkpoint and is not one. Here every process writes into a staging folder, which
takes its final name in one rename after the last file, the list of all the others (`manifest`).
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from srpo_trl.host.manifest import checkpoints_in, expendable
from srpo_trl.host.write_failures import cause_of

STAGING_FOLDER = ".saving"
_REPLACED, _REMOVED = ".replaced", ".removed"


def staging_folder(run_dir: str) -> str:
    """Return the folder inside which checkpoints are written before they take their final name."""
    return os.path.join(run_dir, STAGING_FOLDER)


def unwritable(folder: str) -> str:
    """Return why nothing can be written below a folder, which need not exist yet; empty where it can."""
    path = Path(folder).absolute()
    existing = next(place for place in (path, *path.parents) if place.exists())
    if not existing.is_dir():
        return f"{existing} is a file"
    return "" if os.access(existing, os.W_OK | os.X_OK) else f"{existing} is read-only"


@contextmanager
def explained_failure(run_dir: str, name: str, *, clears: bool) -> Iterator[None]:
    """Say, where the block fails to write a checkpoint, what that means; with `clears`, remove what it has written.

    Raises:
        OSError: in place of the many errors that a full or broken disk shows itself in.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # Python's, torch.save's, and safetensors'
        free = f", where {shutil.disk_usage(run_dir).free} bytes are free" if os.path.isdir(run_dir) else ""
        number, cause = cause_of(error, run_dir)
        if clears:
            with suppress(OSError):
                clear_staging(run_dir)
        reason = f"{cause.reason} ({error})" if cause.reason else str(error)
        explained = OSError(
            f"{name} could not be written into {run_dir}{free}: {reason}\nThe checkpoints before it are "
            f"whole. {cause.what_to_do}, then resume from the last one with resume_from_checkpoint."
        )
        explained.errno = number
        raise explained from error


def restore_replaced(run_dir: str) -> None:
    """Give a checkpoint its name back that a save, killed in the middle of replacing it, had set aside."""
    for replaced in Path(staging_folder(run_dir)).glob(f"*{_REPLACED}"):
        final = Path(run_dir) / replaced.name.removesuffix(_REPLACED)
        if not final.exists():
            replaced.rename(final)


def clear_staging(run_dir: str) -> None:
    """Remove what a killed save left behind, but a checkpoint that it had set aside."""
    restore_replaced(run_dir)
    shutil.rmtree(staging_folder(run_dir), ignore_errors=True)


def publish(run_dir: str, name: str) -> str:
    """Give a staged checkpoint its final name, in one step, and return its path.

    An older checkpoint of the same name is set aside first and removed last.
    """
    staged, final = os.path.join(staging_folder(run_dir), name), os.path.join(run_dir, name)
    replaced = os.path.join(staging_folder(run_dir), name + _REPLACED)
    _sync_to_disk(staged)
    if os.path.exists(final):
        os.rename(final, replaced)
    os.rename(staged, final)
    clear_staging(run_dir)
    return final


def rotate_checkpoints(run_dir: str, limit: int | None, current: int, best: int | None) -> None:
    """Remove the oldest checkpoints beyond `save_total_limit`, by their steps; a clock has no say in it.

    Each leaves its name before its first file goes, so that a run killed meanwhile leaves no half of one. Neither that
    of step `current`, which was just written, nor the best goes.
    """
    folders = dict(checkpoints_in(Path(run_dir)))
    for step in expendable(list(folders), limit, current, best):
        removed = Path(staging_folder(run_dir)) / (folders[step].name + _REMOVED)
        with suppress(OSError):  # as transformers, which passes over what it cannot remove
            removed.parent.mkdir(exist_ok=True)
            folders[step].rename(removed)
            shutil.rmtree(removed, ignore_errors=True)
    clear_staging(run_dir)


def _sync_to_disk(folder: str) -> None:
    """Flush every file of the folder, so that the rename never outlives the contents in a power cut."""
    flags = os.O_RDONLY if os.name == "posix" else os.O_RDWR  # Windows flushes only what may be written
    for root, _folders, files in os.walk(folder):
        for file in files:
            descriptor = os.open(os.path.join(root, file), flags)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
