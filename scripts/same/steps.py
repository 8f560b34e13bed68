"""Seconds of an optimizer step in this tree over those in another commit, alternated on one machine.

    python scripts/same/steps.py --rev COMMIT [--steps 40]

Two processes, one for each tree, train the same tiny run and take turns: one step each, the first ones not counted.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from trees import REPOSITORY, checked_out

HERE = Path(__file__).resolve().parent
WARMUP = 3


def worker(tree: Path, num_steps: int) -> None:
    """Train; before each step wait for a line, after it print the step's seconds."""
    from measure import refuse_other_package
    from transformers import TrainerCallback

    refuse_other_package(tree)
    from rows import Row
    from runs import trainer

    class Turns(TrainerCallback):
        """Takes one step a line."""

        began = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            sys.stdin.readline()
            self.began = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            print(f"seconds {time.perf_counter() - self.began}", flush=True)

    # The batches of a step are drawn before `on_step_begin`; generation and all else come after it.
    options = {
        "max_steps": num_steps,
        "save_strategy": "no",
        "log_completions": False,
        "max_completion_length": 96,
    }
    options |= {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 2}
    row = Row("steps", "run", options, num_prompts=8)
    with tempfile.TemporaryDirectory() as folder:
        training = trainer(row, Path(folder))
        training.add_callback(Turns())
        training.train()


def start(tree: Path, num_steps: int) -> "subprocess.Popen[str]":
    environment = os.environ | {"PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / "steps.py"), "--worker", str(tree), "--steps", str(num_steps)]
    pipes: dict[str, Any] = {
        "stdin": subprocess.PIPE,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.DEVNULL,
    }
    return subprocess.Popen(command, env=environment, text=True, **pipes)


def step(process: "subprocess.Popen[str]") -> float:
    """Let a process take a step, and return its seconds."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    for line in process.stdout:
        if line.startswith("seconds "):
            return float(line.split()[1])
    raise RuntimeError("A process ended before its steps were done.")


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--rev", help="commit to compare with")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker is not None:
        worker(given.worker, given.steps)
        return
    with checked_out(given.rev) as tree:
        before, now = start(tree, given.steps), start(REPOSITORY, given.steps)
        pairs = [(step(before), step(now)) for _ in range(given.steps)][WARMUP:]
    ratios = [after / earlier for earlier, after in pairs]
    medians = [statistics.median(seconds) for seconds in zip(*pairs, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4)
    print(
        f"before {medians[0]:.4f} s, now {medians[1]:.4f} s: ratio of medians {medians[1] / medians[0]:.3f}"
    )
    quartiles = f"quartiles {low:.3f} to {high:.3f}"
    print(f"ratio of pairs: median {statistics.median(ratios):.3f}, {quartiles}, {len(ratios)} pairs")


if __name__ == "__main__":
    main()
