"""What "correct" means is told where rewards and threshold may not fit: with values, and in runs."""

import json
import logging
import math

import pytest
import torch

from harness import contains_answer, make_trainer
from srpo_trl.host.checkpoint_parts import STATE_FILE
from srpo_trl.methods import groups, testing
from srpo_trl.rewards.correctness import correctness_score, judge_correctness
from srpo_trl.rewards.correctness_watch import (
    NO_SCORES,
    REMINDER_BATCHES,
    CorrectnessWatch,
    Scores,
    batch_scores,
    decision_note,
    is_far_below,
    one_verdict,
)

NAN = math.nan
TWO = ("accuracy", "format")


# ---------------------------------------------------------------- the verdict


def test_threshold_is_inclusive_and_nan_and_infinity_are_no_scores():
    scores = torch.tensor([[0.5, 0.4999, NAN], [math.inf, -math.inf, 1.0]])
    verdict = judge_correctness(scores, 0.5)
    assert verdict.is_correct.tolist() == [[True, False, False], [False, False, True]]
    assert verdict.is_scored.tolist() == [[True, True, False], [False, False, True]]


def test_a_group_has_failed_where_something_was_scored_and_nothing_correct():
    verdict = judge_correctness(torch.tensor([[1.0, 0.0], [0.0, NAN], [NAN, NAN]]), 0.5)
    graded = testing.graded()._replace(is_scored_PG=verdict.is_scored, is_correct_PG=verdict.is_correct)
    assert groups.has_failed(graded).flatten().tolist() == [False, True, False]
    assert verdict.accuracy == 1 / 3
    assert judge_correctness(torch.tensor([[NAN]]), 0.5).accuracy is None


def test_correctness_score_is_the_weighted_sum_or_one_function():
    rewards = torch.tensor([[1.0, 0.5], [NAN, 0.5], [NAN, NAN]])
    weights = torch.tensor([2.0, 1.0])
    for named, expected in ((None, [2.5, 0.5, NAN]), ("a", [1.0, NAN, NAN])):
        score = correctness_score(rewards, weights, ["a", "b"], named)
        torch.testing.assert_close(score, torch.tensor(expected), equal_nan=True)


# ---------------------------------------------------------------- at construction


@pytest.mark.parametrize(
    ("names", "weights", "correctness_reward", "threshold", "words"),
    [
        (TWO, (1, 1), None, 0.5, ["'accuracy' (weight 1), 'format' (weight 1)", "from 'accuracy' or 'format' alone"]),
        (TWO, (0.2, 0.8), None, 0.5, ["2 reward functions decide together", "A reward of 1 from 'format' alone"]),
        (TWO, (0.3, 0.1), None, 0.5, ["no rollout can be correct", "add up to 0.4", "success_reward_threshold=0.5"]),
        (("accuracy",), (0.3,), None, 0.5, ["no rollout can be correct", "[0.3] add up to 0.3"]),
        (("a", "b", "c"), (1, -1, 0), None, 0.5, ["2 reward functions", "'a' (weight 1), 'b' (weight -1)"]),
    ],
)  # fmt: skip
def test_a_doubtful_decision_is_told_with_the_option_to_set(
    names, weights, correctness_reward, threshold, words
):
    note = decision_note(names, weights, correctness_reward, threshold)
    assert [word for word in [*words, "Set correctness_reward to the name"] if word not in note] == []


@pytest.mark.parametrize(
    ("names", "weights", "correctness_reward", "threshold"),
    [
        (("accuracy",), (1,), None, 0.5),
        (("accuracy",), (1,), None, 5.0),  # rewards of another scale, threshold to match
        (("accuracy",), (2,), None, 1.5),
        (TWO, (1, 0), None, 0.5),  # one function counts
        (TWO, (1, 1), "accuracy", 0.5),
        (TWO, (0.1, 0.1), "accuracy", 0.5),  # its unweighted score decides
        ((), (), None, 0.5),
    ],
)
def test_a_clear_decision_says_nothing(names, weights, correctness_reward, threshold):
    assert decision_note(names, weights, correctness_reward, threshold) == ""


