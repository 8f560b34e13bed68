"""The task: 4-digit addition, one column per `;` from the units up, the sum after `#`.

    user       6045+3496
    assistant  5+6=11;4+9=14;0+4=05;6+3=09;#09541

A mistake is local (one column), the answer cannot be guessed, and two right solutions agree position by position:
what lets a model that is shown a right one correct a wrong one.

With `num_forms=4` each column may be written in any of four ways, such as `11=6+5;`. Then a right solution tells
what the sums are and not how the next one writes them: a teacher that is shown one stays unsure of the form.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from datasets import Dataset

from srpo_trl.methods import DEFAULT, TABLE_1

# That are compared on it, each with its options.
COMPARED_METHODS: dict[str, dict[str, Any]] = {name: {"method": name} for name in TABLE_1}
SAVED_METHOD = DEFAULT
NUM_DIGITS = 4
# 4 columns of `a+b=cs;`, `#`, 5 digits, end of sequence.
SOLUTION_TOKENS = NUM_DIGITS * 7 + 1 + NUM_DIGITS + 1 + 1
HELD_OUT_MODULUS = 7
COLUMN_FORMS = ("{0}+{1}={2};", "{1}+{0}={2};", "{2}={0}+{1};", "{2}={1}+{0};")  # two digits, their sum


@dataclass(frozen=True)
class Question:
    """One sum: `first + second`, both of 4 digits with leading zeros."""

    first: int
    second: int
    solution_forms: tuple[int, ...] = (0,) * NUM_DIGITS  # of each column, as an index of COLUMN_FORMS
    demonstration_forms: tuple[int, ...] = (0,) * NUM_DIGITS

    @property
    def prompt(self) -> str:
        """The user's message."""
        return f"{self.first:0{NUM_DIGITS}d}+{self.second:0{NUM_DIGITS}d}"

    @property
    def answer(self) -> str:
        """The sum in 5 digits, which a right completion ends with after `#`."""
        return f"{self.first + self.second:0{NUM_DIGITS + 1}d}"

    @property
    def solution(self) -> str:
        """The worked solution: per column its two digits and their sum with the carry, then the answer."""
        return self._written_in(self.solution_forms)

    @property
    def demonstration(self) -> str:
        """The worked solution in the forms in which the warm-up shows it to the teacher."""
        return self._written_in(self.demonstration_forms)

    def _written_in(self, forms: Sequence[int]) -> str:
        columns, carry = [], 0
        for place, form in enumerate(forms):
            first_digit, second_digit = (number // 10**place % 10 for number in (self.first, self.second))
            column_sum = first_digit + second_digit + carry
            columns.append(COLUMN_FORMS[form].format(first_digit, second_digit, f"{column_sum:02d}"))
            carry = column_sum // 10
        return "".join(columns) + f"#{self.answer}"


def is_held_out(question: Question) -> bool:
    """Whether the question belongs to the held-out seventh, which nothing is trained on."""
    number: int = question.first * 10**NUM_DIGITS + question.second
    return number % HELD_OUT_MODULUS == 0


def sample_questions(
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
        first, second = generator.integers(0, 10**NUM_DIGITS, size=2)
        question = Question(int(first), int(second))
        if num_forms > 1:
            forms = generator.integers(0, num_forms, size=(2, NUM_DIGITS)).tolist()
            question = replace(question, solution_forms=tuple(forms[0]), demonstration_forms=tuple(forms[1]))
        if is_held_out(question) == held_out:
            questions.append(question)
    return questions


def prompt_dataset(questions: Sequence[Question]) -> Dataset:
    """Return the prompt-only conversational dataset that the trainers take: columns `prompt` and `answer`."""
    return Dataset.from_dict(
        {
            "prompt": [[{"role": "user", "content": question.prompt}] for question in questions],
            "answer": [question.answer for question in questions],
        }
    )


def is_right(text: str, answer: str) -> bool:
    """Whether `text` ends with `#` and the answer, written out in its 5 digits."""
    _, marker, given = text.rpartition("#")
    return bool(marker) and given.strip() == answer


def feedback_text(text: str, answer: str) -> str:
    """What is wrong with `text`, without the right answer; empty where nothing is."""
    if is_right(text, answer):
        return ""
    return "The answer after # is wrong." if "#" in text else "No answer after #."


def addition_reward(
    completions: list[list[dict[str, str]]],
    answer: list[str],
    log_extra: Callable[[str, list[str]], None] | None = None,
    **_: Any,
) -> list[float | None]:
    """TRL reward function: 1 where the completion ends with the right answer, else 0.

    Args:
        completions: conversational completions, one assistant message each.
        answer: the dataset's `answer` column.
        log_extra: TRL's hook; the feedback goes through it as the column `feedback`.
    """
    texts = [completion[-1]["content"] for completion in completions]
    if log_extra is not None:
        log_extra("feedback", [feedback_text(text, key) for text, key in zip(texts, answer, strict=True)])
    return [float(is_right(text, key)) for text, key in zip(texts, answer, strict=True)]
