"""The runs: methods that take turns from one start, each in a run folder of its own."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast, TrainerCallback
from transformers.trainer_callback import PrinterCallback

from srpo_trl.commands.quickstart.task import (
    COMPARED_METHODS,
    SOLUTION_TOKENS,
    Question,
    addition_reward,
    prompt_dataset,
    sample_questions,
)
from srpo_trl.commands.quickstart.turns import Job, take_turns
from srpo_trl.commands.quickstart.warmup import load_start
from srpo_trl.config import SRPOConfig
from srpo_trl.host.callbacks import TrainingClock
from srpo_trl.methods import GRPO, PAPER_DEFAULTS
from srpo_trl.trainer import SRPOTrainer

SCORE = "eval_avg@1"
# Evaluation by one sample of each question, as it is sampled in training.
SAMPLED_ONCE: dict[str, Any] = {"num_generations_eval": 1, "eval_temperature": 1.0, "eval_top_p": 1.0}


@dataclass(frozen=True)
class TrainingRecipe:
    """Everything that the methods share; they differ in the options of `COMPARED_METHODS` alone."""

    num_steps: int = 100
    eval_every: int = 10
    prompts_per_step: int = 8
    num_generations: int = 8
    learning_rate: float = 5e-4  # falls linearly to 0
    max_completion_length: int = SOLUTION_TOKENS + 1

    def config(self, method: str, seed: int, output_dir: Path) -> SRPOConfig:
        """Return the trainer's configuration; every option that is not named here has SRPO's default."""
        shared = SAMPLED_ONCE | {"learning_rate": self.learning_rate}
        return SRPOConfig(
            **(PAPER_DEFAULTS | shared | COMPARED_METHODS[method]),
            output_dir=str(output_dir),
            seed=seed,
            max_steps=self.num_steps,
            per_device_train_batch_size=self.prompts_per_step * self.num_generations,
            num_generations=self.num_generations,
            max_completion_length=self.max_completion_length,
            lr_scheduler_type="linear",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            eval_strategy="steps",
            eval_steps=self.eval_every,
            eval_on_start=True,
            logging_steps=self.eval_every,
            log_examples_steps=None if method == GRPO else self.eval_every,  # which corrects nothing
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )

    def questions(self, seed: int) -> list[Question]:
        """Return the questions of a run's only epoch, the same for every method."""
        return sample_questions(self.num_steps * self.prompts_per_step, seed=1000 + seed)


@dataclass(frozen=True)
class Run:
    """What is to be trained.

    Attributes:
        config: of `TrainingRecipe.config`.
        questions: to train on, once each.
        on_progress: called after each step with its number and None, after an evaluation with its accuracy.
    """

    config: SRPOConfig
    questions: Sequence[Question]
    on_progress: Callable[[int, float | None], None]


def train_in_turns(
    runs: Sequence[Run], start: Path, tokenizer: PreTrainedTokenizerFast, held_out: Sequence[Question]
) -> None:
    """Train a model for each run from the start in the folder `start`, step by step in turns.

    Each run's output folder has its logs, in which `training_seconds` are the processor's, its examples and its model.
    """

    def job(run: Run) -> Job:
        return lambda pass_on: _train(run, start, tokenizer, held_out, pass_on)

    take_turns([job(run) for run in runs])


def _train(
    run: Run,
    start: Path,
    tokenizer: PreTrainedTokenizerFast,
    held_out: Sequence[Question],
    pass_on: Callable[[], None],
) -> None:
    loaded = load_start(start)
    assert loaded is not None, "the start was saved before any training"
    trainer = SRPOTrainer(
        model=loaded[0],
        reward_funcs=addition_reward,
        args=run.config,
        train_dataset=prompt_dataset(run.questions),
        eval_dataset=prompt_dataset(held_out),
        processing_class=tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    TrainingClock.of(trainer).now = time.process_time
    trainer.add_callback(
        _Turn(run.on_progress, pass_on)
    )  # behind the clock, which does not count the others' turns
    trainer.train()
    trainer.save_model()


class _Turn(TrainerCallback):
    """Ends the run's turn after each step, and says how far it has come."""

    def __init__(self, on_progress: Callable[[int, float | None], None], pass_on: Callable[[], None]) -> None:
        self._on_progress, self._pass_on = on_progress, pass_on

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Let the other runs take their steps; what the step is followed by belongs to the next turn."""
        self._on_progress(state.global_step, None)
        self._pass_on()

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tell the accuracy."""
        self._on_progress(state.global_step, kwargs["metrics"][SCORE])
