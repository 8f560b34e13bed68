"""Routed rollouts for the page: each token with how strongly, and toward what, the teacher corrects it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np

from srpo_trl.runs.log import Record
from srpo_trl.runs.read import RunHistory, is_number

NUM_LEVELS = 9
FULL_COLOR_QUANTILE = 0.95  # of the shown tokens' corrections; whatever is above has the full color
NUM_STRONGEST = 5
COLUMNS = (
    *("token", "correction", "divergence", "weight"),
    *("teacher's entropy", "student's probability", "teacher's choice"),
)


@dataclass(frozen=True)
class Token:
    """One token of a completion.

    Attributes:
        text: that it adds to the completion.
        correction: divergence times weight in nats; None where the token is not distilled.
        divergence, weight, teacher_entropy, student_probability: None where they were not logged.
        choice: the teacher's most probable token and its probability; None where that was not logged.
    """

    text: str
    correction: float | None
    divergence: float | None
    weight: float | None
    teacher_entropy: float | None
    student_probability: float | None
    choice: tuple[str, float] | None

    @property
    def is_kept(self) -> bool:
        """Whether the teacher would most likely have written the same token, with another probability."""
        return self.choice is not None and self.choice[0] == self.text

    def note(self, num_decimals: int) -> str:
        """Return what is shown where the pointer rests on the token, or where it was tapped."""
        parts = [
            f"{visible(self.text)}: correction {self.correction:.{num_decimals}f} = "
            f"divergence {self.divergence:.{num_decimals}f} x weight {self.weight:.2f}"
        ]
        if self.teacher_entropy is not None:
            parts.append(f"teacher entropy {self.teacher_entropy:.2f}")
        if self.student_probability is not None:
            parts.append(f"student's probability {self.student_probability:.2f}")
        if self.choice is not None:
            parts.append(f"teacher's choice {self.choice_text}")
        return "; ".join(parts)

    def cells(self, num_decimals: int) -> list[str]:
        """Return the token's row of the table that has `COLUMNS`."""
        numbers = (
            *((self.correction, num_decimals), (self.divergence, num_decimals), (self.weight, 2)),
            *((self.teacher_entropy, 2), (self.student_probability, 2)),
        )
        texts = ["" if number is None else f"{number:.{decimals}f}" for number, decimals in numbers]
        return [visible(self.text), *texts, self.choice_text]

    @property
    def choice_text(self) -> str:
        """The teacher's choice in words; empty where it was not logged."""
        if self.choice is None:
            return ""
        token, probability = self.choice
        return f"{'the same' if self.is_kept else visible(token)} ({probability:.2f})"

    @property
    def correction_text(self) -> str:
        """The correction in words: the token, and what the teacher would have written where that is known."""
        return (
            visible(self.text)
            if self.choice is None
            else f"{visible(self.text)} to {visible(self.choice[0])}"
        )

    @property
    def shown(self) -> str:
        """The text as it stands on the page: a colored line end can be seen, and nothing colored is empty."""
        return self.text.replace("\n", "↵\n") or "·"


@dataclass(frozen=True)
class Example:
    """A distilled rollout of one training step.

    Attributes:
        step: optimizer step that trained on it.
        is_correct: None where that was not logged.
        prompt, solution, feedback: what the student read, and what its teacher was shown besides.
        tokens: of the completion.
    """

    step: int
    is_correct: bool | None
    prompt: str
    solution: str
    feedback: str
    tokens: Sequence[Token]

    def colored(self, full: float) -> list[tuple[int, Token]]:
        """Return the tokens that have a color, where `full` nats have the full one, each with its place from 1 on."""
        return [(i, token) for i, token in enumerate(self.tokens, 1) if level(token.correction, full)]

    def strongest(self, full: float) -> list[Token]:
        """Return the most corrected tokens that have a color, strongest first.

        Where the teacher's choices were logged, only tokens in whose place it would have written another one.
        """
        colored = [token for _, token in self.colored(full) if not token.is_kept]
        named = (
            [token for token in colored if token.choice] if any(t.choice for t in self.tokens) else colored
        )
        return sorted(named, key=lambda token: token.correction or 0.0, reverse=True)[:NUM_STRONGEST]


