"""Routes and demonstrations against the oracle's tables."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import oracle
from srpo_trl.methods.routers import (
    INELIGIBLE_RANK,
    NO_SIBLING,
    ROUTERS,
    Correctness,
    Route,
    choose_demonstrations,
    demonstration_rank,
    judge_correctness,
    needs_teacher,
    route_samples,
)
from srpo_trl.rollout.graded import correctness_score

WEIGHTS = {Route.SKIPPED: (0, 0), Route.POLICY: (1, 0), Route.DISTILLED: (0, 1)}


@pytest.mark.parametrize("routing", [r for r in ROUTERS if r != "advantage_mix"])
def test_routes_equal_the_oracles_table(routing):
    for correct, has_teacher, scored in itertools.product([True, False], repeat=3):
        verdict = Correctness(torch.tensor([scored]), torch.tensor([correct and scored]))
        route = Route(int(route_samples(routing, verdict, torch.tensor([has_teacher]))))
        assert WEIGHTS[route] == oracle.route_weights(routing, correct and scored, has_teacher, scored)


def test_advantage_mix_trains_both_branches_where_a_teacher_is():
    verdict = Correctness(torch.tensor([True, True, False]), torch.tensor([True, False, False]))
    routes = route_samples("advantage_mix", verdict, torch.tensor([True, False, True]))
    assert routes.tolist() == [Route.BOTH, Route.POLICY, Route.SKIPPED]


def test_threshold_is_inclusive_and_nan_and_infinity_are_no_scores():
    scores = torch.tensor([0.5, 0.4999, math.nan, math.inf, -math.inf, 1.0])
    verdict = judge_correctness(scores, 0.5)
    assert verdict.is_correct_B.tolist() == [True, False, False, False, False, True]
    assert verdict.is_scored_B.tolist() == [True, True, False, False, False, True]


def test_srpo_wants_a_teacher_for_failed_rollouts_alone():
    verdict = Correctness(torch.tensor([True, True, False]), torch.tensor([True, False, False]))
    assert needs_teacher("srpo", verdict).tolist() == [False, True, False]
    assert needs_teacher("sdpo", verdict).tolist() == [True, True, False]
    assert needs_teacher("grpo", verdict).tolist() == [False, False, False]


def test_deciding_score_is_the_weighted_sum_or_one_function():
    rewards = torch.tensor([[1.0, 0.5], [math.nan, 0.5], [math.nan, math.nan]])
    weights = torch.tensor([2.0, 1.0])
    torch.testing.assert_close(
        correctness_score(rewards, weights, ["a", "b"], None),
        torch.tensor([2.5, 0.5, math.nan]),
        equal_nan=True,
    )
    torch.testing.assert_close(
        correctness_score(rewards, weights, ["a", "b"], "a"),
        torch.tensor([1.0, math.nan, math.nan]),
        equal_nan=True,
    )


NONE = INELIGIBLE_RANK


def test_one_demonstration_serves_the_group_and_never_itself():
    keys = torch.tensor([NONE, 5, 3, NONE, NONE, NONE, NONE, 7])
    assert choose_demonstrations(keys, 4).tolist() == [2, 2, 1, 2, 7, 7, 7, NO_SIBLING]


def test_groups_without_a_correct_rollout_have_no_demonstration():
    assert choose_demonstrations(torch.tensor([NONE] * 4), 2).tolist() == [NO_SIBLING] * 4


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=8, max_size=8), st.sampled_from([2, 4, 8]))
def test_demonstrations_are_correct_siblings(keys, num_generations):
    key_B = torch.tensor([NONE if key > 3 else key for key in keys])
    for row, chosen in enumerate(choose_demonstrations(key_B, num_generations).tolist()):
        group = row // num_generations
        siblings = [
            r
            for r in range(group * num_generations, (group + 1) * num_generations)
            if r != row and key_B[r] < NONE
        ]
        assert (chosen == NO_SIBLING) if not siblings else (chosen in siblings)


def test_incomplete_groups_are_refused():
    with pytest.raises(ValueError, match="6 rollouts"):
        choose_demonstrations(torch.zeros(6, dtype=torch.int64), 4)


def test_keys_are_reproducible_and_depend_on_tokens_seed_and_step():
    key = demonstration_rank([1, 2, 3], seed=0, step=4)
    assert key == demonstration_rank((1, 2, 3), seed=0, step=4)
    others = {
        demonstration_rank([1, 2], 0, 4),
        demonstration_rank([1, 2, 3], 1, 4),
        demonstration_rank([1, 2, 3], 0, 5),
    }
    assert key not in others
    assert len(others) == 3
    assert all(0 <= k < NONE for k in (key, *others))


def test_every_correct_sibling_may_serve():
    chosen = set()
    for step in range(40):
        keys = [demonstration_rank([10 + row], 0, step) for row in range(3)]
        chosen.add(int(choose_demonstrations(torch.tensor([*keys, NONE]), 4)[3]))
    assert chosen == {0, 1, 2}
