"""The learning study: the paper's seven variants on two offline tasks, from one start each, several seeds.

    python -m benchmarks.learning [--seeds 3] [--jobs 1] [--output_dir outputs/learning]

Both tasks are 4-digit addition by a model of 0.2 million parameters, warmed up to about a third right alone:

- `add4`: solutions are written in one form; a teacher that is shown one knows nearly every token.
- `add4_forms`: each column in any of four forms; what the teacher is shown does not tell it which one comes next.

It prepares start and data of both, then it is `srpo-trl compare` with `benchmarks/learning.yaml`, once for each task
and number of seeds, so that a study that is cut short has the same seeds of everything.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from srpo_trl.commands.compare.command import compare
from srpo_trl.commands.quickstart.quiet import quiet_libraries, quiet_logs, set_environment

RECIPE = Path(__file__).with_name("learning.yaml")
TRAIN_QUESTIONS, TRAIN_SEED = 3200, 1000  # 200 steps of 16 questions: one epoch
HELD_OUT_QUESTIONS, HELD_OUT_SEED = 512, 5
# More forms take longer to learn; then competence comes within a few steps.
FORMS_WARMUP = {"num_forms": 4, "max_steps": 1000, "decay_steps": 1900, "near_accuracy": 0.06}
WARMUPS = {"add4": {}, "add4_forms": FORMS_WARMUP}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning", description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (default: %(default)s)")
    parser.add_argument("--budget", default="40steps,100steps,200steps", help="default: %(default)s")
    parser.add_argument(
        "--output_dir", type=Path, default=Path("outputs/learning"), help="default: %(default)s"
    )
    parser.add_argument("--table_only", action="store_true", help="start nothing: what has been run so far")
    options = parser.parse_args()
    set_environment()
    from benchmarks.learning_report import report  # imports torch, which reads the environment

    for task in WARMUPS:
        prepare_task(task, options.output_dir / task)
    status = 0
    for num_seeds in range(options.seeds if options.table_only else 1, options.seeds + 1):
        for task in WARMUPS:
            folder = options.output_dir / task
            words = [str(RECIPE), "--variants", "all", "--seeds", str(num_seeds), "--jobs", str(options.jobs)]
            words += ["--table_only"] * options.table_only
            words += ["--budget", options.budget, "--output_dir", str(folder), "--"]
            words += ["--model_name_or_path", str(folder / "start"), "--dataset_name", str(folder / "data")]
            status = max(status, compare(words))
    report(options.output_dir)
    return status


def prepare_task(task: str, folder: Path) -> None:
    """Write the warmed-up start and the questions of `task` to `folder`, where they are not there yet."""
    from benchmarks.add4 import MeasuredWarmup, add4_questions, warm_up_to_accuracy
    from srpo_trl.commands.quickstart.task import prompt_dataset
    from srpo_trl.commands.quickstart.warmup import load_start, save_start
    from srpo_trl.data.tiny_model import build_tokenizer

    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    with quiet_logs(), quiet_libraries():
        prompt_dataset(add4_questions(TRAIN_QUESTIONS, TRAIN_SEED)).to_json(data / "train.jsonl")
        held_out = add4_questions(HELD_OUT_QUESTIONS, HELD_OUT_SEED, held_out=True)
        prompt_dataset(held_out).to_json(data / "test.jsonl")
        if load_start(folder / "start") is None:
            tokenizer = build_tokenizer()
            model, result = warm_up_to_accuracy(tokenizer, MeasuredWarmup(**WARMUPS[task]))
            save_start(folder / "start", model, tokenizer, result)
            print(task, json.dumps(dataclasses.asdict(result)))


if __name__ == "__main__":
    sys.exit(main())
