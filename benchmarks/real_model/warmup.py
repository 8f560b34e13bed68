"""A short supervised warm-up, for a model that does not yet answer in the form that is asked for.

Half of its examples are the question alone, half the question in the teacher's re-prompt with the answer shown.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.real_model.sampling import Prompts
from benchmarks.real_model.task import Question

BATCH_SIZE = 16
LEARNING_RATE = 3e-5
_RAMP = 5  # steps
_IGNORED = -100  # a target that has no loss


def warm_up(
    model: Any, prompts: Prompts, questions: Sequence[Question], on_step: Callable[[int, int], None]
) -> None:
    """Train all weights, which are float32, on the questions' answers, once each.

    Args:
        on_step: called after each step with its number and the number of all.
    """
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.0)
    num_steps = -(-len(questions) // BATCH_SIZE)
    for step in range(1, num_steps + 1):
        rate = LEARNING_RATE * min(step / _RAMP, (num_steps - step + 1) / num_steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = questions[(step - 1) * BATCH_SIZE : step * BATCH_SIZE]
        answer_loss(model, prompts, batch).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        on_step(step, num_steps)


def answer_loss(model: Any, prompts: Prompts, questions: Sequence[Question]) -> Tensor:
    """Return the mean cross-entropy of the answers' tokens: every second question has its answer shown."""
    tokenizer = prompts.tokenizer
    rows, targets = [], []
    for index, question in enumerate(questions):
        prompt = prompts.teacher(question, question.answer) if index % 2 else prompts.student(question)
        answer = [*tokenizer(question.answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        rows.append(prompt + answer)
        targets.append(answer)
    longest = max(map(len, targets))
    batch = tokenizer.pad({"input_ids": rows}, return_tensors="pt").to(model.device)
    labels = torch.tensor([[_IGNORED] * (longest - len(answer)) + answer for answer in targets])
    with torch.autocast(model.device.type, torch.bfloat16):
        logits = model(**batch, logits_to_keep=longest + 1).logits[:, :-1]
    return functional.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten().to(model.device), ignore_index=_IGNORED
    )
