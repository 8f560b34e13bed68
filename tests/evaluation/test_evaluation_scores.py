"""Scores of evaluation against oracles that count by enumeration; plans of batches; what graders read of a text."""

import itertools
import math

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srpo_trl.evaluation.batches import batch_by_tokens
from srpo_trl.evaluation.samples import AnswerParser, Sample, answer_parser, score_samples
from srpo_trl.evaluation.scores import (
    Estimate,
    majority,
    mean_of_estimates,
    mean_over_questions,
    named,
    pass_at_k,
    percentile,
    repeated_ngram_share,
)
from srpo_trl.rewards import (
    get_format_reward,
    get_multiple_choice_reward,
    length_reward,
    math_reward,
    multiple_choice_reward,
    tool_use_reward,
)

VERDICTS = st.lists(st.sampled_from([True, False, None]), min_size=1, max_size=7)


# ------------------------------------------------------------------ scores


@given(VERDICTS, st.integers(1, 7))
@settings(max_examples=150, deadline=None)
def test_pass_at_k_is_the_mean_over_all_choices_of_k_samples(verdicts, k):
    scored = [verdict for verdict in verdicts if verdict is not None]
    choices = list(itertools.combinations(scored, k))
    if not choices:
        assert pass_at_k(verdicts, k) is None
    else:
        assert pass_at_k(verdicts, k) == pytest.approx(sum(map(any, choices)) / len(choices), abs=1e-12)


def test_pass_at_k_does_not_overflow():
    assert pass_at_k([True] + [False] * 2999, 1) == pytest.approx(1 / 3000)


@given(st.lists(st.tuples(st.sampled_from("ABC"), st.booleans()), min_size=1, max_size=8))
@settings(max_examples=100, deadline=None)
def test_majority_is_the_expectation_over_drawn_winners(samples):
    answers = [answer for answer, _ in samples]
    most = max(answers.count(answer) for answer in answers)
    winners = [answer for answer in sorted(set(answers)) if answers.count(answer) == most]
    values = []
    for winner in winners:
        verdicts = [verdict for answer, verdict in samples if answer == winner]
        values.append(sum(verdicts) / len(verdicts))
    assert majority([verdict for _, verdict in samples], answers) == pytest.approx(sum(values) / len(values))


@pytest.mark.parametrize(
    ("verdicts", "answers", "expected"),
    [
        ([True, False, False], ["A", "B", "B"], 0.0),
        ([True, True, False], ["A", "A", "B"], 1.0),
        ([True, False], ["A", "B"], 0.5),  # a tie
        ([True, False, False], ["A", "B", "C"], pytest.approx(1 / 3)),
        ([True, False, False], ["A", None, None], 1.0),  # no answer, no vote
        ([False, False], [None, None], 0.0),
        ([None, None, True], ["B", "B", "A"], 1.0),  # no score, no vote
        ([None, None], ["B", "B"], None),
    ],
)
def test_majority_of_given_votes(verdicts, answers, expected):
    assert majority(verdicts, answers) == expected


@given(st.lists(st.integers(0, 2), max_size=12), st.integers(1, 4))
@settings(max_examples=100, deadline=None)
def test_repeated_ngrams_are_those_that_stood_before(tokens, length):
    ngrams = [tokens[start : start + length] for start in range(max(0, len(tokens) - length + 1))]
    repeated = [ngram in ngrams[:position] for position, ngram in enumerate(ngrams)]
    expected = sum(repeated) / len(repeated) if repeated else 0.0
    assert repeated_ngram_share(tokens, length) == pytest.approx(expected)


def test_repeated_ngrams_of_new_text_of_a_loop_and_of_almost_nothing():
    assert repeated_ngram_share(list(range(50))) == 0.0
    assert repeated_ngram_share([7] * 103) == pytest.approx(0.99)
    assert repeated_ngram_share([7, 7, 7]) == 0.0


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=20), st.floats(0, 100))
@settings(max_examples=100, deadline=None)
def test_percentile_is_numpys(values, percent):
    assert percentile(values, percent) == pytest.approx(numpy.percentile(values, percent))


@given(st.lists(st.one_of(st.none(), st.floats(-1, 1)), max_size=9))
@settings(max_examples=100, deadline=None)
def test_standard_error_is_over_questions_that_have_a_value(values):
    known = [value for value in values if value is not None]
    found = mean_over_questions(values)
    if not known:
        assert found is None
        return
    assert found.mean == pytest.approx(numpy.mean(known), abs=1e-12)
    if len(known) == 1:
        assert found.standard_error is None
    else:
        expected = numpy.std(known, ddof=1) / math.sqrt(len(known))
        assert found.standard_error == pytest.approx(expected, abs=1e-12)