# ---------------------------------------------------------------- scores


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 1.0, 0.5], Scores(3, 0.0, 1.0)),
        ([NAN, -2.0, math.inf], Scores(1, -2.0, -2.0)),
        ([NAN], NO_SCORES),
        ([], NO_SCORES),
    ],
)
def test_scores_are_the_finite_ones(values, expected):
    assert batch_scores(values) == expected


@pytest.mark.parametrize(
    ("values", "threshold", "expected"),
    [
        ([1.0, 2.0, 1.0], 0.5, "correct"),
        ([0.5, 2.0], 0.5, "correct"),  # the threshold itself is correct
        ([-1.0, 0.0], 0.5, "failed"),
        ([0.0, 0.4], 0.5, "failed"),
        ([0.4, NAN, 0.0], 0.5, "failed"),
        ([0.0, 1.0], 0.5, ""),
        ([0.0, 0.0], 0.5, ""),  # a group that failed
        ([1.0, 1.0], 0.5, ""),  # a group that succeeded
        ([0.1 + 0.2, 0.3], 0.5, ""),  # equal but for rounding
        ([2.0, NAN], 0.5, ""),
        ([], 0.5, ""),
        ([-1.0, 1.0], 0.0, ""),
    ],
)
def test_one_verdict_on_rewards_that_differ(values, threshold, expected):
    assert one_verdict(batch_scores(values), threshold) == expected


@pytest.mark.parametrize(
    ("values", "threshold", "expected"),
    [
        ([0.0, 5.0, 90.0], 0.5, True),
        ([0.0, 100.0, 100.0], 0.5, False),  # right or wrong, on another scale
        ([0.0, 5.0, 90.0], 50.0, False),
        ([0.0, 1.0, 3.0], 0.5, False),  # a bonus
        ([-1.0, 1.0], 0.0, False),
        ([NAN, math.inf], 0.5, False),
        ([], 0.5, False),
    ],
)
def test_a_threshold_of_another_scale(values, threshold, expected):
    assert is_far_below(values, threshold) == expected


# ---------------------------------------------------------------- over a run


def told(batches, threshold=0.5, names=TWO, correctness_reward=None):
    watch = CorrectnessWatch(names, correctness_reward, threshold)
    return {number: note for number, values in enumerate(batches, start=1) if (note := watch.observe(values))}


def test_what_tells_no_rollouts_apart_is_told_at_once_and_once_more():
    notes = told([[1.0, 2.0]] * 50)
    assert list(notes) == [1, REMINDER_BATCHES]
    assert "In 1 rollout batch every rollout has been correct although rewards differ" in notes[1]
    assert "the weighted sum of the rewards was between 1 and 2 in 2 rollouts" in notes[1]
    assert "success_reward_threshold=0.5" in notes[1]
    assert "Set correctness_reward to the name of the reward function that grades the answer" in notes[1]
    assert "In 20 rollout batches" in notes[REMINDER_BATCHES]
    assert "in 40 rollouts" in notes[REMINDER_BATCHES]
    (note,) = told([[-1.0, 0.0]], names=["grade"], correctness_reward="grade").values()
    assert "no rollout has been correct although rewards differ: 'grade' was between -1 and 0" in note


@pytest.mark.parametrize(
    "batches",
    [
        [[0.0, 0.0]] * 50,  # too hard so far
        [[1.0, 1.0]] * 50,
        [[0.0, 1.0], *[[0.6, 1.0]] * 50],  # has learned the task
        [[0.0, 0.0], [1.0, 1.0], *[[0.6, 1.0]] * 50],
        [[NAN, NAN]] * 50,
    ],
)
def test_no_false_alarm(batches):
    assert told(batches) == {}


def test_batches_that_differ_from_one_another_count():
    assert list(told([[0.0, 0.0], [0.0, 0.0], [0.3, 0.3]])) == [3]
    assert list(told([*[[0.0, 0.0]] * 24, [0.3, 0.0], [0.0, 0.0]])) == [25]


def test_a_low_threshold_is_told_once():
    notes = told([[0.0, 5.0, 90.0]] * 50)
    assert list(notes) == [1]
    assert "Rewards go up to 90" in notes[1]
    assert "success_reward_threshold=0.5 on, which is low on that scale" in notes[1]


