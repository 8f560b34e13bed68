"""Measures rows with the package that PYTHONPATH gives; a process of its own for each tree.

    PYTHONPATH=TREE/src python scripts/same/measure.py --tree TREE --output FOLDER ROW ...

Of the package it imports `SRPOConfig`, `SRPOTrainer` and the command line, and nothing else: everything below them
may move.
"""

import argparse
import gc
import os
import random
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from recording import Values
from rows import ROWS, Row
from runs import RUNS
from untrained import UNTRAINED

KINDS: dict[str, Callable[[Row, Path], Values]] = RUNS | UNTRAINED
ERROR = "error"


def measure(row: Row, folder: Path) -> Values:
    """Return everything that a row leaves behind; the traceback under `ERROR` where it fails."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    folder.mkdir()
    try:
        with mock.patch.dict(os.environ):
            return KINDS[row.kind](row, folder)
    except Exception:
        return {ERROR: traceback.format_exc()}


def refuse_other_package(tree: Path) -> None:
    """Raise RuntimeError unless the package that is imported lies in the tree."""
    import srpo_trl

    found = Path(srpo_trl.__file__).resolve()
    if not found.is_relative_to(tree.resolve() / "src"):
        raise RuntimeError(f"{found} is imported, which is not below {tree / 'src'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tree", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("rows", nargs="+")
    arguments = parser.parse_args()
    refuse_other_package(arguments.tree)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)
    by_name = {row.name: row for row in ROWS}
    with tempfile.TemporaryDirectory() as root:
        for name in arguments.rows:
            start = time.monotonic()
            with (
                (Path(root) / "printed").open("w") as printed,
                redirect_stdout(printed),
                redirect_stderr(printed),
            ):
                values = measure(by_name[name], Path(root) / name)
            torch.save(values, arguments.output / f"{name}.part")
            (arguments.output / f"{name}.part").rename(arguments.output / f"{name}.pt")  # whole, or not there
            note = values.get(ERROR, "").strip().rpartition("\n")[2]
            print(f"{name} {time.monotonic() - start:.1f} s {note}".rstrip(), flush=True)
            gc.collect()


if __name__ == "__main__":
    main()
