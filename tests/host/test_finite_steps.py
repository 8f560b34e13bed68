"""Steps whose loss or gradient is not finite: what is decided, said and saved; no trainer."""

import math

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType

from srpo_trl.host.finite_steps import FiniteSteps, NonFiniteStepsError

ADVICE = {"teacher_entropy": "look at the teacher"}


def micro_batch(entropy=0.5):
    return {
        "completion_ids": torch.ones(2, 3, dtype=torch.int64),
        "teacher_entropy": torch.tensor([[0.1] * 3, [0.2, entropy, 0.3]]),
        "hidden": torch.zeros(2, 3, 4),
    }


@pytest.fixture
def accelerator():
    return Accelerator(cpu=True)


def made(accelerator, tmp_path, max_in_a_row=3):
    accelerator.sync_gradients = True
    return FiniteSteps(max_in_a_row, tmp_path / "nonfinite", accelerator, ADVICE)


def test_a_finite_loss_is_left_bit_for_bit(accelerator, tmp_path):
    loss = torch.tensor(0.1234567, requires_grad=True)
    guarded = made(accelerator, tmp_path).guard(loss, micro_batch(), {})
    guarded.backward()
    assert torch.equal(guarded.detach(), loss.detach())
    assert loss.grad == 1.0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_reaches_the_gradient(accelerator, tmp_path, value):
    """An infinite loss can have a finite gradient, and other processes see gradients alone."""
    weight = torch.tensor(2.0, requires_grad=True)
    made(accelerator, tmp_path).guard(weight + value, micro_batch(), {}).backward()
    assert weight.grad is not None
    assert weight.grad.isnan()


def test_a_finite_step_is_taken(accelerator, tmp_path):
    steps = made(accelerator, tmp_path)
    steps.guard(torch.tensor(1.0), micro_batch(), {})
    steps.decide(torch.tensor(0.7), step=1)
    assert not steps.was_skipped
    assert not steps.is_nonfinite
    assert accelerator.sync_gradients
    assert not (tmp_path / "nonfinite").exists()


@pytest.mark.parametrize(
    "grad_norm", [torch.tensor(math.nan), math.inf, -1.0], ids=["nan", "inf", "DeepSpeed"]
)
def test_a_step_that_is_not_finite_is_skipped_saved_and_told(accelerator, tmp_path, caplog, grad_norm):
    steps = made(accelerator, tmp_path)
    parts = {"policy": torch.tensor(0.1), "distilled": torch.tensor(math.nan)}
    steps.guard(torch.tensor(math.nan), micro_batch(math.inf), parts)
    steps.decide(grad_norm, step=7)
    assert steps.was_skipped
    assert steps.is_nonfinite
    assert not accelerator.sync_gradients  # which accelerate's optimizer reads: it does nothing
    saved = torch.load(tmp_path / "nonfinite" / "step-7-rank-0.pt", weights_only=True)
    assert saved["step"] == 7
    assert sorted(saved["micro_batches"][0]) == [
        "completion_ids",
        "teacher_entropy",
    ]  # of two dimensions at most
    text = caplog.text
    for said in (
        "Optimizer step 7",
        "- loss: in micro-batches 0 of 1",
        "- distilled loss: in micro-batches 0 of 1",
        "- teacher_entropy: in rows 1 of micro-batch 0",
        "What to try: look at the teacher",
    ):
        assert said in text
    assert "policy loss" not in text


def test_float16_without_a_scaler_scales_no_loss(accelerator, tmp_path, monkeypatch):
    """On a CPU accelerate trains in float32 then: no scale can have made the infinity. DeepSpeed scales by itself."""
    monkeypatch.setattr(Accelerator, "mixed_precision", "fp16")
    steps = made(accelerator, tmp_path)
    steps.decide(math.inf, step=1)
    assert steps.is_nonfinite
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.DEEPSPEED)
    steps.decide(math.inf, step=2)
    assert not steps.is_nonfinite


def test_without_a_value_to_blame_the_advice_is_general(accelerator, tmp_path, caplog):
    made(accelerator, tmp_path).decide(math.nan, step=1)
    assert "every loss is finite; the gradient is not" in caplog.text
    assert "What to try: a lower learning_rate" in caplog.text


def test_gradients_are_looked_at_from_the_second_such_step_on(accelerator, tmp_path, caplog):
    steps = made(accelerator, tmp_path)
    model = torch.nn.Linear(2, 2)
    model(torch.full((1, 2), math.inf)).sum().backward()
    steps.inspect(model)
    steps.decide(math.nan, step=1)
    assert "parameters" not in caplog.text
    accelerator.sync_gradients = True
    steps.inspect(model)
    steps.decide(math.nan, step=2)
    assert "gradient: from weight back, 1 of 2 parameters" in caplog.text


def test_several_in_a_row_end_the_run_and_a_finite_one_between_does_not_count(accelerator, tmp_path):
    steps = made(accelerator, tmp_path, max_in_a_row=2)
    for step, norm in enumerate([math.nan, 1.0, math.nan], start=1):
        steps.decide(norm, step)
    with pytest.raises(NonFiniteStepsError, match=r"Optimizer step 4: .* for the second time in a row"):
        steps.decide(math.nan, 4)
