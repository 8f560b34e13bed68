"""One reinforcement-learning run: a method, a seed, and the held-out accuracy along the way."""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM, TrainerCallback
from transformers.trainer_callback import PrinterCallback

from srpo_trl import SRPOConfig, SRPOTrainer
from srpo_trl.commands.quickstart.evaluate import sampled_accuracy
from srpo_trl.commands.quickstart.prompts import student_prompts, teacher_prompts
from srpo_trl.commands.quickstart.task import (
    SOLUTION_TOKENS,
    Question,
    addition_reward,
    prompt_dataset,
    sample_questions,
)
from srpo_trl.methods import PAPER_DEFAULTS


@dataclass(frozen=True)
class TrainingRecipe:
    """Everything that the three methods share; they differ in `method` alone."""

    num_steps: int = 100
    eval_every: int = 10
    prompts_per_step: int = 16
    num_generations: int = 8
    learning_rate: float = 2e-4
    max_completion_length: int = SOLUTION_TOKENS + 1

    def config(self, method: str, seed: int, output_dir: Path) -> SRPOConfig:
        """Return the trainer's configuration; every option that is not named here has SRPO's default."""
        return SRPOConfig(
            **(PAPER_DEFAULTS | {"learning_rate": self.learning_rate}),
            method=method,
            output_dir=str(output_dir),
            seed=seed,
            max_steps=self.num_steps,
            per_device_train_batch_size=self.prompts_per_step * self.num_generations,
            num_generations=self.num_generations,
            max_completion_length=self.max_completion_length,
            lr_scheduler_type="constant",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            logging_steps=self.eval_every,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )


@dataclass(frozen=True)
class HeldOut:
    """The fixed questions of every evaluation, and the seed that they are sampled with."""

    questions: list[Question]
    seed: int

    def accuracy(
        self, model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, *, shown: bool = False
    ) -> float:
        """Return the sampled accuracy, with a right solution shown as the teacher sees it, or without."""
        prompts = (teacher_prompts if shown else student_prompts)(tokenizer, self.questions)
        return sampled_accuracy(model, tokenizer, prompts, self.questions, self.seed)


@dataclass
class Curve:
    """Held-out accuracy of one run. Entry 0 is the common start; seconds are of training, evaluations left out."""

    method: str
    seed: int
    steps: list[int] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    routed_frac: list[float | None] = field(default_factory=list)

    @property
    def mean_accuracy(self) -> float:
        """Mean over the measured steps after the start."""
        return sum(self.accuracy[1:]) / max(len(self.accuracy) - 1, 1)

    def as_dict(self) -> dict[str, Any]:
        """Return the raw numbers for `results.json`."""
        return dataclasses.asdict(self) | {"mean_accuracy": self.mean_accuracy}


def train_method(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    method: str,
    seed: int,
    recipe: TrainingRecipe,
    held_out: HeldOut,
    start_accuracy: float,
    output_dir: Path,
    on_step: Callable[[int, str], None] | None = None,
) -> Curve:
    """Train `model` in place with one method and return its held-out curve.

    Args:
        start_accuracy: of `model`, measured by `held_out`: the curve's entry 0.
        on_step: called after each step with its number and, after a measurement, its result (else "").
    """
    curve = Curve(method, seed, steps=[0], accuracy=[start_accuracy], seconds=[0.0], routed_frac=[None])
    questions = sample_questions(recipe.num_steps * recipe.prompts_per_step, seed=1000 + seed)
    trainer = SRPOTrainer(
        model=model,
        reward_funcs=addition_reward,
        args=recipe.config(method, seed, output_dir),
        train_dataset=prompt_dataset(questions),
        processing_class=tokenizer,
        callbacks=[_Measure(curve, recipe, held_out, tokenizer, on_step)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return curve


class _Measure(TrainerCallback):
    """Measures held-out accuracy every few steps, on a clock that stands still meanwhile."""

    def __init__(
        self,
        curve: Curve,
        recipe: TrainingRecipe,
        held_out: HeldOut,
        tokenizer: PreTrainedTokenizerFast,
        on_step: Callable[[int, str], None] | None,
    ) -> None:
        self._curve, self._recipe, self._held_out = curve, recipe, held_out
        self._tokenizer, self._on_step = tokenizer, on_step
        self._trained_seconds = 0.0
        self._resumed_at = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._resumed_at = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure every `eval_every` steps and at the last one."""
        step = state.global_step
        note = ""
        if step % self._recipe.eval_every == 0 or step == self._recipe.num_steps:
            self._trained_seconds += time.perf_counter() - self._resumed_at
            self._curve.steps.append(step)
            self._curve.seconds.append(self._trained_seconds)
            self._curve.accuracy.append(self._held_out.accuracy(kwargs["model"], self._tokenizer))
            self._curve.routed_frac.append(None)
            note = f"held-out accuracy {self._curve.accuracy[-1]:.3f}"
            self._resumed_at = time.perf_counter()
        if self._on_step is not None:
            self._on_step(step, note)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any
    ) -> None:
        """Keep the share of rollouts that were distilled since the last measurement."""
        if logs and "srpo/route/distilled_frac" in logs and state.global_step == self._curve.steps[-1]:
            self._curve.routed_frac[-1] = logs["srpo/route/distilled_frac"]
