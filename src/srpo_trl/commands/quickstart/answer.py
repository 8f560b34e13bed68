"""Failed answers of a run, token by token: a uniform credit against what the teacher corrects."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from srpo_trl.commands.quickstart.task import EXPLAINED_METHOD, WORDS, solution_pieces
from srpo_trl.commands.report.examples import Token, read_example, visible
from srpo_trl.methods import GRPO, METHODS
from srpo_trl.runs.log import Record

NUM_STRONGEST = 4
FAINTEST = 0.1  # of the strongest correction in an answer; below, a token has no color
_UNIFORM_COLOR = "black on rgb(120,180,240)"
_WEAKEST, _STRONGEST = (253, 235, 220), (230, 120, 40)  # red, green, blue


@dataclass(frozen=True)
class FailedAnswer:
    """A distilled rollout beside the correct one that its teacher was shown, which says what is wrong with it.

    Attributes:
        step: optimizer step that trained on it.
        question: as it was asked.
        shown: the correct solution.
        tokens: of the answer, its end included.
        wrong: positions of the tokens that are not as in the correct solution, its free words aside.
    """

    step: int
    question: str
    shown: str
    tokens: Sequence[Token]
    wrong: Sequence[int]

    @property
    def corrections(self) -> list[float]:
        """Divergence times weight of every token, in nats."""
        return [token.correction or 0.0 for token in self.tokens]

    @property
    def share_on_wrong(self) -> float:
        """The share of the correction that lies on what is wrong."""
        return _share(self.corrections, self.wrong)

    def strongest(self) -> list[int]:
        """Return positions of the most corrected tokens for which the teacher had another choice, strongest first."""
        changed = [i for i, token in enumerate(self.tokens) if token.choice and token.choice[0] != token.text]
        colored = [i for i in changed if self.depth(i)]
        return sorted(colored, key=lambda i: self.corrections[i], reverse=True)[:NUM_STRONGEST]

    def depth(self, position: int) -> float:
        """Return how strongly a token is corrected, from 0 to 1, the answer's most corrected token."""
        most = max(self.corrections)
        share = self.corrections[position] / most if most else 0.0
        return share if share >= FAINTEST else 0.0


def read_answers(records: Sequence[Record]) -> list[FailedAnswer]:
    """Return those of a run's logged examples whose columns and answer stand where they do in the correct solution."""
    answers = []
    for example in filter(None, map(read_example, records)):
        right = solution_pieces(example.solution)
        texts = [token.text for token in example.tokens][:-1]  # without the end
        same_form = [(a in WORDS) == (b in WORDS) for a, b in zip(texts, right, strict=False)]
        wrong = [i for i, (a, b) in enumerate(zip(texts, right, strict=False)) if a != b and a not in WORDS]
        if len(texts) == len(right) and all(same_form) and wrong:
            question = example.prompt.split("<|end|>")[0].removeprefix("<|user|>")
            answers.append(FailedAnswer(example.step, question, example.solution, example.tokens, wrong))
    return answers


def clearest(answers: Sequence[FailedAnswer]) -> FailedAnswer:
    """Return the answer with the largest share of the correction on what is wrong, all of which has some."""

    def clarity(answer: FailedAnswer) -> tuple[bool, float]:
        return all(map(answer.depth, answer.wrong)), answer.share_on_wrong

    return max(answers, key=clarity)


def wrong_shares(answers: Sequence[FailedAnswer]) -> tuple[float, float]:
    """Return which share of all tokens is wrong, and which share of the correction lies on it."""
    ones = [[1.0] * len(answer.tokens) for answer in answers]
    corrections = [answer.corrections for answer in answers]
    tokens, correction = (
        sum(values[i] for answer, values in zip(answers, column, strict=True) for i in answer.wrong)
        / max(sum(map(sum, column)), 1e-9)
        for column in (ones, corrections)
    )
    return tokens, correction


def _share(values: Sequence[float], positions: Sequence[int]) -> float:
    whole = sum(values)
    return sum(values[i] for i in positions) / whole if whole else 0.0


def print_answer(answer: FailedAnswer, num_logged: int, console: Console) -> None:
    """Print the answer as both branches see it."""
    routed, uniform = METHODS[EXPLAINED_METHOD].title, METHODS[GRPO].title
    for line in (
        f"\nA failed answer to {answer.question}, from step {answer.step}, of {num_logged} that were logged "
        "the one whose correction is clearest.",
        "  A correct answer of the same group, which the teacher is shown:",
        "  " + answer.shown,
        f"  {uniform}: the answer failed, and every token gets the same penalty.",
        _colored(answer, uniform=True),
        f"  {routed}: the more color, the more the teacher corrects a token (divergence x weight).",
        _colored(answer, uniform=False),
        "  Corrected most: " + ", ".join(correction_texts(answer)) + ".",
    ):
        console.print(line, highlight=False, soft_wrap=True)


def correction_texts(answer: FailedAnswer) -> list[str]:
    """Return the strongest corrections in words, each with its nats."""
    found = []
    for position in answer.strongest():
        token = answer.tokens[position]
        assert token.choice is not None
        change = f"{visible(token.text)} to {visible(token.choice[0])}"
        found.append(f"{change} ({answer.corrections[position]:.2f})")
    return found


def _colored(answer: FailedAnswer, *, uniform: bool) -> Text:
    line = Text("  ")
    for position, token in enumerate(answer.tokens[:-1]):
        depth = answer.depth(position)
        blend = (round(a + (b - a) * depth) for a, b in zip(_WEAKEST, _STRONGEST, strict=True))
        style = f"bold underline black on rgb({','.join(map(str, blend))})" if depth else ""
        line.append(token.text, style=_UNIFORM_COLOR if uniform else style)
    return line
