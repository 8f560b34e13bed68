"""TRL's batches of rollouts, translated: what each part of the loss sees of them."""

import pytest
import torch

from srpo_trl.loss.ops import TokenStatistics
from srpo_trl.methods.record import Route
from srpo_trl.rollout.batch import (
    add_rollouts,
    add_routes,
    add_scores,
    is_routed,
    policy_inputs,
    routed_batch,
)


def batch(**fields):
    """Two distilled rows of two and one tokens, one of the policy and an excluded one."""
    mask = torch.tensor([[1, 1], [1, 1], [1, 0], [1, 1]])
    made = {"completion_mask": mask, "advantages": torch.tensor([0.5, -0.5, 1.0, 2.0]), **fields}
    routes = torch.tensor([Route.DISTILLED, Route.POLICY, Route.DISTILLED, Route.SKIPPED])
    distilled = torch.tensor([[True, True], [False, False], [True, False], [False, False]])
    statistics = TokenStatistics(torch.tensor([0.1, 0.2, 0.3]), torch.tensor([7.0, 8.0, 9.0]))
    assert not is_routed(made)
    hidden = [torch.ones(2, 3), torch.ones(0, 3), torch.ones(1, 3), torch.ones(0, 3)]
    add_routes(made, routes)
    add_scores(made, "teacher", distilled, statistics, hidden=hidden)
    add_rollouts(made, torch.arange(4), None)
    assert is_routed(made)
    return made


def test_routes_say_which_tokens_count():
    routed = routed_batch(batch())
    assert routed.is_policy_B.tolist() == [False, True, False, False]
    assert routed.is_distilled_B.tolist() == [True, False, True, False]
    assert routed.distilled_BT.tolist() == [[True, True], [False] * 2, [True, False], [False] * 2]
    assert routed.routed_BT.tolist() == [[True, True], [True, True], [True, False], [False] * 2]


def test_a_method_sees_tokens_advantages_and_the_teachers_entropy():
    made = batch()
    tokens = routed_batch(made).tokens(step=4)
    assert torch.equal(tokens.mask_BT, made["completion_mask"].bool())
    assert tokens.advantage_B is made["advantages"]
    assert tokens.scores["teacher"].entropy_BT is routed_batch(made).teacher_entropy_BT
    assert tokens.step == 4


def test_the_teachers_log_sum_exp_is_carried_where_a_checkpoint_has_it():
    made = batch()
    log_sum_exp_BT = routed_batch(made).distilling["teacher"].log_sum_exp_BT
    assert log_sum_exp_BT.tolist() == [[7.0, 8.0], [0.0, 0.0], [9.0, 0.0], [0.0, 0.0]]
    del made["srpo_teacher_log_sum_exp"]
    assert routed_batch(made).distilling["teacher"].log_sum_exp_BT is None


def test_a_scorer_that_observes_has_its_log_probabilities_and_distils_nothing():
    made = batch()
    observed = torch.tensor([[False, False], [True, True], [False, False], [False, False]])
    statistics = TokenStatistics(torch.tensor([0.4, 0.5]), torch.tensor([1.0, 2.0]))
    add_scores(made, "initial", observed, statistics, logps_N=torch.tensor([-1.0, -2.0]))
    routed = routed_batch(made)
    assert list(routed.distilling) == ["teacher"]
    scores = routed.tokens(step=0).scores
    assert scores["initial"].entropy_BT.tolist() == [[0, 0], [0.4000000059604645, 0.5], [0, 0], [0, 0]]
    assert scores["initial"].logps_BT.tolist() == [[0, 0], [-1, -2], [0, 0], [0, 0]]
    assert scores["teacher"].logps_BT.numel() == scores["initial"].divergence_BT.numel() == 0


@pytest.mark.parametrize("shape", ["per token", "per sequence"])
def test_samplers_ratio_of_the_distilled_tokens(shape):
    ratio_BT = torch.tensor([[2.0, 2.0], [9.0, 9.0], [0.5, 9.0], [9.0, 9.0]])
    ratio = ratio_BT if shape == "per token" else ratio_BT[:, :1]
    routed = routed_batch(batch(importance_sampling_ratio=ratio))
    assert routed.sampler_ratio_N.tolist() == [2.0, 2.0, 0.5]
    assert routed_batch(batch()).sampler_ratio_N is None


def test_trls_loss_acts_on_policy_rows_alone():
    made = batch(
        old_per_token_logps=torch.full((4, 2), -1.0), tool_mask=torch.tensor([[1, 1], [1, 0], [1, 1], [1, 1]])
    )
    inputs = policy_inputs(made, routed_batch(made), torch.tensor(5.0))
    assert inputs["tool_mask"].tolist() == [[0, 0], [1, 0], [0, 0], [0, 0]]
    assert inputs["num_items_in_batch"] == 5.0
    assert inputs["old_per_token_logps"].tolist() == [[0, 0], [-1, 0], [0, 0], [0, 0]]
    assert made["advantages"].tolist() == [0.5, -0.5, 1.0, 2.0]  # TRL's own are left alone
