"""The supervised start: a model that adds rightly now and then alone, and nearly always with a solution in view.

Both forms are trained, the question alone and the question in the trainer's teacher re-prompt; what is written after
the question alone comes from the task's careless textbook, and putting that right is left to reinforcement learning.
"""

import dataclasses
import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from srpo_trl.commands.quickstart.prompts import TEMPLATES, student_prompts, teacher_prompts
from srpo_trl.commands.quickstart.task import Question, sample_questions
from srpo_trl.data.tiny_model import build_model

RESULT_FILE = "warmup.json"
PACKAGES = ("torch", "transformers", "trl", "numpy", "srpo-trl")


@dataclass(frozen=True)
class WarmupRecipe:
    """What the start depends on: the same values give the same weights on one machine."""

    seed: int = 0
    num_steps: int = 550
    initializer_range: float = 0.08
    batch_size: int = 48
    shown_rows: int = 19
    learning_rate: float = 4e-3
    ramp_steps: int = 20

    def key(self, tokenizer: PreTrainedTokenizerFast) -> str:
        """Return a short name for all that the start depends on, the cache's key."""
        parts = [
            dataclasses.asdict(self),
            dataclasses.asdict(TEMPLATES),
            sorted(tokenizer.get_vocab().items()),
            [dataclasses.asdict(question) for question in sample_questions(32, self.seed)],  # the task's code
            versions(),
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]

    def rate(self, step: int) -> float:
        """Return the learning rate of `step`, from 1: a linear ramp, then linear to 0."""
        decay = (self.num_steps - step) / max(self.num_steps - self.ramp_steps, 1)
        return self.learning_rate * min(step / self.ramp_steps, max(decay, 0.0))


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that the results depend on."""
    return {name: version(name) for name in PACKAGES} | {"python": platform.python_version()}


@dataclass(frozen=True)
class WarmupResult:
    """What the warm-up took, in steps and in seconds of the processor."""

    num_steps: int
    seconds: float


def warm_up(
    tokenizer: PreTrainedTokenizerFast,
    recipe: WarmupRecipe,
    on_step: Callable[[int], None] = lambda step: None,
    questions: Sequence[Question] | None = None,
) -> tuple[Qwen3ForCausalLM, WarmupResult]:
    """Train a fresh model on worked solutions, and return it with what that took.

    Args:
        on_step: called after each step with its number.
        questions: of another task, `batch_size` for each step; None: this one's.
    """
    start = time.process_time()
    model = build_model(tokenizer, recipe.seed, initializer_range=recipe.initializer_range)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98))
    if questions is None:
        questions = sample_questions(recipe.batch_size * recipe.num_steps, seed=recipe.seed + 1)
    for step in range(1, recipe.num_steps + 1):
        batch = questions[(step - 1) * recipe.batch_size : step * recipe.batch_size]
        train_on(model, tokenizer, optimizer, recipe.rate(step), batch, num_shown=recipe.shown_rows)
        on_step(step)
    return model.eval(), WarmupResult(recipe.num_steps, time.process_time() - start)


def train_on(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    optimizer: torch.optim.Optimizer,
    learning_rate: float,
    questions: Sequence[Question],
    *,
    num_shown: int,
) -> None:
    """Take one optimizer step: the first `num_shown` questions with a solution in view, the others alone."""
    shown, alone = questions[:num_shown], questions[num_shown:]
    for rows, prompts, solutions in (
        (shown, teacher_prompts(tokenizer, shown), [question.shown for question in shown]),
        (alone, student_prompts(tokenizer, alone), [question.alone for question in alone]),
    ):
        if rows:
            share = len(rows) / len(questions)
            (solution_loss(model, tokenizer, prompts, solutions) * share).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step()
    optimizer.zero_grad()


def solution_loss(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[Sequence[int]],
    solutions: Sequence[str],
) -> Tensor:
    """Return the mean cross-entropy of the worked solutions' tokens after their prompts, in nats.

    Every prompt has the same length, and so has every solution: nothing is padded.
    """
    targets = tokenizer(list(solutions))["input_ids"]
    rows = [
        [*prompt, *target, tokenizer.eos_token_id] for prompt, target in zip(prompts, targets, strict=True)
    ]
    input_ids = torch.tensor(rows, device=model.device)
    num_targets = len(targets[0]) + 1
    logits = model(input_ids=input_ids, use_cache=False, logits_to_keep=num_targets + 1).logits[:, :-1]
    return functional.cross_entropy(logits.flatten(0, 1), input_ids[:, -num_targets:].flatten())


def save_start(
    folder: Path, model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, result: WarmupResult
) -> None:
    """Write the start to `folder`, which appears whole or not at all."""
    save_whole(folder, model, tokenizer, RESULT_FILE, dataclasses.asdict(result))


def save_whole(folder: Path, model: Any, tokenizer: Any, name: str, facts: dict[str, Any]) -> None:
    """Write model, tokenizer and facts, as JSON of this name, to `folder`, which appears whole or not at all."""
    staging = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
    model.save_pretrained(staging)
    tokenizer.save_pretrained(staging)
    (staging / name).write_text(json.dumps(facts, indent=2), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    staging.rename(folder)


def load_start(folder: Path) -> tuple[Qwen3ForCausalLM, WarmupResult] | None:
    """Return the start that `save_start` wrote, or None where there is none that is whole."""
    try:
        result = WarmupResult(**json.loads((folder / RESULT_FILE).read_text(encoding="utf-8")))
        loaded: Any = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    except Exception:  # each part of it fails in its own way where it is cut off
        return None
    model, report = loaded
    return None if report["missing_keys"] else (model, result)
