"""Temporary work trees of commits."""

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def git(*arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=REPOSITORY, check=True, capture_output=True, text=True
    ).stdout.strip()


@contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """Give a temporary work tree of a commit."""
    with tempfile.TemporaryDirectory(prefix="same-") as root:
        tree = Path(root) / "tree"
        git("worktree", "add", "--detach", str(tree), commit)
        try:
            yield tree
        finally:
            git("worktree", "remove", "--force", str(tree))
