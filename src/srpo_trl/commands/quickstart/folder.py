"""The quickstart's folder: one run at a time, and of an earlier quickstart's runs those that are made again go."""

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from srpo_trl.host.run_lock import LOCK_FILE, FolderInUseError, RunLock
from srpo_trl.runs.log import LOG_FILE, read_run_logs

START = "start-"  # what names of starts begin with, and hence the model's name in the log of a run from one


@contextmanager
def claimed(folder: Path, names: Iterable[str]) -> Iterator[None]:
    """Hold the folder for the block, without the runs of these names that an earlier quickstart left there.

    Raises:
        SystemExit: the folder cannot be used; says why.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = RunLock.take(folder)
    except FolderInUseError as error:
        raise SystemExit(f"srpo-trl quickstart: {error}") from error
    except OSError as error:
        raise SystemExit(_unusable(folder, error)) from error
    try:
        _remove_runs([folder / name for name in names])
        yield
    finally:
        lock.release()


def _remove_runs(places: list[Path]) -> None:
    found = [place for place in places if place.exists()]
    foreign = [str(place) for place in found if not _is_of_a_quickstart(place)]
    if foreign:
        raise SystemExit(
            f"srpo-trl quickstart: {', '.join(foreign)} would be replaced, but no quickstart made it. Move it away, or "
            "give another --output_dir."
        )
    for place in found:
        try:
            shutil.rmtree(place)
        except OSError as error:
            raise SystemExit(_unusable(place, error)) from error


def _is_of_a_quickstart(place: Path) -> bool:
    """Whether every run that logged into the folder began from a start of the quickstart; true of an empty folder."""
    if not place.is_dir() or place.is_symlink():
        return False
    log = place / LOG_FILE
    if not log.is_file():
        return all(entry.name.startswith(LOCK_FILE) for entry in place.iterdir())
    begins = [begin for run in read_run_logs(log) for begin in run.begins]
    return all(str(begin.get("model", "")).startswith(START) for begin in begins)


def _unusable(folder: Path, error: OSError) -> str:
    return (
        f"srpo-trl quickstart: {folder} cannot be used: {error.strerror}. Give as --output_dir a folder that can be "
        "written to."
    )
