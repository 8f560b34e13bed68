"""What is kept of a sampled answer, how its reward functions let it be read, and the scores of all samples."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

from srpo_trl.evaluation.scores import (
    majority,
    mean_of_samples,
    mean_over_questions,
    named,
    pass_at_k,
    percentile,
)
from srpo_trl.runs.scores import Estimate

LENGTH_PERCENTILES = (50, 90, 99)


@dataclass(frozen=True)
class Sample:
    """One sampled answer.

    Attributes:
        question: row of the data set, from 0.
        text: what the assistant said last.
        num_tokens: that the model made; tool output does not count.
        is_cut: it ends without an end-of-sequence token.
        repeated_ngrams: share of its n-grams that it already had.
        rewards: by reward function, None where that one could not score it.
        score: the reward that decides, weighted as in training; None where nothing could score the sample.
        is_correct: the score is at least the threshold; None without a score.
        answer: what it votes for; None where none can be read.
        follows_format: None where no reward function knows the format.
    """

    question: int
    text: str
    num_tokens: int
    is_cut: bool
    repeated_ngrams: float
    rewards: dict[str, float | None]
    score: float | None
    is_correct: bool | None
    answer: str | None
    follows_format: bool | None


class AnswerParser(NamedTuple):
    """How the reward functions let a completion's text be read; None where none of them says.

    Attributes:
        extract_answer: text -> the answer that it votes for, or None.
        follows_format: text -> whether it is written strictly as the prompt asks.
    """

    extract_answer: Callable[[str], str | None] | None
    follows_format: Callable[[str], bool] | None


def answer_parser(reward_functions: Sequence[Any]) -> AnswerParser:
    """Return the first `extract_answer` and the first `follows_format` that a reward function has as an attribute."""

    def first(name: str) -> Any:
        found = (getattr(function, name, None) for function in reward_functions)
        return next((attribute for attribute in found if attribute is not None), None)

    return AnswerParser(first("extract_answer"), first("follows_format"))


def score_samples(samples: Sequence[Sample], num_samples: int, *, has_answers: bool) -> dict[str, float]:
    """Return every score of an evaluation by name; a score that nothing has a value for is left out.

    Args:
        samples: of all questions, those of one question next to each other; not empty.
        num_samples: drawn per question, the n in the names.
        has_answers: answers were read, so that they can be counted.
    """
    questions = [list(group) for _, group in groupby(samples, key=lambda sample: sample.question)]
    scores: dict[str, float] = {
        "questions": len(questions),
        "unscored_samples": sum(sample.score is None for sample in samples),
    }
    for name, estimate in _estimates(questions, num_samples, has_answers=has_answers):
        scores |= named(name, estimate)
    lengths = [sample.num_tokens for sample in samples]
    scores["completions/min_length"], scores["completions/max_length"] = min(lengths), max(lengths)
    for percent in LENGTH_PERCENTILES:
        scores[f"completions/p{percent}_length"] = percentile(lengths, percent)
    return scores


def _estimates(
    questions: Sequence[Sequence[Sample]], num_samples: int, *, has_answers: bool
) -> Iterator[tuple[str, Estimate | None]]:
    def mean_of(value: Callable[[Sample], float | None]) -> Estimate | None:
        return mean_over_questions(mean_of_samples(map(value, question)) for question in questions)

    verdicts = [[sample.is_correct for sample in question] for question in questions]
    yield f"avg@{num_samples}", mean_over_questions(map(mean_of_samples, verdicts))
    if has_answers:
        answers = [[sample.answer for sample in question] for question in questions]
        yield f"maj@{num_samples}", mean_over_questions(map(majority, verdicts, answers))
    for k in _powers_of_two(2, num_samples):
        yield f"pass@{k}", mean_over_questions(pass_at_k(question, k) for question in verdicts)
    yield "format_rate", mean_of(lambda sample: sample.follows_format)
    yield "reward", mean_of(lambda sample: sample.score)
    for name in questions[0][0].rewards:
        yield f"rewards/{name}/mean", mean_of(lambda sample, name=name: sample.rewards[name])  # type: ignore[misc]
    yield "completions/mean_length", mean_of(lambda sample: sample.num_tokens)
    yield "completions/clipped_ratio", mean_of(lambda sample: sample.is_cut)
    yield "completions/repeated_ratio", mean_of(lambda sample: sample.repeated_ngrams)


def _powers_of_two(low: int, high: int) -> Iterable[int]:
    k = low
    while k <= high:
        yield k
        k *= 2
