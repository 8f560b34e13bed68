"""The supervised start: a model that adds rightly now and then alone, and mostly with a solution in view.

Both forms are trained, the question alone and the question in the trainer's teacher re-prompt. It stops at a
measured accuracy, long before the model has learned to add: that is left to reinforcement learning.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from srpo_trl.commands.quickstart.held_out import HeldOut
from srpo_trl.commands.quickstart.prompts import TEMPLATES, student_prompts, teacher_prompts
from srpo_trl.commands.quickstart.task import Question, sample_questions
from srpo_trl.data.tiny_model import build_model

RESULT_FILE = "warmup.json"


@dataclass(frozen=True)
class WarmupRecipe:
    """What the start depends on: the same values give the same weights on one machine."""

    seed: int = 0
    initializer_range: float = 0.08
    batch_size: int = 32
    teacher_rows: int = 10
    learning_rate: float = 4e-3
    ramp_steps: int = 20
    decay_steps: int = 500
    max_steps: int = 400
    first_check: int = 144
    check_every: int = 12
    check_questions: int = 256
    near_accuracy: float = 0.12  # from here on, smaller steps and closer checks, so as not to overshoot
    near_check_every: int = 4
    near_learning_rate_scale: float = 0.3
    student_accuracy: float = 0.35
    teacher_ratio: float = 2.0
    num_forms: int = 1  # of a column, see `task.sample_questions`

    def key(self, tokenizer: PreTrainedTokenizerFast) -> str:
        """Return a short name for the recipe with this vocabulary and these templates, the cache's key."""
        parts = [
            dataclasses.asdict(self),
            dataclasses.asdict(TEMPLATES),
            sorted(tokenizer.get_vocab().items()),
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class WarmupResult:
    """What the warm-up came to. The accuracies are those that it stopped on."""

    num_steps: int
    student_accuracy: float
    teacher_accuracy: float
    reached: bool
    seconds: float


def warm_up(
    tokenizer: PreTrainedTokenizerFast,
    recipe: WarmupRecipe,
    on_step: Callable[[int, str], None] | None = None,
) -> tuple[Qwen3ForCausalLM, WarmupResult]:
    """Train a fresh model on worked solutions until it is good enough, and return it with what was measured.

    Args:
        on_step: called after each step with its number and, after a check, what the check found (else "").
    """
    start = time.perf_counter()
    model = build_model(tokenizer, recipe.seed, initializer_range=recipe.initializer_range)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98))
    num_questions = recipe.batch_size * recipe.max_steps
    questions = sample_questions(num_questions, seed=recipe.seed + 1, num_forms=recipe.num_forms)
    checked = sample_questions(recipe.check_questions, seed=recipe.seed + 2, num_forms=recipe.num_forms)
    check = HeldOut(tokenizer, checked, recipe.seed)  # of the training part, and not trained on
    student_accuracy = teacher_accuracy = 0.0
    reached = is_near = False
    step, next_check = 0, min(recipe.first_check, recipe.max_steps)
    while step < recipe.max_steps and not reached:
        _set_learning_rate(optimizer, step + 1, is_near, recipe)
        batch = questions[step * recipe.batch_size : (step + 1) * recipe.batch_size]
        shown, alone = batch[: recipe.teacher_rows], batch[recipe.teacher_rows :]
        _train_on(model, tokenizer, optimizer, shown=shown, alone=alone)
        step += 1
        message = ""
        if step == next_check:
            student_accuracy = check.accuracy(model)
            message = f"right alone {student_accuracy:.2f}"
            if student_accuracy >= recipe.student_accuracy or step == recipe.max_steps:
                teacher_accuracy = check.accuracy(model, shown=True)
                message += f", shown a solution {teacher_accuracy:.2f}"
                reached = (
                    student_accuracy >= recipe.student_accuracy
                    and teacher_accuracy >= recipe.teacher_ratio * student_accuracy
                )
            is_near = is_near or student_accuracy >= recipe.near_accuracy
            wait = recipe.near_check_every if is_near else recipe.check_every
            next_check = min(step + wait, recipe.max_steps)
        if on_step is not None:
            on_step(step, message)
    seconds = time.perf_counter() - start
    return model.eval(), WarmupResult(step, student_accuracy, teacher_accuracy, reached, seconds)


def _train_on(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    optimizer: torch.optim.Optimizer,
    *,
    shown: list[Question],
    alone: list[Question],
) -> None:
    """Take one optimizer step: `shown` questions with a solution in view, the others alone, equal rows."""
    for questions, prompts in (
        (shown, teacher_prompts(tokenizer, shown)),
        (alone, student_prompts(tokenizer, alone)),
    ):
        if questions:
            share = len(questions) / (len(shown) + len(alone))
            (solution_loss(model, tokenizer, prompts, questions) * share).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def solution_loss(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[Sequence[int]],
    questions: Sequence[Question],
) -> Tensor:
    """Return the mean cross-entropy of the worked solutions' tokens after their prompts, in nats.

    Every prompt has the same length, and so has every solution: nothing is padded.
    """
    solutions = tokenizer([question.solution for question in questions])["input_ids"]
    rows = [
        [*prompt, *solution, tokenizer.eos_token_id]
        for prompt, solution in zip(prompts, solutions, strict=True)
    ]
    input_ids = torch.tensor(rows, device=model.device)
    num_targets = len(solutions[0]) + 1
    logits = model(input_ids=input_ids, use_cache=False, logits_to_keep=num_targets + 1).logits[:, :-1]
    return functional.cross_entropy(logits.flatten(0, 1), input_ids[:, -num_targets:].flatten())


def _set_learning_rate(
    optimizer: torch.optim.Optimizer, step: int, is_near: bool, recipe: WarmupRecipe
) -> None:
    """Set the rate of `step` (from 1): a linear ramp, a linear decay, and smaller near the end."""
    decay = (recipe.decay_steps - step) / (recipe.decay_steps - recipe.ramp_steps)
    scale = min(step / recipe.ramp_steps, max(decay, 0.0))
    for group in optimizer.param_groups:
        group["lr"] = recipe.learning_rate * scale * (recipe.near_learning_rate_scale if is_near else 1.0)


def save_start(
    folder: Path, model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, result: WarmupResult
) -> None:
    """Write the start to `folder`, which appears whole or not at all."""
    staging = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
    model.save_pretrained(staging)
    tokenizer.save_pretrained(staging)
    (staging / RESULT_FILE).write_text(json.dumps(dataclasses.asdict(result), indent=2), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    staging.rename(folder)


def load_start(folder: Path) -> tuple[Qwen3ForCausalLM, WarmupResult] | None:
    """Return the start that `save_start` wrote, or None where there is none."""
    if not (folder / RESULT_FILE).is_file():
        return None
    result = WarmupResult(**json.loads((folder / RESULT_FILE).read_text(encoding="utf-8")))
    return Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32), result
