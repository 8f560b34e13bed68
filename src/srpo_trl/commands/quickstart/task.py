"""The task: 4-digit addition by a model that learned from a careless textbook, with free wording.

    user       3153+1293
    assistant  next thus 3+3=06;here now 5+9=14;now okay 1+2=04;so okay 3+1=04;#04446

One column per `;` from the units up, two words before each, the sum after `#`. The textbook gets some additions of two
digits wrong and always in the same way, so a model that learned from it holds wrong facts firmly; its words are free.
A right solution that is shown lends the model its facts, and some of its words: a teacher leans to the wording it sees.

The task is built to have what answers of real models have: most tokens are wording, few decide.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from srpo_trl.methods import DEFAULT, TABLE_1

# That are compared on it, each with its options.
COMPARED_METHODS: dict[str, dict[str, Any]] = {name: {"method": name} for name in TABLE_1}
EXPLAINED_METHOD = DEFAULT
NUM_DIGITS = 4
# A solution neither begins nor ends with white space: what is shown to a teacher has none there.
WORDS = ("so ", "next ", "now ", "well ", "thus ", "here ", "okay ", "fine ")
WORDS_PER_COLUMN = 2
NUM_WORDS = WORDS_PER_COLUMN * NUM_DIGITS
REPEATED_WORDS = 0.5  # the probability with which a word is that of the solution shown
# 4 columns of two words and `a+b=cs;`, `#`, 5 digits, end of sequence.
SOLUTION_TOKENS = NUM_WORDS + NUM_DIGITS * 7 + 1 + NUM_DIGITS + 1 + 1
HELD_OUT_MODULUS = 7

# The textbook: by the two digits and the carry, how often it is right, and what it adds to the units where it is not.
_textbook = np.random.default_rng(3)
RIGHT_SHARE = np.array([0.3, 0.8, 1.0])[_textbook.integers(0, 3, (10, 10, 2))]
SLIP = _textbook.integers(1, 10, (10, 10, 2))


@dataclass(frozen=True)
class Question:
    """A sum and its worked solutions.

    Attributes:
        prompt: the user's message.
        answer: the sum in 5 digits, which a right completion ends with after `#`.
        alone: what the warm-up writes after the question alone; need not be right.
        demonstration: a right solution that is shown.
        shown: what the warm-up writes with the demonstration in view.
    """

    prompt: str
    answer: str
    alone: str
    demonstration: str
    shown: str


def worked_solution(
    first: int, second: int, words: Sequence[str], luck: NDArray[np.float64] | None = None
) -> str:
    """Return a solution of `first + second` in the given words.

    Args:
        first, second: at most 4 digits.
        words: `NUM_WORDS`, in order.
        luck: uniform in [0, 1), one for each column: where it is not below the textbook's share of right sums, the
            column has the textbook's mistake, which the answer repeats; the carry stays right. None: a right solution.
    """
    columns, units_of_sum, carry = [], [], 0
    for place in range(NUM_DIGITS):
        first_digit, second_digit = (number // 10**place % 10 for number in (first, second))
        fact = first_digit, second_digit, carry
        carry, units = divmod(sum(fact), 10)
        if luck is not None and luck[place] >= RIGHT_SHARE[fact]:
            units = (units + int(SLIP[fact])) % 10
        wording = "".join(words[place * WORDS_PER_COLUMN : (place + 1) * WORDS_PER_COLUMN])
        columns.append(f"{wording}{first_digit}+{second_digit}={carry}{units};")
        units_of_sum.append(str(units))
    return "".join(columns) + f"#{carry}" + "".join(reversed(units_of_sum))


def solution_pieces(solution: str) -> list[str]:
    """Return a solution's words and characters, which are the tokenizer's tokens."""
    return re.findall("|".join(WORDS) + "|.", solution)


def is_held_out(first: int, second: int) -> bool:
    """Whether the sum belongs to the held-out seventh, which nothing is trained on."""
    number: int = first * 10**NUM_DIGITS + second
    return number % HELD_OUT_MODULUS == 0


def sample_questions(num_questions: int, seed: int, *, held_out: bool = False) -> list[Question]:
    """Return questions drawn uniformly, with replacement, from the training part or the held-out part.

    Args:
        num_questions: how many.
        seed: of the draw.
        held_out: which part.
    """
    generator = np.random.default_rng(seed)
    questions: list[Question] = []
    while len(questions) < num_questions:
        first, second = map(int, generator.integers(0, 10**NUM_DIGITS, size=2))
        if is_held_out(first, second) == held_out:
            questions.append(_written_out(first, second, generator))
    return questions


def _written_out(first: int, second: int, generator: np.random.Generator) -> Question:
    """Return the question with solutions in words that are drawn."""
    alone, demonstrated, own = np.array(WORDS)[generator.integers(0, len(WORDS), size=(3, NUM_WORDS))]
    repeats = generator.random(NUM_WORDS) < REPEATED_WORDS
    return Question(
        prompt=f"{first:0{NUM_DIGITS}d}+{second:0{NUM_DIGITS}d}",
        answer=f"{first + second:0{NUM_DIGITS + 1}d}",
        alone=worked_solution(first, second, alone, generator.random(NUM_DIGITS)),
        demonstration=worked_solution(first, second, demonstrated),
        shown=worked_solution(first, second, np.where(repeats, demonstrated, own)),
    )


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
