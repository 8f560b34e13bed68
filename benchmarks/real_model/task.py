"""The questions: sums and differences of whole numbers, at levels of growing difficulty, answered by a number alone."""

import random
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

from datasets import Dataset

INSTRUCTION = "Reply with the answer only."
HELD_OUT = 1000  # questions of a level that nothing is trained on
_HELD_OUT_SEED = 0


class Level(NamedTuple):
    """How hard the questions are: how many numbers, of how many digits."""

    terms: int
    digits: int

    @property
    def name(self) -> str:
        """For people and for the command line."""
        return f"{self.terms}x{self.digits}"


LEVELS = (Level(2, 2), Level(3, 2), Level(4, 2), Level(4, 3), Level(5, 3), Level(6, 4))


class Question(NamedTuple):
    """One, with its answer."""

    text: str
    answer: str

    @property
    def chat(self) -> list[dict[str, str]]:
        """The conversation that asks it."""
        return [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": self.text}]


def make_questions(level: Level, count: int, seed: int, without: Collection[Question] = ()) -> list[Question]:
    """Return distinct questions in a fixed order, none of which is among `without`."""
    found: dict[Question, None] = {}
    left_out = set(without)
    drawn = _drawn(level, random.Random(seed))
    while len(found) < count:
        question = next(drawn)
        if question not in left_out:
            found[question] = None
    return list(found)


def held_out_questions(level: Level, count: int = HELD_OUT) -> list[Question]:
    """Return the first of the questions that nothing is trained on."""
    return make_questions(level, count, _HELD_OUT_SEED)


def _drawn(level: Level, numbers: random.Random) -> Iterator[Question]:
    while True:
        terms = [numbers.randrange(10 ** (level.digits - 1), 10**level.digits) for _ in range(level.terms)]
        signs = [1, *(numbers.choice((1, -1)) for _ in terms[1:])]
        text = str(terms[0])
        for sign, term in zip(signs[1:], terms[1:], strict=True):
            text += f" {'+' if sign > 0 else '-'} {term}"
        answer = sum(sign * term for sign, term in zip(signs, terms, strict=True))
        yield Question(f"What is {text}?", str(answer))


def is_right(text: str, answer: str) -> bool:
    """Whether the text is the answer, and nothing else."""
    return text.strip() == answer


def dataset(questions: Sequence[Question]) -> Dataset:
    """Return what a trainer takes: columns `prompt` and `answer`."""
    return Dataset.from_dict({"prompt": [q.chat for q in questions], "answer": [q.answer for q in questions]})


def reward(completions: list[Any], answer: list[str], **kwargs: Any) -> list[float | None]:
    """1 for a right answer, else 0."""
    texts = [completion[-1]["content"] for completion in completions]
    return [float(is_right(text, key)) for text, key in zip(texts, answer, strict=True)]
