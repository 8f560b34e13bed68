"""The Hellinger distance of two sides: against its formula in float64, near 0, in bounded memory."""

import dataclasses
import math

import numpy as np
import pytest
import torch

import oracle
from loss_problems import HIDDEN_SIZE, CountLiveBytes, make_problem
from srpo_trl.loss.ops import DistillationSpec, Head, hellinger
from srpo_trl.loss.ops.plan import plan_distillation

BACKENDS = ("reference", "chunked")


def sides_of(problem):
    return problem.hidden, problem.head, problem.teacher_hidden, problem.teacher_head


def formula(problem, temperature):
    """sqrt(1 - sum_v sqrt(p_v q_v)) by NumPy."""
    roots = []
    for hidden, head in ((problem.hidden, problem.head), (problem.teacher_hidden, problem.teacher_head)):
        arrays = (t.detach().double().numpy() for t in (hidden, *head[:2]))
        logits = oracle.head_logits(*arrays, head.logit_scale, head.softcap, temperature)
        roots.append(np.exp(0.5 * oracle.log_softmax(logits)))
    return np.sqrt(1 - (roots[0] * roots[1]).sum(-1))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("num_tokens", [0, 1, 37])
@pytest.mark.parametrize(("softcap", "temperature"), [(None, 1.0), (4.0, 0.6)])
@pytest.mark.parametrize("chunk_bytes", [1, 20_000, None])
def test_distance_is_the_formulas(backend, num_tokens, softcap, temperature, chunk_bytes):
    problem = make_problem(num_tokens, 101, bias=True, softcap=softcap, scale=0.7)
    distance_N = hellinger(*sides_of(problem), temperature, backend=backend, chunk_bytes=chunk_bytes)
    assert not distance_N.requires_grad
    expected = formula(problem, temperature)
    assert distance_N.shape == (num_tokens,)
    assert num_tokens == 0 or 0.05 < expected.mean() < 0.9
    np.testing.assert_allclose(distance_N.numpy(), expected, rtol=1e-11)


@pytest.mark.parametrize("backend", BACKENDS)
def test_distance_of_coins_of_equal_and_of_disjoint_sides_by_hand(backend):
    first = torch.tensor([[0.5, 0.5], [0.3, 0.7], [1.0, 1e-300]], dtype=torch.float64).log()
    second = torch.tensor([[0.9, 0.1], [0.3, 0.7], [1e-300, 1.0]], dtype=torch.float64).log()
    head = Head(torch.eye(2, dtype=torch.float64))
    distance_N = hellinger(first, head, second, head, 1.0, backend=backend)
    expected = [math.sqrt(1 - math.sqrt(0.45) - math.sqrt(0.05)), 0.0, 1.0]
    np.testing.assert_allclose(distance_N.numpy(), expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("noise", [0.0, 1e-6, 1e-4, 1e-2])
def test_near_0_the_distance_is_float64s(backend, noise):
    """In float32 one minus a sum would be off by up to 3e-4."""
    problem = make_problem(50, 1001, bias=True, dtype=torch.float32)
    moved = problem.hidden.detach() + noise * torch.randn(
        50, HIDDEN_SIZE, generator=torch.Generator().manual_seed(1)
    )
    near = dataclasses.replace(problem, teacher_hidden=moved, teacher_head=problem.head)
    distance_N = hellinger(*sides_of(near), 1.0, backend=backend)
    assert distance_N.dtype == torch.float32
    wide = problem.head._replace(
        weight_VD=problem.head.weight_VD.double(), bias_V=problem.head.bias_V.double()
    )
    exact_N = hellinger(near.hidden.double(), wide, moved.double(), wide, 1.0, backend="reference")
    assert (exact_N > 0).all() == (noise > 0)
    torch.testing.assert_close(distance_N.double(), exact_N, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunk_bytes", [1, 30_000, 300_000])
def test_memory_is_bounded(dtype, chunk_bytes):
    sides = sides_of(make_problem(130, 1001, bias=True, dtype=dtype))
    plan = plan_distillation(*sides, torch.float32, DistillationSpec(topk=None), chunk_bytes)
    with CountLiveBytes() as counter:
        hellinger(*sides, 0.9, chunk_bytes=chunk_bytes)
    assert plan.temporary_bytes <= max(chunk_bytes, 8 * 1001 * 4)
    assert counter.peak <= plan.temporary_bytes + 4 * 130


def test_the_sides_may_have_other_widths():
    problem = make_problem(7, 33)
    wider = Head(torch.cat([problem.teacher_head.weight_VD, torch.ones(33, 2, dtype=torch.float64)], 1))
    hidden = torch.cat([problem.teacher_hidden, torch.zeros(7, 2, dtype=torch.float64)], 1)
    expected = hellinger(*sides_of(problem), 1.0)
    torch.testing.assert_close(
        hellinger(problem.hidden, problem.head, hidden, wider, 1.0), expected, rtol=1e-12, atol=0
    )


def test_what_does_not_fit_is_refused():
    problem = make_problem(7, 33)
    hidden, head, other_hidden, other_head = sides_of(problem)
    for sides, temperature, options, message in (
        ((hidden, head, other_hidden[:6], other_head), 1.0, {}, "both must hold the same tokens"),
        ((hidden, head, other_hidden, Head(other_head.weight_VD[:32])), 1.0, {}, "vocabulary has 33 tokens"),
        ((hidden, head, other_hidden[:, :5], other_head), 1.0, {}, "the second side's hidden states"),
        (sides_of(problem), 0.0, {}, "temperature is 0"),
        (sides_of(problem), 1.0, {"backend": "triton"}, "Use 'auto'"),
    ):
        with pytest.raises(ValueError, match=message):
            hellinger(*sides, temperature, **options)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_infinite_logit_is_refused_or_nan(backend):
    problem = make_problem(3, 33, bias=True)
    problem.head.bias_V.data[4] = torch.inf
    with pytest.raises(ValueError, match="the first or second side's logits hold an infinite value"):
        hellinger(*sides_of(problem), 1.0, backend=backend)
    assert hellinger(*sides_of(problem), 1.0, backend=backend, refuse_nonfinite=False).isnan().all()
