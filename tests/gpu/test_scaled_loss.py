"""The distillation loss in float16 with torch's own gradient scaler, which both devices have."""

import pytest
import torch

from srpo_trl.loss.ops import DistillationSpec, Head, distillation_loss

SIZES = (24, 16, 301)


def problem(device, dtype):
    num_tokens, hidden_size, vocab_size = SIZES
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator).half().to(device, dtype)

    hidden, weight = normal(num_tokens, hidden_size), normal(vocab_size, hidden_size)
    teacher = hidden + 0.1 * normal(num_tokens, hidden_size)
    ids = torch.randint(vocab_size, (num_tokens,), generator=generator).to(device)
    return hidden.requires_grad_(), weight.requires_grad_(), teacher, ids


def loss_of(hidden, weight, teacher, ids, coefficient):
    coefficients = torch.full((SIZES[0],), coefficient, device=hidden.device)
    spec = DistillationSpec(topk=20)
    return distillation_loss(
        hidden, Head(weight), teacher, Head(weight.detach()), ids, coefficients, spec=spec
    ).loss


@pytest.mark.parametrize("scale", [2.0**4, 2.0**10])
def test_scaled_gradients_are_float32s(device, scale):
    narrow, wide = problem(device, torch.float16), problem(device, torch.float32)
    scaler = torch.amp.GradScaler(device, init_scale=scale)
    scaler.scale(loss_of(*narrow, 1 / SIZES[0])).backward()
    loss_of(*wide, 1 / SIZES[0]).backward()
    for ours, exact in zip(narrow[:2], wide[:2], strict=True):
        assert ours.grad.dtype == torch.float16
        assert (ours.grad.float() / scale - exact.grad).norm() <= 0.01 * exact.grad.norm()


def test_without_a_scale_small_gradients_are_lost(device):
    """What the scaler is for; a loss that hid it would be scaled in secret."""
    (hidden, weight, *rest), wide = problem(device, torch.float16), problem(device, torch.float32)
    loss_of(hidden, weight, *rest, 1e-7).backward()
    loss_of(*wide, 1e-7).backward()
    assert (hidden.grad.float() - wide[0].grad).norm() > 0.1 * wide[0].grad.norm()


def test_overflow_skips_the_step_and_halves_the_scale(device):
    """The optimizer's parameters are float32, as torch's scaler wants; the loss sees them in float16."""
    hidden, weight, teacher, ids = problem(device, torch.float32)
    optimizer = torch.optim.SGD([hidden, weight], lr=1.0)
    scaler = torch.amp.GradScaler(device, init_scale=2.0**60)
    before = hidden.detach().clone()
    scaler.scale(loss_of(hidden.half(), weight.half(), teacher.half(), ids, 1.0)).backward()
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(hidden, before)
    assert scaler.get_scale() == 2.0**59
