"""What multiplies the divergence to each of several scorers."""

import torch

from srpo_trl.loss.ops import TokenStatistics
from srpo_trl.methods import routers
from srpo_trl.methods.record import Method, Scorer
from srpo_trl.rollout.batch import add_rollouts, add_routes, add_scores, routed_batch
from srpo_trl.rollout.coefficients import joint_weight, step_totals, teacher_sides, token_weights

SCORED = torch.tensor([[True, True], [True, False]])
TWO = (Scorer(), Scorer("other", context="column"))


def routed():
    """Three tokens of two rollouts, distilled to two scorers."""
    made = {"completion_mask": SCORED.long(), "advantages": torch.zeros(2)}
    add_routes(made, torch.tensor([2, 2]))
    for number, name in enumerate(("teacher", "other")):
        statistics = TokenStatistics(torch.zeros(3), torch.arange(3.0) + 10 * number)
        add_scores(made, name, SCORED, statistics, hidden=[torch.ones(2, 4), torch.ones(1, 4)])
    add_rollouts(made, torch.arange(2), None)
    return routed_batch(made)


def weights(tokens):
    """1, 2, 3 to the first scorer and three times as much to the second one: 24 in all, 8 a token."""
    first_BT = torch.tensor([[1.0, 2.0], [3.0, 99.0]])
    return first_BT, 3 * first_BT


def test_weights_of_several_scorers_have_mean_one_together():
    method, batch = Method(routers.distilled, TWO, weights=weights), routed()
    totals = step_totals([batch], method, 0, lambda local: local)
    assert totals.sum_raw_weights == 24
    first_BT, second_BT = token_weights(batch, method, 0, totals)
    assert first_BT[SCORED].tolist() == [1 / 8, 2 / 8, 3 / 8]
    assert second_BT[SCORED].tolist() == [3 / 8, 6 / 8, 9 / 8]
    assert joint_weight(batch, method, 0, totals)[SCORED].mean() == 1


def test_each_scorer_has_its_own_coefficients_log_sum_exps_and_head():
    method, batch = Method(routers.distilled, TWO, weights=weights, mean_one=False), routed()
    totals = step_totals([batch], method, 0, lambda local: local)
    first, second = teacher_sides(batch, method, 0, totals, 2, lambda name: f"head of {name}")
    assert torch.allclose(first.coefficient_N, 2 * torch.tensor([1.0, 2.0, 3.0]) / 3)  # 3 tokens, 2 processes
    assert torch.allclose(second.coefficient_N, 3 * first.coefficient_N)
    assert first.log_sum_exp_N.tolist() == [0, 1, 2]
    assert second.log_sum_exp_N.tolist() == [10, 11, 12]
    assert (first.head, second.head) == ("head of teacher", "head of other")
