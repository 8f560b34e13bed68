"""The study's four tasks: questions, what is right, the supervised start, and how long a run is."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from benchmarks.learning import add4, quiz8w
from srpo_trl.commands.quickstart import task as slip4s
from srpo_trl.commands.quickstart.task import Question
from srpo_trl.commands.quickstart.warmup import WarmupRecipe, WarmupResult, warm_up

Start = tuple[Qwen3ForCausalLM, WarmupResult]


class Questions(Protocol):
    """Draws questions."""

    def __call__(self, num_questions: int, seed: int, *, held_out: bool = False) -> list[Question]:
        """Return so many of the training part or the held-out part."""


@dataclass(frozen=True)
class Task:
    """What a run is made of, but for its method, rate and seed.

    Attributes:
        name: in tables.
        questions: draws them.
        is_right: whether a text answers a question with this answer.
        start: makes the supervised start of a number.
        num_steps: of a run.
        prompts_per_step: of 8 rollouts each.
        rate: at which all rows are compared; falls linearly to 0.
        other_rates: that each row is tried at besides.
        words: of the tokenizer, beyond those that every task has.
    """

    name: str
    questions: Questions
    is_right: Callable[[str, str], bool]
    start: Callable[[PreTrainedTokenizerFast, int], Start]
    num_steps: int
    prompts_per_step: int
    rate: float
    other_rates: tuple[float, ...] = ()
    words: tuple[str, ...] = slip4s.WORDS


def _of_textbook(
    questions: Questions, recipe: WarmupRecipe
) -> Callable[[PreTrainedTokenizerFast, int], Start]:
    """Return what trains a start on questions whose solution alone may be wrong."""

    def start(tokenizer: PreTrainedTokenizerFast, number: int) -> Start:
        rows = questions(recipe.batch_size * recipe.num_steps, number + 1)
        return warm_up(tokenizer, replace(recipe, seed=number), questions=rows)

    return start


def _half_trained(**recipe: float) -> Callable[[PreTrainedTokenizerFast, int], Start]:
    """Return what trains a start until it adds in a third of its samples."""
    return lambda tokenizer, number: add4.warm_up_to_accuracy(
        tokenizer,
        add4.MeasuredWarmup(seed=number, **recipe),  # type: ignore[arg-type]
    )


QUIZ_WARMUP = WarmupRecipe(num_steps=450)
# More forms take longer to learn; then competence comes within a few steps.
_FORMS = {"num_forms": 4, "max_steps": 1000, "decay_steps": 1900, "near_accuracy": 0.06}
TASKS = {
    task.name: task
    for task in (
        Task(
            "slip4s",
            slip4s.sample_questions,
            slip4s.is_right,
            _of_textbook(slip4s.sample_questions, WarmupRecipe()),
            num_steps=100,
            prompts_per_step=8,
            rate=5e-4,
            other_rates=(2.5e-4, 8e-4),
        ),
        Task(
            "quiz8w",
            quiz8w.sample_quizzes,
            quiz8w.is_right,
            _of_textbook(quiz8w.sample_quizzes, QUIZ_WARMUP),
            num_steps=60,
            prompts_per_step=8,
            rate=5e-4,
            other_rates=(2.5e-4, 8e-4),
            words=(*slip4s.WORDS, "*"),
        ),
        Task(
            "add4",
            add4.add4_questions,
            slip4s.is_right,
            _half_trained(),
            num_steps=60,
            prompts_per_step=16,
            rate=2e-4,
            words=(),
        ),
        Task(
            "add4_forms",
            partial(add4.add4_questions, num_forms=4),
            slip4s.is_right,
            _half_trained(**_FORMS),
            num_steps=80,
            prompts_per_step=16,
            rate=2e-4,
            words=(),
        ),
    )
}
