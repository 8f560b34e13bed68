"""One reinforcement-learning run: a method, a seed, and the held-out accuracy along the way."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM, TrainerCallback
from transformers.trainer_callback import PrinterCallback

from srpo_trl.commands.quickstart.held_out import HeldOut
from srpo_trl.commands.quickstart.task import (
    COMPARED_METHODS,
    SOLUTION_TOKENS,
    addition_reward,
    prompt_dataset,
    sample_questions,
)
from srpo_trl.config import SRPOConfig
from srpo_trl.host.callbacks import TrainingClock
from srpo_trl.methods import PAPER_DEFAULTS
from srpo_trl.runs.scores import LearningCurve, Point
from srpo_trl.trainer import SRPOTrainer


@dataclass(frozen=True)
class TrainingRecipe:
    """Everything that the three methods share; they differ in the options of `COMPARED_METHODS` alone."""

    num_steps: int = 100
    eval_every: int = 10
    prompts_per_step: int = 16
    num_generations: int = 8
    learning_rate: float = 2e-4
    max_completion_length: int = SOLUTION_TOKENS + 1

    def config(self, method: str, seed: int, output_dir: Path) -> SRPOConfig:
        """Return the trainer's configuration; every option that is not named here has SRPO's default."""
        return SRPOConfig(
            **(PAPER_DEFAULTS | {"learning_rate": self.learning_rate} | COMPARED_METHODS[method]),
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


def train_method(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    config: SRPOConfig,
    held_out: HeldOut,
    start_accuracy: float,
    on_step: Callable[[int, str], None],
) -> LearningCurve:
    """Train `model` in place and return its held-out curve.

    Args:
        config: of `TrainingRecipe.config`.
        start_accuracy: of `model`, measured by `held_out`: the curve's first point.
        on_step: called after each step with its number and "", and after a measurement with its result.
    """
    assert config.num_generations is not None
    num_questions = config.max_steps * config.per_device_train_batch_size // config.num_generations
    trainer = SRPOTrainer(
        model=model,
        reward_funcs=addition_reward,
        args=config,
        train_dataset=prompt_dataset(sample_questions(num_questions, seed=1000 + config.seed)),
        processing_class=tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    clock = TrainingClock.of(trainer)
    measure = _Measure(held_out, clock, start_accuracy, on_step)
    trainer.add_callback(measure)
    trainer.train()
    return LearningCurve(tuple(measure.points), config.max_steps, clock.seconds, is_finished=True)


class _Measure(TrainerCallback):
    """Measures held-out accuracy at every log, which the clock leaves out, and at the end."""

    def __init__(
        self, held_out: HeldOut, clock: TrainingClock, start: float, on_step: Callable[[int, str], None]
    ) -> None:
        self.points = [Point(0, 0.0, start)]
        self._held_out, self._clock, self._on_step = held_out, clock, on_step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Say how far the run has come."""
        self._on_step(state.global_step, "")

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure; the end of training logs its last step again."""
        if state.global_step > self.points[-1].step:
            accuracy = self._held_out.accuracy(kwargs["model"])
            self.points.append(Point(state.global_step, self._clock.seconds, accuracy))
            self._on_step(state.global_step, f"held-out accuracy {accuracy:.3f}")
