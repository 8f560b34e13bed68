"""The learning study's tasks and their starts: plain 4-digit addition, written in one form or in any of four.

    user       6045+3496
    assistant  5+6=11;4+9=14;0+4=05;6+3=09;#09541

With `num_forms=4` each column may be written in any of four ways, such as `11=6+5;`: a right solution then tells what
the sums are and not how the next one writes them, and a teacher that is shown one stays unsure of the form.

The start is an ordinary model whose supervised training was stopped at a measured accuracy, long before it can add.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from srpo_trl.commands.quickstart.held_out import HeldOut
from srpo_trl.commands.quickstart.task import NUM_DIGITS, Question, is_held_out
from srpo_trl.commands.quickstart.warmup import WarmupResult, train_on
from srpo_trl.data.tiny_model import build_model

COLUMN_TOKENS = 7  # of `a+b=cs;`
# 4 columns, `#`, 5 digits, end of sequence.
ADD4_TOKENS = NUM_DIGITS * COLUMN_TOKENS + 1 + NUM_DIGITS + 1 + 1
COLUMN_FORMS = ("{0}+{1}={2};", "{1}+{0}={2};", "{2}={0}+{1};", "{2}={1}+{0};")  # two digits, their sum


def add4_questions(
    num_questions: int, seed: int, *, held_out: bool = False, num_forms: int = 1
) -> list[Question]:
    """Return questions drawn uniformly, with replacement, from the training part or the held-out part.

    Args:
        num_questions: how many.
        seed: of the draw.
        held_out: which part.
        num_forms: the first so many of COLUMN_FORMS, drawn anew for each column of solution and demonstration.
    """
    generator = np.random.default_rng(seed)
    questions: list[Question] = []
    while len(questions) < num_questions:
        first, second = map(int, generator.integers(0, 10**NUM_DIGITS, size=2))
        forms = [[0] * NUM_DIGITS] * 2
        if num_forms > 1:
            forms = generator.integers(0, num_forms, size=(2, NUM_DIGITS)).tolist()
        if is_held_out(first, second) == held_out:
            solution, demonstration = (written_in(each, first, second) for each in forms)
            prompt = f"{first:0{NUM_DIGITS}d}+{second:0{NUM_DIGITS}d}"
            answer = f"{first + second:0{NUM_DIGITS + 1}d}"
            questions.append(Question(prompt, answer, solution, demonstration, solution))
    return questions


def chooses_form(place: Any) -> Any:
    """Whether the token at this place of a solution, or at each of a tensor's, is the first one of a column."""
    return (place % COLUMN_TOKENS == 0) & (place < NUM_DIGITS * COLUMN_TOKENS)


def written_in(forms: Sequence[int], first: int, second: int) -> str:
    """Return the worked solution with each column in its form, an index of COLUMN_FORMS."""
    columns, carry = [], 0
    for place, form in enumerate(forms):
        first_digit, second_digit = (number // 10**place % 10 for number in (first, second))
        column_sum = first_digit + second_digit + carry
        columns.append(COLUMN_FORMS[form].format(first_digit, second_digit, f"{column_sum:02d}"))
        carry = column_sum // 10
    return "".join(columns) + f"#{first + second:0{NUM_DIGITS + 1}d}"


@dataclass(frozen=True)
class MeasuredWarmup:
    """A warm-up that ends at a measured accuracy; the same values give the same weights on one machine."""

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
    teacher_ratio: float = 2.0  # of the accuracy with a solution shown to the one without
    num_forms: int = 1  # of a column

    def rate(self, step: int, is_near: bool) -> float:
        """Return the learning rate of `step`, from 1: a linear ramp, a linear decay, and smaller near the end."""
        decay = (self.decay_steps - step) / (self.decay_steps - self.ramp_steps)
        scale = min(step / self.ramp_steps, max(decay, 0.0))
        return self.learning_rate * scale * (self.near_learning_rate_scale if is_near else 1.0)


def warm_up_to_accuracy(
    tokenizer: PreTrainedTokenizerFast, recipe: MeasuredWarmup
) -> tuple[Qwen3ForCausalLM, WarmupResult]:
    """Train a fresh model on worked solutions until it is good enough, and return it."""
    model = build_model(tokenizer, recipe.seed, initializer_range=recipe.initializer_range)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98))
    num_questions, num_forms = recipe.batch_size * recipe.max_steps, recipe.num_forms
    questions = add4_questions(num_questions, seed=recipe.seed + 1, num_forms=num_forms)
    checked = add4_questions(recipe.check_questions, seed=recipe.seed + 2, num_forms=num_forms)
    check = HeldOut(tokenizer, checked, recipe.seed)  # of the training part, and not trained on
    start, step, is_near, is_reached = time.process_time(), 0, False, False
    next_check = min(recipe.first_check, recipe.max_steps)
    while step < recipe.max_steps and not is_reached:
        batch = questions[step * recipe.batch_size : (step + 1) * recipe.batch_size]
        rate = recipe.rate(step + 1, is_near)
        train_on(model, tokenizer, optimizer, rate, batch, num_shown=recipe.teacher_rows)
        step += 1
        if step == next_check:
            accuracy = check.accuracy(model)
            is_reached = (
                accuracy >= recipe.student_accuracy
                and check.accuracy(model, shown=True) >= recipe.teacher_ratio * accuracy
            )
            is_near = is_near or accuracy >= recipe.near_accuracy
            wait = recipe.near_check_every if is_near else recipe.check_every
            next_check = min(step + wait, recipe.max_steps)
    return model.eval(), WarmupResult(step, time.process_time() - start)
