"""Eight products in free wording, by a model that learned some of them from a careless textbook.

    user       4*2;5*3;9*9;0*7;6*6;1*8;3*4;7*7
    assistant  so 08;well 15;now 81;so 00;next 36;thus 08;here 12;now 49;

One word before each product. What the textbook has wrong it has wrong in the same way. Nothing repeats a word of the
solution shown: this task's teacher leans to no wording. An answer is right when all eight products are.
"""

import re

import numpy as np

from srpo_trl.commands.quickstart.task import WORDS, Question

NUM_PRODUCTS = 8
QUIZ_WORDS = WORDS[:6]
HELD_OUT_MODULUS = 7

# The textbook: 25 of the 100 products are right with probability 1/4, 25 with 9/10, 50 always.
_textbook = np.random.default_rng(3)
RIGHT_SHARE = _textbook.permutation([0.25] * 25 + [0.9] * 25 + [1.0] * 50).reshape(10, 10)
SLIP = _textbook.integers(1, 10, (10, 10))


def sample_quizzes(num_questions: int, seed: int, *, held_out: bool = False) -> list[Question]:
    """Return quizzes drawn uniformly from the training part or the held-out part.

    Args:
        num_questions: how many.
        seed: of the draw.
        held_out: which part.
    """
    generator = np.random.default_rng(seed)
    quizzes: list[Question] = []
    while len(quizzes) < num_questions:
        factors = generator.integers(0, 10, size=(NUM_PRODUCTS, 2))
        if is_held_out(factors.tolist()) == held_out:
            quizzes.append(_written_out(factors.tolist(), generator))
    return quizzes


def is_held_out(factors: list[list[int]]) -> bool:
    """Whether the quiz belongs to the held-out seventh, which nothing is trained on."""
    return int("".join(f"{first}{second}" for first, second in factors)) % HELD_OUT_MODULUS == 0


def _written_out(factors: list[list[int]], generator: np.random.Generator) -> Question:
    """Return the quiz with solutions in words that are drawn."""
    alone, demonstrated, shown = np.array(QUIZ_WORDS)[
        generator.integers(0, len(QUIZ_WORDS), (3, NUM_PRODUCTS))
    ]
    products = [first * second for first, second in factors]
    slips = [
        product - product % 10 + (product + int(SLIP[first, second])) % 10
        if luck >= RIGHT_SHARE[first, second]
        else product
        for (first, second), product, luck in zip(
            factors, products, generator.random(NUM_PRODUCTS), strict=True
        )
    ]
    return Question(
        prompt=";".join(f"{first}*{second}" for first, second in factors),
        answer="".join(f"{product:02d};" for product in products),
        alone=_in_words(alone.tolist(), slips),
        demonstration=_in_words(demonstrated.tolist(), products),
        shown=_in_words(shown.tolist(), products),
    )


def _in_words(words: list[str], products: list[int]) -> str:
    return "".join(f"{word}{product:02d};" for word, product in zip(words, products, strict=True))


def is_right(text: str, answer: str) -> bool:
    """Whether all products of `text` are those of the answer, whatever stands between them."""
    return re.sub("|".join(QUIZ_WORDS), "", text) == answer
