"""Supervised training on the references alone: what else can be made of what `srpo_reference`'s teacher is shown."""

import time
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.learning.run import (
    EVAL_STEPS,
    HELD_OUT_SEED,
    Run,
    answers_of,
    held_out_questions,
    start_folder,
    training_questions,
    write_result,
)
from benchmarks.learning.tasks import TASKS
from srpo_trl.commands.quickstart.held_out import HeldOut
from srpo_trl.commands.quickstart.quiet import quiet_libraries, quiet_logs
from srpo_trl.commands.quickstart.warmup import load_start, train_on
from srpo_trl.data.tiny_model import build_tokenizer


def train_supervised(run: Run, study: Path) -> None:
    """Train the start on the right solution of each of the run's questions, and write the result.

    The questions, their order and number a step, the optimizer and the rate are those of the other rows.
    """
    task = TASKS[run.task]
    tokenizer = build_tokenizer(task.words)
    with quiet_logs(), quiet_libraries():
        loaded = load_start(start_folder(study, run.task, run.start))
        assert loaded is not None, "starts are made before runs"
        model = loaded[0]
        held_out = HeldOut(tokenizer, held_out_questions(task), HELD_OUT_SEED, task.is_right)
        questions = [replace(question, alone=question.demonstration) for question in training_questions(run)]
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
        points, seconds = [(0, held_out.accuracy(model.eval()))], 0.0
        for step in range(task.num_steps):
            rows = questions[step * task.prompts_per_step : (step + 1) * task.prompts_per_step]
            began = time.process_time()
            rate = run.rate * (1 - step / task.num_steps)
            train_on(model.train(), tokenizer, optimizer, rate, rows, num_shown=0)
            seconds += time.process_time() - began
            if (step + 1) % EVAL_STEPS == 0:
                points.append((step + 1, held_out.accuracy(model.eval())))
        answers = answers_of(model, tokenizer, task)
    tokens = sum(len(tokenizer(question.prompt + question.alone)["input_ids"]) for question in questions)
    write_result(run, study, points=points, seconds=seconds, rollouts=0, tokens=tokens, logged={}, **answers)
