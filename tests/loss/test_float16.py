"""The operators with float16 inputs and a scaled loss: what float16 cannot hold, and when."""

import dataclasses

import pytest
import torch

from loss_problems import SPECS, make_problem
from srpo_trl.loss.ops import Head, token_statistics

BACKENDS = ("reference", "chunked")


def problem(dtype, coefficient=None):
    """Inputs that float16 holds, in the given dtype."""
    made = make_problem(24, 301, dtype=torch.float16)

    def raised(head):
        return head._replace(weight_VD=head.weight_VD.detach().to(dtype))

    made = dataclasses.replace(
        made,
        hidden=made.hidden.detach().to(dtype),
        head=raised(made.head),
        teacher_hidden=made.teacher_hidden.to(dtype),
        teacher_head=raised(made.teacher_head),
        old_logps=made.old_logps.float(),
        coefficient=made.coefficient.float() if coefficient is None else torch.full((24,), coefficient),
    )
    for leaf in made.leaves():
        leaf.requires_grad_()
    return made


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", SPECS)
def test_scale_is_taken_out_of_float32_gradients_bit_for_bit(backend, mode):
    _, plain = problem(torch.float32).gradients(SPECS[mode], backend, upstream=1.0)
    _, scaled = problem(torch.float32).gradients(SPECS[mode], backend, upstream=2.0**16)
    for ours, expected in zip(scaled, plain, strict=True):
        assert torch.equal(ours / 2.0**16, expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", SPECS)
def test_scale_saves_gradients_that_float16_would_lose(backend, mode):
    """The scale is multiplied in before the one rounding to float16, so nothing is lost on the way."""
    _, expected = problem(torch.float64, 1e-7).gradients(SPECS[mode], "reference", upstream=1.0)
    for scale, is_kept in ((2.0**20, True), (1.0, False)):
        _, gradients = problem(torch.float16, 1e-7).gradients(SPECS[mode], backend, 40_000, upstream=scale)
        for ours, exact in zip(gradients, expected, strict=True):
            assert ours.dtype == torch.float16
            error = (ours.double() / scale - exact).norm() / exact.norm()
            assert error < 2e-3 if is_kept else error > 0.1


@pytest.mark.parametrize("backend", BACKENDS)
def test_scale_that_is_too_large_makes_infinities_for_the_scaler_to_see(backend):
    result, gradients = problem(torch.float16).gradients(SPECS["tail"], backend, upstream=2.0**40)
    assert result.loss.isfinite()
    assert all(gradient.isinf().any() for gradient in gradients)


@pytest.mark.parametrize("backend", BACKENDS)
def test_logits_beyond_float16_are_finite(backend):
    """Hidden states and weight fit; their products, up to 5 times the largest float16, do not."""
    made = problem(torch.float16)
    hidden, weight = (200 * t.detach().sign() for t in (made.hidden, made.head.weight_VD))
    assert (hidden.float() @ weight.float().T).max() > 3 * torch.finfo(torch.float16).max
    actual = token_statistics(hidden, Head(weight), 3e4, backend=backend)
    expected = token_statistics(hidden.double(), Head(weight.double()), 3e4, backend="reference")
    for ours, exact in zip(actual, expected, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-5)