def visible(text: str) -> str:
    """Return a token's text in quotes, with its white space to be seen."""
    return f"‘{text.replace(chr(10), '↵').replace(chr(9), '⇥')}’"


def read_example(record: Record) -> Example | None:
    """Return a record of `examples.jsonl` as an example; None where it has no tokens."""
    texts = record.get("tokens")
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        return None
    names = ("divergence", "weight", "teacher_entropy", "student_probability")
    columns = {name: _numbers(record.get(name), len(texts)) for name in names}
    choices = _choices(record.get("teacher_choices"))
    tokens = []
    for position, text in enumerate(texts):
        values = {name: column[position] for name, column in columns.items()}
        divergence, weight = values["divergence"], values["weight"]
        correction = None if divergence is None or weight is None else max(divergence * weight, 0.0)
        tokens.append(Token(text, correction, choice=choices.get(position), **values))
    is_correct = record.get("is_correct")
    prompt, solution, feedback = (str(record.get(name) or "") for name in ("prompt", "solution", "feedback"))
    known = is_correct if isinstance(is_correct, bool) else None
    return Example(record["step"], known, prompt, solution, feedback, tokens)


def _numbers(values: Any, length: int) -> list[float | None]:
    if not isinstance(values, list) or len(values) != length:
        return [None] * length
    return [float(value) if is_number(value) else None for value in values]


def _choices(entries: Any) -> dict[int, tuple[str, float]]:
    if not isinstance(entries, list):
        return {}
    return {
        entry[0]: (str(entry[1]), float(entry[2]))
        for entry in entries
        if isinstance(entry, list) and len(entry) == 3 and isinstance(entry[0], int) and is_number(entry[2])
    }


def select_examples(run: RunHistory, number: int) -> list[Example]:
    """Return up to `number` of a run's examples, spread evenly over the run, in order."""
    found = [example for record in run.examples if (example := read_example(record)) is not None]
    indices = np.linspace(0, len(found) - 1, min(number, len(found))).round().astype(int)
    return [found[index] for index in dict.fromkeys(indices.tolist())]


def full_color(examples: Sequence[Example]) -> float:
    """Return the correction from which on a token has the full color, in nats; above 0."""
    corrections = [token.correction for example in examples for token in example.tokens if token.correction]
    return float(np.quantile(corrections, FULL_COLOR_QUANTILE)) if corrections else 1.0


def level(correction: float | None, full: float) -> int:
    """Return the depth of a token's color, from 0 to `NUM_LEVELS`; half a level and less is no color."""
    return 0 if correction is None else min(round(NUM_LEVELS * correction / full), NUM_LEVELS)


def decimals(full: float) -> int:
    """Return how many decimals show two digits of the full color's correction: from 2 to 9."""
    return min(max(2, 1 - math.floor(math.log10(full))), 9)


class Span(NamedTuple):
    """Neighboring text of one look: its CSS class, its text, and its numbers where it is a colored token."""

    look: str
    text: str
    note: str


def pieces(example: Example, full: float) -> list[Span]:
    """Return a completion as pieces: one for every colored token, and one for what lies between them.

    Args:
        example: whose completion it is.
        full: the correction of the full color, in nats.
    """
    found: list[Span] = []
    for look, tokens in groupby(example.tokens, key=lambda token: _look(token, full)):
        if look.startswith("level"):
            found += [Span(look, token.shown, token.note(decimals(full))) for token in tokens]
        else:
            found.append(Span(look, "".join(token.text for token in tokens), ""))
    return found


def _look(token: Token, full: float) -> str:
    depth = level(token.correction, full)
    return f"level{depth}" if depth else "undistilled" if token.correction is None else "plain"
