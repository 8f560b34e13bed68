"""The clip of each entry's share of a divergence, and the linear mix of the KLs, against autograd on the formulas."""

import dataclasses
import math

import pytest
import torch

from entry_shares import clipped_frac, entry_shares, half_clip
from loss_problems import SPECS, make_problem
from srpo_trl.loss.divergence import divergence, forward_kl, reverse_kl
from srpo_trl.loss.ops import DistillationSpec, token_statistics

BACKENDS = ("reference", "chunked")
SUPPORTS = ("tail", "renormalized", "full")
DIVERGENCES = {
    "forward KL": {"alpha": 0.0},
    "reverse KL": {"alpha": 1.0},
    "Jensen-Shannon": {"alpha": 0.3},
    "mix": {"alpha": 0.3, "is_linear": True},
    "even mix": {"alpha": 0.5, "is_linear": True},
}


def make(support, divergence, **options):
    return dataclasses.replace(SPECS[support], temperature=0.8, **DIVERGENCES[divergence], **options)


def problem_of(num_tokens=40, vocab_size=33):
    problem = make_problem(num_tokens, vocab_size, bias=True, softcap=5.0, scale=1.3, old=False)
    problem.coefficient = problem.coefficient + 0.5
    return problem


def assert_is_the_formulas(problem, spec, backend, **options):
    share = entry_shares(problem, spec)
    expected = (share if spec.pointwise_clip is None else share.clamp(max=spec.pointwise_clip)).sum(-1)
    leaves = problem.leaves()
    exact = torch.autograd.grad(1.7 * (problem.coefficient * expected).sum(), leaves)
    result, gradients = problem.gradients(spec, backend, 6000, **options)
    torch.testing.assert_close(result.divergence_N, expected.detach(), rtol=1e-12, atol=1e-14)
    for gradient, expected_gradient in zip(gradients, exact, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("carries", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("support", SUPPORTS)
@pytest.mark.parametrize("name", DIVERGENCES)
def test_half_of_the_entries_are_clipped(backend, support, name, carries):
    problem, spec = problem_of(), make(support, name)
    spec = dataclasses.replace(spec, pointwise_clip=half_clip(problem, spec))
    assert 0.3 < clipped_frac(problem, spec) < 0.6
    options = {}
    if carries:
        sides = (problem.teacher_hidden, problem.teacher_head)
        options["teacher_log_sum_exp_N"] = token_statistics(*sides, spec.temperature).log_sum_exp_N
    assert_is_the_formulas(problem, spec, backend, **options)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("support", SUPPORTS)
@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("clip", [None, 1e6])
def test_what_is_not_clipped_is_the_divergence(backend, support, name, clip):
    assert_is_the_formulas(problem_of(), make(support, name, pointwise_clip=clip), backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("support", SUPPORTS)
@pytest.mark.parametrize("name", ["Jensen-Shannon", "even mix"])  # the others have entries below 0
def test_nothing_is_learned_where_everything_is_clipped(backend, support, name):
    problem, spec = problem_of(), make(support, name, pointwise_clip=1e-12)
    assert clipped_frac(problem, spec) == 1.0
    result, gradients = problem.gradients(spec, backend)
    num_entries = {"tail": 6, "renormalized": 5, "full": 33}[support]
    torch.testing.assert_close(
        result.divergence_N, torch.full((40,), num_entries * 1e-12, dtype=torch.float64)
    )
    assert all((gradient == 0).all() for gradient in gradients)


def test_a_clip_at_infinity_is_none():
    assert DistillationSpec(pointwise_clip=math.inf) == DistillationSpec()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("support", SUPPORTS)
@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_at_its_ends_the_mix_is_the_kl(backend, support, alpha):
    spec = dataclasses.replace(SPECS[support], alpha=alpha)
    expected, expected_gradients = problem_of().gradients(spec, backend)
    mixed, gradients = problem_of().gradients(dataclasses.replace(spec, is_linear=True), backend)
    pairs = zip((*mixed, *gradients), (*expected, *expected_gradients), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


def test_the_mix_of_two_coins_by_hand():
    student, teacher = (torch.tensor([[p, 1 - p]], dtype=torch.float64).log() for p in (0.5, 0.9))
    expected = 0.3 * reverse_kl(student, teacher) + 0.7 * forward_kl(student, teacher)
    torch.testing.assert_close(divergence(student, teacher, 0.3, is_linear=True), expected)
    reverse = [0.5 * math.log(0.5 / 0.9), 0.5 * math.log(0.5 / 0.1)]
    clipped = divergence(student, teacher, 1.0, pointwise_clip=0.4)
    assert clipped.item() == pytest.approx(reverse[0] + 0.4, rel=1e-12)
    with pytest.raises(ValueError, match=r"alpha is 1\.5"):
        divergence(student, teacher, 1.5, is_linear=True)