def test_mean_of_data_sets_adds_variances():
    both = mean_of_estimates([Estimate(0.2, 0.03), Estimate(0.6, 0.04)])
    assert both == Estimate(pytest.approx(0.4), pytest.approx(0.025))
    assert mean_of_estimates([Estimate(0.2, 0.03), Estimate(0.6, None)]).standard_error is None
    assert mean_of_estimates([]) is None
    assert named("x", Estimate(0.2, None)) == {"x": 0.2}
    assert named("x", None) == {}


def sample(question: int, score: float | None, **fields) -> Sample:
    defaults = {
        "text": "",
        "num_tokens": 1,
        "is_cut": False,
        "repeated_ngrams": 0.0,
        "rewards": {"grader": score},
        "is_correct": None if score is None else score >= 0.5,
        "answer": None,
        "follows_format": None,
    }
    return Sample(question=question, score=score, **(defaults | fields))


def test_scores_of_samples_by_hand():
    """Three questions of four samples; the second has one without a score, the third none with one."""
    samples = [
        sample(0, 1.0, answer="A", num_tokens=10, follows_format=True, is_cut=True),
        sample(0, 1.0, answer="A", num_tokens=20, follows_format=True),
        sample(0, 0.0, answer="B", num_tokens=30, follows_format=False),
        sample(0, 0.0, answer="C", num_tokens=40, follows_format=False, repeated_ngrams=0.8),
        sample(2, 1.0, answer="D", num_tokens=50, follows_format=True),
        sample(2, None, answer="E", num_tokens=50, follows_format=True),
        sample(2, 0.0, answer="E", num_tokens=50, follows_format=True),
        sample(2, 0.0, answer="E", num_tokens=50, follows_format=True),
        *[sample(3, None, answer="F", num_tokens=60, follows_format=False) for _ in range(4)],
    ]
    found = score_samples(samples, 4, has_answers=True)
    two = math.sqrt(2)
    expected = {
        "questions": 3,
        "unscored_samples": 5,
        "avg@4": (1 / 2 + 1 / 3) / 2,
        "avg@4_stderr": (1 / 2 - 1 / 3) / two / two,
        "maj@4": (1 + 0) / 2,
        "maj@4_stderr": 1 / two / two,
        "pass@2": ((1 - 1 / 6) + (1 - 1 / 3)) / 2,
        "pass@2_stderr": (1 / 6) / two / two,
        "pass@4": 1.0,  # the first question alone has four scored samples
        "format_rate": (1 / 2 + 1 + 0) / 3,
        "format_rate_stderr": 0.5 / math.sqrt(3),
        "reward": (1 / 2 + 1 / 3) / 2,
        "reward_stderr": (1 / 2 - 1 / 3) / two / two,
        "rewards/grader/mean": (1 / 2 + 1 / 3) / 2,
        "rewards/grader/mean_stderr": (1 / 2 - 1 / 3) / two / two,
        "completions/mean_length": (25 + 50 + 60) / 3,
        "completions/mean_length_stderr": numpy.std([25, 50, 60], ddof=1) / math.sqrt(3),
        "completions/clipped_ratio": 1 / 4 / 3,
        "completions/clipped_ratio_stderr": numpy.std([1 / 4, 0, 0], ddof=1) / math.sqrt(3),
        "completions/repeated_ratio": 0.2 / 3,
        "completions/repeated_ratio_stderr": numpy.std([0.2, 0, 0], ddof=1) / math.sqrt(3),
        "completions/min_length": 10,
        "completions/max_length": 60,
        "completions/p50_length": 50,
        "completions/p90_length": 60,
        "completions/p99_length": 60,
    }
    assert found == {name: pytest.approx(value) for name, value in expected.items()}


def test_scores_that_nothing_has_a_value_for_are_left_out():
    found = score_samples([sample(0, None)], 1, has_answers=False)
    assert not {"avg@1", "maj@1", "format_rate", "reward", "pass@2"} & set(found)
    assert found["unscored_samples"] == 1
    assert "completions/mean_length_stderr" not in found


# ------------------------------------------------------------------ plans


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    num_samples=st.integers(1, 5),
    budget=st.one_of(st.none(), st.integers(1, 400)),
    num_processes=st.integers(1, 4),
)
@settings(max_examples=200, deadline=None)
def test_every_sample_is_planned_once_within_the_budget(lengths, num_samples, budget, num_processes):
    batches = batch_by_tokens(
        lengths,
        num_samples=num_samples,
        max_completion_length=30,
        tokens_per_batch=budget,
        num_processes=num_processes,
    )
    planned = [one for batch in batches for one in batch]
    counted = [one.question for one in planned if not one.is_padding]
    assert sorted(counted) == sorted(list(range(len(lengths))) * num_samples)
    assert len(planned) - len(counted) < num_processes
    prompts = [lengths[question] for question in counted]
    assert prompts == sorted(prompts, reverse=True)
    for batch in batches:
        shares = [batch[rank::num_processes] for rank in range(num_processes)]
        assert len({len(share) for share in shares}) == 1
        for share in shares:
            tokens = len(share) * (max(lengths[one.question] for one in batch) + 30)
            assert budget is None or tokens <= budget or len(share) == 1
    if budget is None:
        assert len(batches) == 1


