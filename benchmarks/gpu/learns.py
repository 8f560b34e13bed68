"""h: GRPO, SDPO and SRPO on real weights, which is `benchmarks.real_model` at the sizes of a GPU."""

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from benchmarks.gpu.sections import Part, Row, Setting
from benchmarks.measure import free_memory
from benchmarks.real_model.headroom import describe, reason_to_refuse
from benchmarks.real_model.start import StartOptions
from benchmarks.real_model.study import Study
from benchmarks.real_model.tables import read_study, summary, write_report

PARTS = 2  # that the steps are measured in: each begins with new processes, and is done or not
FOLDER = "h_runs"


def parts(setting: Setting) -> list[Part]:
    """The start and its teacher, then the runs, up to a step for each part."""
    study = _study(setting)
    num_parts = 1 if setting.tiny else PARTS
    steps = [study.max_steps * part // num_parts for part in range(1, num_parts + 1)]
    deadline = time.time() + setting.seconds
    return [
        Part("start", "Before training", partial(start_rows, study, setting)),
        *(
            Part(f"{step} steps", f"{step} steps", partial(trained_rows, study, setting, step, deadline))
            for step in steps
        ),
    ]


def start_rows(study: Study, setting: Setting) -> list[Row]:
    """What was measured before training."""
    return [{"before training": line.removeprefix("- ")} for line in describe(_begin(study, setting))]


def trained_rows(study: Study, setting: Setting, until: int, deadline: float) -> Iterator[Row]:
    """Accuracies of all methods on the way to a step; checkpoints stay, so a part that is cut off goes on from them."""
    facts = _begin(study, setting)
    if (reason := reason_to_refuse(facts)) and not setting.tiny:
        raise RuntimeError(f"not trained, as {reason}")
    study.train(facts["level"], until, deadline)
    done = study.steps_done()
    if done < until:
        raise RuntimeError(f"{done} of {until} steps are done; the same command goes on from there")
    write_report(study, facts, {})
    yield from summary(read_study(study), until, study.piece, study.eval_questions).rows


def _begin(study: Study, setting: Setting) -> dict[str, Any]:
    study.claim()
    facts = study.begin(lambda text: print(text, flush=True))
    free_memory(torch.device(setting.device))
    return facts


def _study(setting: Setting) -> Study:
    folder = setting.folder / FOLDER
    start = StartOptions(str(setting.model), None, "2x2" if setting.tiny else None, None, 64, setting.device)
    if setting.tiny:
        start = start._replace(questions=4, warmup_examples=0)
        return Study(folder, start, seeds=1, max_steps=2, piece=1, prompts=1, eval_questions=2)
    return Study(
        folder,
        start,
        seeds=3,
        jobs=3,
        max_steps=200,
        piece=25,
        prompts=16,
        eval_questions=256,
        learning_rate=1e-4,
    )
