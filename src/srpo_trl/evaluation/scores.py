"""Scores of sampled answers: pure functions of what each sample of a question got.

A score of a data set is the mean over its questions of a value per question, and its standard error is taken over
questions: samples of one question are not independent of each other. A sample that no reward function could score
is None. It is left out, never counted as wrong; a question of which nothing is left has no value and is left out too.
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence

from srpo_trl.runs.scores import Estimate, estimate

NGRAM = 4


def mean_over_questions(values: Iterable[float | None]) -> Estimate | None:
    """Return mean and standard error of one value per question, None where no question has one."""
    return estimate([value for value in values if value is not None])


def mean_of_estimates(estimates: Sequence[Estimate]) -> Estimate | None:
    """Return the unweighted mean of independent estimates, such as those of several data sets; None of none."""
    if not estimates:
        return None
    errors = [estimate.standard_error for estimate in estimates if estimate.standard_error is not None]
    spread = math.hypot(*errors) / len(estimates) if len(errors) == len(estimates) else None
    return Estimate(statistics.fmean(estimate.mean for estimate in estimates), spread)


def named(name: str, estimate: Estimate | None) -> dict[str, float]:
    """Return `{name: mean, name_stderr: standard error}`, without what is None."""
    if estimate is None:
        return {}
    scores = {name: estimate.mean, f"{name}_stderr": estimate.standard_error}
    return {key: value for key, value in scores.items() if value is not None}


def mean_of_samples(values: Iterable[float | None]) -> float | None:
    """Return the mean of the scored samples of one question: avg@n where the values are 1 (right) and 0 (wrong)."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def pass_at_k(correct: Sequence[bool | None], k: int) -> float | None:
    """Return the unbiased estimate of P(at least one of k samples is right) for one question.

        1 - C(n - c, k) / C(n, k),  n scored samples of which c are right    (Chen et al. 2021, arXiv:2107.03374, eq. 1)

    Args:
        correct: verdict on each sample, None where it has no score.
        k: at least 1.
    Returns:
        A probability, None where fewer than k samples are scored.
    """
    known = [verdict for verdict in correct if verdict is not None]
    if len(known) < k:
        return None
    return 1.0 - math.comb(len(known) - sum(known), k) / math.comb(len(known), k)


def majority(correct: Sequence[bool | None], answers: Sequence[str | None]) -> float | None:
    """Return how right the most frequent answer to one question is: maj@n.

    Scored samples vote for their answer; those without one do not vote. Ties: the mean over the answers with the most
    votes, which is the expectation of drawing one of them. An answer's value is the mean verdict on its samples, which
    differ only where a grader looks at more than the answer. Without any vote the value is 0: nothing was answered.

    Args:
        correct: verdict on each sample, None where it has no score.
        answers: the answer of each sample, None where none could be read.
    Returns:
        A number in [0, 1], None where no sample is scored.
    """
    verdicts: dict[str, list[bool]] = defaultdict(list)
    for verdict, answer in zip(correct, answers, strict=True):
        if verdict is not None and answer is not None:
            verdicts[answer].append(verdict)
    if not verdicts:
        return None if all(verdict is None for verdict in correct) else 0.0
    most_votes = max(map(len, verdicts.values()))
    return statistics.fmean(
        statistics.fmean(group) for group in verdicts.values() if len(group) == most_votes
    )


def repeated_ngram_share(token_ids: Sequence[int], length: int = NGRAM) -> float:
    """Return the share of a completion's n-grams that it already had: 0 for new text throughout, near 1 in a loop.

        1 - distinct n-grams / n-grams             (seq-rep-n of Welleck et al. 2019, arXiv:1908.04319, sec. 6)

    Args:
        token_ids: the model's own tokens, in order.
        length: n.
    Returns:
        A number in [0, 1); 0 where the completion is shorter than n tokens.
    """
    num_ngrams = len(token_ids) - length + 1
    if num_ngrams < 1:
        return 0.0
    distinct = {tuple(token_ids[start : start + length]) for start in range(num_ngrams)}
    return 1.0 - len(distinct) / num_ngrams


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the percentile, linear between the two nearest ranks (NumPy's default); `values` is not empty."""
    ordered = sorted(values)
    rank = percent / 100 * (len(ordered) - 1)
    below, above = math.floor(rank), math.ceil(rank)
    return ordered[below] + (rank - below) * (ordered[above] - ordered[below])