def test_a_plan_fills_its_budget():
    batches = batch_by_tokens(
        [10, 10, 30], num_samples=2, max_completion_length=10, tokens_per_batch=80, num_processes=1
    )
    assert [[one.question for one in batch] for batch in batches] == [[2, 2], [0, 0, 1, 1]]


# ------------------------------------------------------------------ what graders read


RIGHT_FORMAT = "<reasoning>\nIt is so.\n</reasoning>\n<answer>\nB\n</answer>\n"


@pytest.mark.parametrize(
    ("text", "answer", "follows"),
    [
        (RIGHT_FORMAT, "B", True),
        ("<think>\nHm.\n</think>\n\n" + RIGHT_FORMAT, "B", True),
        ("Here: " + RIGHT_FORMAT, "B", False),
        (RIGHT_FORMAT + "Done.", "B", False),
        ("<answer>B</answer>", "B", False),
        ("<answer>B</answer><reasoning>r</reasoning>", "B", False),
        ("<reasoning>r</reasoning><answer>B, I think</answer>", "B, I think", False),
        ("<reasoning> </reasoning><answer>B</answer>", "B", False),
        ("<reasoning>r</reasoning><answer></answer>", None, False),
        ("B", None, False),
        ("", None, False),
    ],
)
def test_multiple_choice_answers_and_format(text, answer, follows):
    assert multiple_choice_reward.extract_answer(text) == answer
    assert multiple_choice_reward.follows_format(text) is follows


def test_strict_paper_votes_for_what_it_grades():
    reward = get_multiple_choice_reward(strict_paper=True)
    assert reward.extract_answer("B") == "B"
    assert reward.extract_answer("<answer>C") == "C"
    assert reward.extract_answer("<answer> </answer>") is None


CALL = 'Thought: look\nAction: search\nAction Input: {"b": {"c": 2}, "a": 1}\n'


@pytest.mark.parametrize(
    ("text", "answer", "follows"),
    [
        (CALL, '[["search"], {"a": 1, "b": {"c": 2}}]', True),
        (
            CALL + 'Action: find\nAction Input: {"a": 3}',
            '[["find", "search"], {"a": 3, "b": {"c": 2}}]',
            True,
        ),
        (CALL + "Action: find", '[["find", "search"], {"a": 1, "b": {"c": 2}}]', False),
        ("Action: search\nAction Input: {oops", '[["search"], {}]', False),
        ("Action: search\nAction Input: nothing", '[["search"], {}]', False),
        ("I cannot.", None, False),
    ],
)
def test_tool_use_answers_and_format(text, answer, follows):
    assert tool_use_reward.extract_answer(text) == answer
    assert tool_use_reward.follows_format(text) is follows


@pytest.mark.parametrize(
    ("text", "answer", "follows"),
    [
        (r"So \boxed{42}.", "42", True),
        (r"So \boxed{ \frac{1}{2} }", r"\frac{1}{2}", True),
        (r"\boxed{1} or \boxed{2}", None, False),
        (r"So \boxed{42", None, False),
        (r"So \boxed{}.", None, False),
        ("So it is 42.", "42", False),
        ("Who knows?", None, False),
    ],
)
def test_maths_answers_and_format(text, answer, follows):
    assert math_reward.follows_format(text) is follows
    if answer is not None:
        assert math_reward.extract_answer(text) == answer
    if text == "Who knows?":
        assert math_reward.extract_answer(text) is None


def test_the_first_reward_function_that_knows_is_asked():
    def own(completions, **kwargs):
        return [0.0] * len(completions)

    assert answer_parser([own, length_reward]) == AnswerParser(None, None)
    strict = get_format_reward(("answer",))
    reading = answer_parser([own, strict, multiple_choice_reward])
    assert reading.extract_answer is multiple_choice_reward.extract_answer
    assert reading.follows_format("<answer>B</answer>")
    assert not answer_parser([multiple_choice_reward, strict]).follows_format("<answer>B</answer>")
    own.extract_answer = str.strip
    assert answer_parser([own, multiple_choice_reward]).extract_answer(" 7 ") == "7"
