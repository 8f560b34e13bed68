"""Where the logs of runs lie: the run folders at and below a folder, and names that tell them apart."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from srpo_trl.runs.log import LOG_FILE, TRAINER_STATE_FILE

DEPTH = 3  # folders below the given one that are looked into: `compare` keeps runs/VARIANT/seed-N


def find_runs(folder: Path, say: Callable[[str], None] = print) -> list[Path]:
    """Return the folder, where it holds a run's log, and the run folders below it; checkpoints belong to their run.

    Args:
        folder: to look into.
        say: is told of each folder that cannot be read.
    Raises:
        ValueError: it is no folder, or there is no run.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder. Give the output_dir of a training run.")
    found = []

    def tell(error: OSError) -> None:
        say(f"{error.filename} cannot be read ({error.strerror}) and is left out.")

    for place, below, _ in os.walk(folder, onerror=tell):
        path = Path(place)
        try:
            if (path / LOG_FILE).is_file() or saved_states(path):
                found.append(path)
        except OSError as error:
            tell(error)
        is_deep = len(path.relative_to(folder).parts) >= DEPTH
        below[:] = [] if is_deep else sorted(name for name in below if not _is_passed_over(name))
    if not found:
        raise ValueError(
            f"{folder} holds no log of a run: looked for {LOG_FILE}, {TRAINER_STATE_FILE} and "
            f"checkpoint-*/{TRAINER_STATE_FILE}, there and up to {DEPTH} folders below. Give the output_dir of a "
            "training run, or a folder of such folders."
        )
    return found


def _is_passed_over(name: str) -> bool:
    return name.startswith((".", "checkpoint-"))


def saved_states(folder: Path) -> list[Path]:
    """Return the folder and its checkpoints with the highest step first, as far as they hold a trainer's state."""
    steps = {path: path.name.rpartition("-")[2] for path in folder.glob("checkpoint-*")}
    numbered = sorted((path for path in steps if steps[path].isdecimal()), key=lambda path: int(steps[path]))
    return [place for place in (folder, *reversed(numbered)) if (place / TRAINER_STATE_FILE).is_file()]


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
