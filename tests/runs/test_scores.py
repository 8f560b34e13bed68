"""Best scores within budgets and their statistics, against plain arithmetic."""

import math

import pytest

from srpo_trl.runs.scores import (
    HELD_OUT,
    TRAINING,
    Budget,
    LearningCurve,
    Point,
    common_metric,
    estimate,
    read_budgets,
)

TEN_SECONDS = Budget("10s", 10.0, is_time=True)
TWENTY_STEPS = Budget("20steps", 20, is_time=False)


def curve(*points: tuple[int, float, float], end: tuple[int, float] | None = None) -> LearningCurve:
    return LearningCurve(
        tuple(Point(*point) for point in points), *(end or points[-1][:2]), is_finished=False
    )


def best_score(run: LearningCurve, budget: Budget | None) -> float | None:
    best = run.best(budget)
    return None if best is None else best.score


def test_budgets_are_times_or_steps():
    assert read_budgets("1h, 90s,20steps,100 steps") == [
        Budget("1h", 3600.0, is_time=True),
        Budget("90s", 90.0, is_time=True),
        TWENTY_STEPS,
        Budget("100 steps", 100, is_time=False),
    ]
    assert read_budgets("60s,60steps")[0] != read_budgets("60s,60steps")[1]
    for wrong in ("1h,60m", "1h,", "0steps", "steps", "5", "1h,5"):
        with pytest.raises(ValueError):
            read_budgets(wrong)


def test_best_is_the_highest_score_within_the_budget_and_after_the_start():
    run = curve((0, 0.0, 0.9), (10, 5.0, 0.4), (20, 10.0, 0.6), (30, 15.0, 0.8))
    assert best_score(run, TEN_SECONDS) == 0.6  # an evaluation at the very end is within
    assert best_score(run, TWENTY_STEPS) == 0.6
    assert best_score(run, Budget("9s", 9.0, is_time=True)) == 0.4
    assert best_score(run, Budget("1s", 1.0, is_time=True)) is None  # no trained model was evaluated
    assert best_score(run, None) == 0.8
    falling = curve((0, 0.0, 0.3), (10, 5.0, 0.7), (20, 10.0, 0.2))
    assert best_score(falling, TEN_SECONDS) == 0.7
    assert best_score(curve((0, 0.0, 0.6)), None) is None  # the start does not count


def test_of_equal_scores_the_earliest_counts():
    assert curve((10, 4.0, 0.5), (20, 10.0, 0.5)).best(TEN_SECONDS) == (10, 4.0, 0.5)


def test_a_run_that_has_not_reached_the_budget_has_no_score():
    points = ((10, 4.0, 0.4), (19, 9.0, 0.6))
    assert best_score(curve(*points), TEN_SECONDS) is None
    assert best_score(curve(*points), TWENTY_STEPS) is None
    assert (
        best_score(curve(*points, end=(20, 10.0)), TEN_SECONDS) == 0.6
    )  # it came so far without an evaluation
    assert best_score(curve(*points, end=(20, 10.0)), TWENTY_STEPS) == 0.6
    assert best_score(curve(*points, (20, 11.0, 0.1)), TEN_SECONDS) == 0.6
    assert LearningCurve((), 0, 0.0, is_finished=False).best(TEN_SECONDS) is None


def test_a_run_without_a_clock_has_scores_within_steps_alone():
    run = curve((10, math.nan, 0.4), (20, math.nan, 0.6))
    assert best_score(run, TEN_SECONDS) is None
    assert best_score(run, TWENTY_STEPS) == best_score(run, None) == 0.6


def test_mean_and_standard_error_in_plain_arithmetic():
    scores = [0.5, 0.7, 0.9]
    variance = sum((score - sum(scores) / 3) ** 2 for score in scores) / 2
    found = estimate(scores)
    assert found == (pytest.approx(sum(scores) / 3), pytest.approx(math.sqrt(variance) / math.sqrt(3)))
    assert found.text() == "0.700 ± 0.115"
    assert found.text("+") == "+0.700 ± 0.115"
    assert estimate([0.5]) == (0.5, None)
    assert estimate([0.5]).text() == "0.500"
    assert estimate([]) is None


def test_accuracy_is_the_papers_score_where_it_was_measured():
    both = ("eval_reward", "eval_avg@16", "eval_avg@16_stderr", "eval_math_avg@16", "reward")
    assert common_metric([both, both], HELD_OUT) == "eval_avg@16"
    assert common_metric([both, ("eval_reward",)], HELD_OUT) == "eval_reward"  # that all runs have
    assert common_metric([("reward",)], HELD_OUT) is None
    assert common_metric([], HELD_OUT) is None
    assert common_metric([(*both, "srpo/correct_frac"), ("reward",)], TRAINING) == "reward"
