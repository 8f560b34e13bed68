"""Shows that the working tree trains to the bit as another commit does.

    python scripts/same --rev COMMIT [--only NAME ...] [--list] [--verbose] [--fresh] [--tree FOLDER]

The same short runs (`rows.py`) are measured once with the commit's `src/` and once with the working tree's, each in
a process of its own, and everything that they log, train and write is compared. Results of a commit are kept in
`build/same/`. The exit code is 1 where anything differs or fails: numbers must not; a key or text that does is to be
explained, or entered in `renamed.py`.
"""

import argparse
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from compare import Difference, compare, digest
from rows import ROWS
from trees import REPOSITORY, checked_out, git

HERE = Path(__file__).resolve().parent
RESULTS = REPOSITORY / "build" / "same"
ERROR = "error"  # the key of a row that failed, as in measure.py
NOT_MEASURING = {
    "__main__.py",
    "compare.py",
    "renamed.py",
    "steps.py",
    "trees.py",
}  # kept results stay valid when these change
PACKAGES = ("torch", "trl", "transformers", "peft", "accelerate", "datasets")


def kept_in(commit: str) -> Path:
    """Return the folder of a commit's results, as these files and packages measure them."""
    measuring = sorted(path for path in HERE.glob("*.py") if path.name not in NOT_MEASURING)
    stamp = hashlib.sha256(b"".join(path.read_bytes() for path in measuring))
    stamp.update(" ".join([sys.version, *map(version, PACKAGES)]).encode())
    return RESULTS / commit / stamp.hexdigest()[:12]


def measure(tree: Path, names: Sequence[str], output: Path) -> None:
    """Measure rows with a tree's package, one file each.

    Raises:
        RuntimeError: the measuring process ended before its last row.
    """
    output.mkdir(parents=True, exist_ok=True)
    for name in names:
        (output / f"{name}.pt").unlink(missing_ok=True)
    environment = os.environ | {
        "PYTHONPATH": str(tree / "src"),
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "WANDB_MODE": "disabled",
    }
    command = [sys.executable, str(HERE / "measure.py"), "--tree", str(tree), "--output", str(output), *names]
    start = time.monotonic()
    with tempfile.TemporaryFile("w+", errors="replace") as said:
        code = subprocess.run(command, env=environment, stdout=said, stderr=subprocess.STDOUT).returncode
        said.seek(0)
        last_lines = said.read().splitlines()[-20:]
    if code:
        raise RuntimeError("\n".join([f"{tree} could not be measured (exit code {code}):", *last_lines]))
    print(f"  {len(names)} rows in {time.monotonic() - start:.0f} s", flush=True)


def load(folder: Path, name: str) -> dict[str, Any]:
    return torch.load(folder / f"{name}.pt", weights_only=False)  # written by measure.py


def reference(commit: str, names: Sequence[str], fresh: bool) -> Path:
    """Return the folder with the commit's results, measuring those that are not kept or had failed."""
    folder = kept_in(commit)
    if fresh:
        shutil.rmtree(folder, ignore_errors=True)
    missing = [n for n in names if not (folder / f"{n}.pt").is_file() or ERROR in load(folder, n)]
    print(f"{commit[:12]}: {len(names) - len(missing)} rows kept, {len(missing)} to measure", flush=True)
    if missing:
        with checked_out(commit) as tree:
            measure(tree, missing, folder)
    return folder


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rev", metavar="COMMIT", help="what the tree is compared with")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="measure these rows alone")
    parser.add_argument("--tree", type=Path, default=REPOSITORY, help="tree to check (default: this one)")
    parser.add_argument("--fresh", action="store_true", help="measure the commit again")
    parser.add_argument("--list", action="store_true", help="print the rows and stop")
    parser.add_argument("--verbose", action="store_true", help="print everything that differs")
    arguments = parser.parse_args()
    if not arguments.list and not arguments.rev:
        parser.error("give --rev COMMIT")
    unknown = sorted(set(arguments.only or ()) - {row.name for row in ROWS})
    if unknown:
        parser.error(f"no rows named {', '.join(unknown)}; --list shows all")
    return arguments


def main() -> int:
    arguments = parse_arguments()
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(143)
    )  # the commit's work tree is removed on the way out
    names = [row.name for row in ROWS if not arguments.only or row.name in arguments.only]
    if arguments.list:
        print(*names, sep="\n")
        return 0
    commit = git("rev-parse", "--verify", f"{arguments.rev}^{{commit}}")
    expected = reference(commit, names, arguments.fresh)
    tree = arguments.tree.resolve()
    found_in = RESULTS / "working" / hashlib.sha256(str(tree).encode()).hexdigest()[:12]
    print(f"{tree}: {len(names)} rows to measure", flush=True)
    measure(tree, names, found_in)

    failed, differences = [], dict[str, Difference]()
    for name in names:
        old, new = load(expected, name), load(found_in, name)
        errors = [f"{side}: {v[ERROR]}" for side, v in (("commit", old), ("tree", new)) if ERROR in v]
        if errors:
            failed.append(name)
            shown = errors if arguments.verbose else [e.strip().rpartition("\n")[2] for e in errors]
            print(f"{name}: FAILS", *shown, sep="\n      ")
            continue
        found = differences[name] = compare(old, new)
        print(
            f"{name}: {found.summary()}" + (f" ({len(new)} values, {digest(new)})" if not any(found) else "")
        )
        if arguments.verbose:
            print("".join(f"      {line}\n" for line in found.details()), end="")
    return conclude(names, failed, differences)


def conclude(names: Sequence[str], failed: Sequence[str], differences: dict[str, Difference]) -> int:
    """Print how many rows are equal, and return the exit code."""
    num_equal = sum(not any(found) for found in differences.values())
    numbers = sum(bool(found.numbers) for found in differences.values())
    texts = sum(bool(found.texts) for found in differences.values())
    keys = sum(bool(found.gone or found.added) for found in differences.values())
    print(
        f"{num_equal} of {len(names)} rows equal; numbers differ in {numbers}, texts in {texts}, keys in {keys}; "
        f"{len(failed)} fail"
    )
    return 0 if num_equal == len(names) else 1


if __name__ == "__main__":
    sys.exit(main())
