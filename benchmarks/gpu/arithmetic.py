"""A task that is made in code: products and sums that a small instruction-tuned model gets right now and then."""

import random
import re
from typing import Any, NamedTuple

from datasets import Dataset

INSTRUCTION = "Work it out in a few short steps. End with the result after ####."
_ANSWER = re.compile(r"####\s*\$?(-?[\d,]+)")


class Level(NamedTuple):
    """How hard the questions are: digits of both factors, and of what is added."""

    first: int
    second: int
    added: int

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.first} digits x {self.second} digits + {self.added} digits"


LEVELS = (Level(1, 1, 1), Level(2, 1, 2), Level(2, 2, 2), Level(3, 2, 3), Level(3, 3, 3))


class Question(NamedTuple):
    """One, with its answer."""

    text: str
    answer: str


def make_questions(level: Level, count: int, *, held_out: bool) -> list[Question]:
    """Return questions in a fixed order; those held out are never among the others."""
    numbers = random.Random(1 if held_out else 2)
    questions = []
    while len(questions) < count:
        first, second, added = (numbers.randrange(10 ** (n - 1), 10**n) for n in level)
        if ((first * 31 + second * 17 + added) % 5 == 0) != held_out:
            continue
        text = f"What is {first} * {second} + {added}? {INSTRUCTION}"
        questions.append(Question(text, str(first * second + added)))
    return questions


def is_right(text: str, answer: str) -> bool:
    """Whether the last number after #### is the answer."""
    found = _ANSWER.findall(text)
    return bool(found) and found[-1].replace(",", "") == answer


def chat(question: Question) -> list[dict[str, str]]:
    """Return the conversation that asks it."""
    return [{"role": "user", "content": question.text}]


def dataset(questions: list[Question]) -> Dataset:
    """Return what a trainer takes: columns `prompt` and `answer`."""
    return Dataset.from_dict(
        {"prompt": [chat(q) for q in questions], "answer": [q.answer for q in questions]}
    )


def reward(completions: list[Any], answer: list[str], **kwargs: Any) -> list[float | None]:
    """1 for a right result, else 0."""
    texts = [completion[-1]["content"] for completion in completions]
    return [float(is_right(text, key)) for text, key in zip(texts, answer, strict=True)]
