"""Counts and coefficients of an optimizer step by hand, from tensors alone."""

import pytest
import torch

from srpo_trl.loss.step_totals import distillation_coefficients, local_totals, window_totals
from srpo_trl.loss.token_weights import mean_one_weights

# Two distilled rows of two and one tokens and one row of the policy loss between them, beside an excluded row.
ROUTED_BT = torch.tensor([[True, True], [True, True], [True, False], [False, False]])
DISTILLED_BT = torch.tensor([[True, True], [False, False], [True, False], [False, False]])
RAW_BT = torch.tensor([[1.0, 0.5], [9.0, 9.0], [0.25, 9.0], [9.0, 9.0]], dtype=torch.float64)


def totals(sum_over_processes=lambda tensor: tensor):
    """Of the rows as two micro-batches."""
    rows = (slice(0, 1), slice(1, 4))
    parts = [local_totals(ROUTED_BT[row], DISTILLED_BT[row], RAW_BT[row]) for row in rows]
    return window_totals(parts, sum_over_processes)


def test_totals_by_hand():
    found = totals()
    assert [float(value) for value in found] == [5.0, 3.0, 1.75]
    assert all(value.dtype == torch.float64 and value.shape == () for value in found)
    assert float(found.mean_unnormalized_weight) == 1.75 / 3


def test_processes_are_asked_once():
    calls = []
    found = totals(lambda tensor: calls.append(tensor) or 2 * tensor)
    assert [call.shape for call in calls] == [(3,)]
    assert [float(value) for value in found] == [10.0, 6.0, 3.5]


def test_nothing_distilled_has_the_mean_1():
    nothing = torch.zeros_like(DISTILLED_BT)
    found = window_totals([local_totals(nothing, nothing, RAW_BT)], lambda tensor: tensor)
    assert [float(value) for value in found] == [0.0, 0.0, 0.0]
    assert float(found.mean_unnormalized_weight) == 1.0
    empty_N = torch.zeros(0)
    assert distillation_coefficients(empty_N, None, found, 1.0, 1).shape == (0,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_coefficients_by_hand(dtype):
    """Raw weights 1, 1/2 and 1/4 of mean 7/12; five routed tokens."""
    found = totals()
    weight_N = mean_one_weights(RAW_BT[DISTILLED_BT], found.mean_unnormalized_weight, dtype)
    coefficient_N = distillation_coefficients(weight_N, None, found, strength=0.5, num_processes=2)
    assert coefficient_N.dtype == dtype
    weights = torch.tensor([1.0, 0.5, 0.25], dtype=dtype) / (7 / 12)
    torch.testing.assert_close(coefficient_N, 0.5 * weights * 2 / 5)


def test_coefficients_carry_the_samplers_importance_ratio():
    weight_N, ratio_N = torch.tensor([1.0, 0.5, 0.25]), torch.tensor([2.0, 2.0, 0.5])
    plain = distillation_coefficients(weight_N, None, totals(), 1.0, 1)
    assert torch.equal(distillation_coefficients(weight_N, ratio_N, totals(), 1.0, 1), plain * ratio_N)
