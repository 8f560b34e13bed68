"""Seconds of a training step of each variant of the learning study, at its start, where most rollouts are distilled.

    OMP_NUM_THREADS=1 python -m benchmarks.learning_seconds [outputs/learning] [--steps 10] [--rounds 2]

Counted are the process's own seconds, which other processes on the machine stretch less than wall-clock; the variants
take turns. `python -m benchmarks.learning` has prepared the tasks.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.learning import RECIPE, WARMUPS
from srpo_trl.commands.curves import markdown
from srpo_trl.commands.quickstart.quiet import quiet_libraries, quiet_logs, set_environment
from srpo_trl.methods import VARIANTS

WARM_UP_STEPS = 2


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.learning_seconds", description="See the file."
    )
    parser.add_argument("folder", type=Path, nargs="?", default=Path("outputs/learning"))
    parser.add_argument(
        "--steps", type=int, default=10, help="of each variant and round (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=2, help="default: %(default)s")
    options = parser.parse_args()
    set_environment()
    rows = [["variant", *WARMUPS]]
    with quiet_logs(), quiet_libraries():
        measured: dict[tuple[str, str], list[float]] = {}
        for _ in range(options.rounds):
            for task in WARMUPS:
                for variant in VARIANTS:
                    seconds = step_seconds(options.folder / task, variant, options.steps)
                    measured.setdefault((variant, task), []).extend(seconds)
    for variant in VARIANTS:
        rows.append([variant, *(f"{median(measured[variant, task]):.3f}" for task in WARMUPS)])
    print("\n".join(markdown(rows)))
    return 0


def step_seconds(folder: Path, variant: str, num_steps: int) -> list[float]:
    """Return the process's seconds of each step of a run from the task's start, warm-up steps left out."""
    from transformers import TrainerCallback
    from transformers.trainer_callback import PrinterCallback

    from srpo_trl import SRPOTrainer
    from srpo_trl.commands.train import prepare

    class CpuClock(TrainerCallback):
        def __init__(self) -> None:
            self.seconds: list[float] = []
            self._began = 0.0

        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            self._began = time.process_time()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            self.seconds.append(time.process_time() - self._began)

    with tempfile.TemporaryDirectory() as output_dir:
        words = [
            "--config",
            str(RECIPE),
            "--output_dir",
            output_dir,
            "--max_steps",
            str(WARM_UP_STEPS + num_steps),
        ]
        words += ["--model_name_or_path", str(folder / "start"), "--dataset_name", str(folder / "data")]
        words += ["--eval_strategy", "no", "--eval_on_start", "false", "--save_strategy", "no"]
        words += [word for option, value in VARIANTS[variant].items() for word in (f"--{option}", value)]
        training, problems = prepare(words)
        assert training is not None, problems
        trainer = SRPOTrainer(
            model=str(training.model_config.model_name_or_path),
            reward_funcs=training.rewards,
            args=training.config,
            train_dataset=training.train_rows,
        )
        trainer.remove_callback(PrinterCallback)
        clock = CpuClock()
        trainer.add_callback(clock)
        trainer.train()
    return clock.seconds[WARM_UP_STEPS:]


if __name__ == "__main__":
    sys.exit(main())
