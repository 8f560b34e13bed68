"""The other models that methods are given, each saved once in the study's folder and measured there."""

import copy
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from benchmarks.family.rows import FIRST_STAGE, TASK
from benchmarks.learning.run import Given, Run, make_model, start_folder, train
from benchmarks.learning.tasks import QUIZ_WARMUP, Start
from srpo_trl.commands.quickstart.task import Question
from srpo_trl.commands.quickstart.warmup import WarmupResult, load_start, train_on, warm_up

GIVEN_MODELS = "given"  # the folder of them
TEACHERS = (100, 101)  # warm-ups of their own: no start has these numbers
AVERAGED = (200, 201)
AVERAGED_STEPS, AVERAGED_RATE = 60, 1e-3


def model_folder(study: Path, kind: str, number: int) -> Path:
    """Return where the model of a kind and of this number lies."""
    return study / TASK.name / GIVEN_MODELS / f"{kind}-{number}"


def make_given(study: Path, kind: str, number: int) -> None:
    """Make, save and measure a model, unless it is there."""
    make_model(model_folder(study, kind, number), TASK, partial(MAKE[kind], study, number))


def teacher(study: Path, number: int, tokenizer: PreTrainedTokenizerFast) -> Start:
    """Return a model by the starts' warm-up on a textbook without mistakes."""
    recipe = replace(QUIZ_WARMUP, seed=number)
    questions = TASK.questions(recipe.batch_size * recipe.num_steps, number + 1)
    return warm_up(tokenizer, recipe, questions=[replace(each, alone=each.shown) for each in questions])


def average(study: Path, start: int, tokenizer: PreTrainedTokenizerFast) -> Start:
    """Return the average of two models that are trained on from one start, in two orders."""
    loaded = load_start(start_folder(study, TASK.name, start))
    assert loaded is not None, "starts are made first"
    first, second = (_trained_on(copy.deepcopy(loaded[0]), tokenizer, seed) for seed in AVERAGED)
    with torch.no_grad():
        for mine, other in zip(first.parameters(), second.parameters(), strict=True):
            mine.lerp_(other, 0.5)
    return first, WarmupResult(AVERAGED_STEPS, 0.0)


def _trained_on(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen3ForCausalLM:
    """Train on the start's own textbook, at a rate that falls to 0."""
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98))
    size, shown = QUIZ_WARMUP.batch_size, QUIZ_WARMUP.shown_rows
    questions: list[Question] = TASK.questions(size * AVERAGED_STEPS, seed)
    for step in range(AVERAGED_STEPS):
        batch = questions[step * size : (step + 1) * size]
        rate = AVERAGED_RATE * (1 - step / AVERAGED_STEPS)
        train_on(model.train(), tokenizer, optimizer, rate, batch, num_shown=shown)
    return model.eval()


def first_stage(study: Path, start: int, tokenizer: PreTrainedTokenizerFast) -> Start:
    """Return the last model of a GRPO run from one start."""
    run = Run(TASK.name, FIRST_STAGE, TASK.rate, start, start)
    return train(run, study, Given({"method": "grpo"})), WarmupResult(TASK.num_steps, 0.0)


OF_START = {"average": average, "first-stage": first_stage}  # one for each start
MAKE = {"teacher": teacher, **OF_START}