def test_a_score_at_the_threshold_is_correct_as_it_is_for_the_routes():
    """Both are float32 there, where 0.7 is less than Python's."""
    as_float32 = 0.699999988079071
    assert "every rollout has been correct" in told([[as_float32, 1.0]], threshold=0.7)[1]
    assert told([[0.0, as_float32]], threshold=0.7) == {}


def test_a_resumed_watch_goes_on():
    before = CorrectnessWatch(TWO, None, 0.5)
    assert before.observe([0.0, 0.3])
    after = CorrectnessWatch(TWO, None, 0.5)
    after.restore(json.loads(json.dumps(before.state())))
    assert [bool(after.observe([0.0, 0.3])) for _ in range(30)] == [
        n == REMINDER_BATCHES for n in range(2, 32)
    ]
    fresh = CorrectnessWatch(TWO, None, 0.5)
    fresh.restore(json.loads(json.dumps(CorrectnessWatch(TWO, None, 0.5).state())))
    assert fresh.observe([0.0, 0.3]) == before_first(0.5)


def before_first(threshold):
    return CorrectnessWatch(TWO, None, threshold).observe([0.0, 0.3])


# ---------------------------------------------------------------- in runs


def well_formed(completions, **kwargs):
    return [1.0] * len(completions)


def scaled(low, high):
    def grade(completions, **kwargs):
        return [None if r is None else low + (high - low) * r for r in contains_answer(completions)]

    return grade


def warnings_of(caplog):
    return [r.getMessage() for r in caplog.records if "correct" in r.getMessage()]


@pytest.mark.parametrize(
    ("options", "at_construction", "in_the_run"),
    [
        ({}, None, None),
        ({"reward_funcs": [contains_answer, well_formed]}, "2 reward functions", "every rollout has been correct"),
        ({"reward_funcs": [contains_answer, well_formed], "correctness_reward": "contains_answer"}, None, None),
        ({"reward_funcs": [contains_answer, well_formed], "reward_weights": [1.0, 0.0]}, None, None),
        ({"reward_weights": [0.3]}, "no rollout can be correct", "no rollout has been correct"),
        ({"reward_funcs": scaled(-1, 0)}, None, "no rollout has been correct"),
        ({"reward_funcs": scaled(20, 100)}, None, "every rollout has been correct"),
        ({"reward_funcs": scaled(20, 100), "success_reward_threshold": 60.0}, None, None),
        ({"reward_funcs": scaled(0, 100)}, None, None),
        ({"reward_funcs": scaled(0, 0)}, None, None),  # all groups fail
        ({"reward_funcs": scaled(1, 1)}, None, None),
        ({"reward_funcs": [contains_answer, well_formed], "method": "grpo"}, None, None),
    ],
    ids=(
        "one reward",
        "accuracy and format",
        "accuracy named",
        "format weighs nothing",
        "weight below the threshold",
        "from -1 to 0",
        "from 20 to 100",
        "from 20 to 100 with a threshold",
        "from 0 to 100",
        "all failed",
        "all correct",
        "grpo",
    ),
)  # fmt: skip
def test_a_run_tells_what_is_doubtful(tmp_path, caplog, options, at_construction, in_the_run):
    with caplog.at_level(logging.WARNING, "srpo_trl"):
        trainer = make_trainer(tmp_path, max_steps=3, **options)
        assert [at_construction in note for note in warnings_of(caplog)] == [True] * bool(at_construction)
        caplog.clear()
        trainer.train()
        assert [in_the_run in note for note in warnings_of(caplog)] == [True] * bool(in_the_run)


def test_what_was_told_is_not_told_again_after_a_resume(tmp_path, caplog):
    options = {"reward_funcs": scaled(-1, 0), "save_strategy": "steps", "save_steps": 1}
    make_trainer(tmp_path, max_steps=1, **options).train()
    state = json.loads((tmp_path / "checkpoint-1" / STATE_FILE).read_text(encoding="utf-8"))
    assert state["correctness"]["num_batches"] == 1
    caplog.clear()
    with caplog.at_level(logging.WARNING, "srpo_trl"):
        make_trainer(tmp_path, max_steps=2, **options).train(resume_from_checkpoint=True)
    assert warnings_of(caplog) == []
