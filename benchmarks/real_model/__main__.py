"""GRPO, SDPO and SRPO on a pretrained model: `python -m benchmarks.real_model --model DIR_OR_ID`; again to go on.

The exit status is 0 where all steps are done, 1 where the time was up before, 2 for wrong arguments and 3 where the
start gives a teacher nothing to teach.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.real_model.task import LEVELS

DONE, NOT_ALL, WRONG, REFUSED = range(4)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    options = parser().parse_args(argv)
    began = time.time()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import torch

    from benchmarks.real_model.headroom import describe, reason_to_refuse
    from benchmarks.real_model.start import StartOptions
    from benchmarks.real_model.study import FolderError, Study
    from benchmarks.real_model.tables import write_report
    from benchmarks.tables import commit, environment
    from srpo_trl.commands.quickstart.quiet import quiet_libraries, quiet_logs

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    study = Study(
        options.out.resolve(),
        StartOptions(
            options.model,
            options.gguf,
            options.level,
            options.warmup_examples,
            options.start_questions,
            device,
        ),
        seeds=options.seeds,
        jobs=options.jobs,
        max_steps=options.steps,
        piece=options.piece,
        prompts=options.prompts,
        eval_questions=options.eval_questions,
        learning_rate=options.learning_rate,
        layers=options.layers,
    )

    def say(text: str) -> None:
        print(text, flush=True)

    try:
        study.claim()
    except FolderError as error:
        print(f"benchmarks.real_model: {error}", file=sys.stderr)
        return WRONG
    with quiet_logs(), quiet_libraries():
        facts = study.begin(say)
        say("\n".join(describe(facts)))
        if reason := reason_to_refuse(facts):
            print(f"benchmarks.real_model: not trained, as {reason}", file=sys.stderr)
            return REFUSED
        study.train(facts["level"], options.steps, began + 60 * options.minutes)
        header = environment(torch.device(device)) | {"commit": commit()}
        say("\n" + write_report(study, facts, header))
    return DONE if study.steps_done() == options.steps else NOT_ALL


def parser() -> argparse.ArgumentParser:
    """Return the command's options."""
    found = argparse.ArgumentParser(
        prog="python -m benchmarks.real_model",
        description=(__doc__ or "").partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    found.add_argument("--model", required=True, help="hub id or folder")
    found.add_argument("--gguf", help="file in it that the weights and the tokenizer are read from")
    found.add_argument(
        "--out", type=Path, default=Path("outputs/real_model"), help="goes on where it stopped"
    )
    found.add_argument("--steps", type=int, default=200, help="of each run")
    found.add_argument("--seeds", type=int, default=2, help="runs of each method")
    found.add_argument("--jobs", type=int, default=1, help="seeds at a time, a process each")
    found.add_argument("--minutes", type=float, default=float("inf"), help="begin nothing that takes longer")
    found.add_argument(
        "--piece", type=int, default=10, help="steps from one evaluation and checkpoint to the next"
    )
    levels = [level.name for level in LEVELS]
    found.add_argument(
        "--level", choices=levels, help="terms x digits; where not given, by the model's accuracy"
    )
    found.add_argument(
        "--warmup_examples",
        type=int,
        help="where not given: 384 where the model is right in less than 10 %%, or 0",
    )
    found.add_argument("--prompts", type=int, default=8, help="questions of a step, 8 rollouts each")
    found.add_argument("--start_questions", type=int, default=64, help="that the start is measured with")
    found.add_argument("--eval_questions", type=int, default=128, help="of an evaluation")
    found.add_argument("--learning_rate", type=float, default=2e-4, help="of all methods, constant")
    found.add_argument("--layers", type=int, default=0, help="that have adapters, from the last one; 0: all")
    found.add_argument("--device", choices=("cuda", "cpu"), help="where not given: cuda if there is one")
    return found


if __name__ == "__main__":
    sys.exit(main())
