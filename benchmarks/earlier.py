"""The package of another commit, measured beside this tree's."""

import functools
import importlib
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[1]
_PACKAGE = "srpo_trl"


@functools.cache
def _folder(commit: str) -> tempfile.TemporaryDirectory[str]:
    """The commit's `src`; it lives as long as the process."""
    git = ["git", "-C", str(_ROOT), "archive", commit, "src"]
    archive = subprocess.run(git, capture_output=True, check=True).stdout
    folder = tempfile.TemporaryDirectory()
    with tarfile.open(fileobj=BytesIO(archive)) as files:
        files.extractall(folder.name, filter="data")
    return folder


@contextmanager
def found_first(commit: str) -> Iterator[None]:
    """What imports the package meanwhile, a process started here included, gets the commit's."""
    path = str(Path(_folder(commit).name) / "src")
    sys.path.insert(0, path)
    try:
        yield
    finally:
        sys.path.remove(path)


@functools.cache
def operators(commit: str) -> Any:
    """The commit's `srpo_trl.loss.ops`, beside this tree's, which stays what imports give."""
    now = _taken_out()
    try:
        with found_first(commit):
            return importlib.import_module(f"{_PACKAGE}.loss.ops")
    finally:
        _taken_out()
        sys.modules.update(now)


def _taken_out() -> dict[str, Any]:
    """The package's modules, which the next import makes anew."""
    names = [name for name in sys.modules if name.split(".")[0] == _PACKAGE]
    return {name: sys.modules.pop(name) for name in names}
