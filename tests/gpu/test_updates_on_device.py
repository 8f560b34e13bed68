"""One update on given rollouts, taken in several ways that must not change it."""

import pytest
import torch

from harness import LORA, logged, make_trainer, relative_error, tiny_model, update


def made(tmp_path, name, device, **options):
    return make_trainer(tmp_path / name, use_cpu=device == "cpu", **options)


@pytest.fixture
def plain(tmp_path, device):
    """The update in float32 without any of it."""
    trainer = made(tmp_path, "plain", device)
    found = update(trainer)
    assert trainer.model.device.type == device
    return found.cpu()


def test_gpu_makes_the_update_of_the_cpu(tmp_path, gpu):
    """Kernels, generation of logits, teacher and routing: all of them, against the CPU's."""
    expected = update(made(tmp_path, "cpu", "cpu"))
    assert relative_error(update(made(tmp_path, "gpu", gpu)).cpu(), expected) < 1e-4


@pytest.mark.parametrize("peft_config", [None, LORA], ids=["full", "lora"])
def test_gradient_checkpointing_changes_no_update(tmp_path, device, peft_config):
    options = {"peft_config": peft_config}
    plain = update(made(tmp_path, "plain", device, **options))
    found = update(made(tmp_path, "checkpointed", device, gradient_checkpointing=True, **options))
    assert relative_error(found, plain) < 1e-5


@pytest.mark.parametrize("micro_batch", [2, 4])
def test_micro_batches_change_no_update(tmp_path, device, plain, micro_batch):
    accumulation = {
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": 16 // micro_batch,
    }
    assert relative_error(update(made(tmp_path, "split", device, **accumulation)).cpu(), plain) < 1e-4


def test_bfloat16_autocast_is_near_float32(tmp_path, device, plain):
    assert relative_error(update(made(tmp_path, "bf16", device, bf16=True)).cpu(), plain) < 0.1


def test_float16_with_a_scaler_is_near_float32(tmp_path, gpu):
    """Steps that overflow are skipped and lower the scale; the others are float32's within float16's rounding."""
    plain = update(made(tmp_path, "plain", gpu))
    trainer = made(tmp_path, "fp16", gpu, fp16=True)
    trainer.accelerator.scaler._init_scale = 2.0**10  # so that the one step does not overflow
    assert relative_error(update(trainer), plain) < 0.05
    assert logged(trainer, "srpo/nonfinite_steps")[-1] == 0


def test_step_that_overflows_float16_is_skipped_and_the_scale_halved(tmp_path, gpu):
    trainer = made(tmp_path, "fp16", gpu, fp16=True)
    trainer.accelerator.scaler._init_scale = 2.0**60
    assert float(update(trainer).norm()) == 0
    assert trainer.accelerator.scaler.get_scale() == 2.0**59


def test_a_teacher_of_bfloat16_weights_moves(tmp_path, device):
    """Its average is kept in float32: rounded to bfloat16 it is still where it was."""
    options = {"teacher_update_rate": 1e-3, "learning_rate": 0.1}
    trainer = made(tmp_path, "bf16", device, model=tiny_model(dtype=torch.bfloat16), **options)
    weights = trainer.teacher.weights
    start = {name: value.clone() for name, value in weights.state_dict().items()}
    assert float(update(trainer).norm()) > 0
    held = {name: value.to(start[name].device) for name, value in weights.state_dict().items()}
    assert {value.dtype for value in held.values()} == {torch.float32}
    assert any(not torch.equal(value, start[name]) for name, value in held.items())
    rounded = [torch.equal(value.bfloat16(), start[name].bfloat16()) for name, value in held.items()]
    assert sum(rounded) > len(rounded) / 2
