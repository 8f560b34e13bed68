"""Training under float16 autocast with a gradient scaler.

Accelerate has a scaler on GPUs alone, and trains in float32 on a CPU; torch has both parts on a CPU as well.
"""

import pytest
import torch

from harness import LORA, logged, make_trainer, relative_error, tiny_model, update
from resumed_runs import RUN, SPLITS, half, states

SCALE = 2.0**12


def with_scaler(trainer, scale=SCALE, **options):
    """The trainer as on a GPU: float16 autocast, and a scaler that begins with the given scale."""
    accelerator = trainer.accelerator
    assert accelerator.mixed_precision == "fp16"
    accelerator.native_amp = True
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale, **options)
    return trainer


def float16(folder, scale=SCALE, **options):
    return with_scaler(make_trainer(folder, fp16=True, **options), scale)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The update in float32."""
    return update(make_trainer(tmp_path_factory.mktemp("plain")))


def test_float16_update_is_float32s_within_its_rounding(tmp_path, plain):
    products = set()
    trainer = float16(tmp_path)
    layer = trainer.model.model.layers[0].mlp.down_proj
    layer.register_forward_hook(lambda module, args, output: products.add(output.dtype))
    assert relative_error(update(trainer), plain) < 0.02
    assert torch.float16 in products
    assert trainer.accelerator.scaler.get_scale() == SCALE
    assert set(logged(trainer, "srpo/nonfinite_steps")) == {0}


@pytest.mark.parametrize("scale", [1.0, 2.0**16])
def test_scale_changes_no_update(tmp_path, plain, scale):
    """Gradients are unscaled before they are measured and clipped."""
    trainer = float16(tmp_path, scale, max_grad_norm=1e9)
    assert relative_error(update(trainer), plain) < 0.02
    expected = plain.norm()  # plain gradient descent at rate 1
    assert logged(trainer, "grad_norm")[0] == pytest.approx(float(expected), rel=0.02)


def test_step_that_overflows_is_skipped_and_the_teacher_waits(tmp_path):
    trainer = float16(tmp_path, 2.0**100)
    before = [state.clone() for state in states(trainer)]
    trainer.train()
    assert all(map(torch.equal, states(trainer), before))
    assert trainer.teacher.weights.num_updates == 0
    assert trainer.accelerator.scaler.get_scale() == 2.0**99
    assert set(logged(trainer, "srpo/nonfinite_steps")) == {0}  # how a scaler finds its scale


def test_run_goes_on_once_the_scale_has_fallen(tmp_path):
    """The first steps overflow; the teacher counts the others alone."""
    trainer = float16(tmp_path, 2.0**100, max_steps=4, max_nonfinite_steps=2)
    trainer.accelerator.scaler.set_backoff_factor(2.0**-45)
    before = states(trainer)[0].clone()
    trainer.train()
    assert trainer.state.global_step == 4
    assert trainer.accelerator.scaler.get_scale() == 2.0**10
    assert trainer.teacher.weights.num_updates == 2
    assert not torch.equal(states(trainer)[0], before)


def test_model_that_overflows_at_any_scale_ends_the_run(tmp_path):
    """Of infinite weights no scale makes a finite gradient."""
    model = tiny_model()
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[0, 0] = 1e30
    trainer = float16(tmp_path, model=model, max_steps=4, max_nonfinite_steps=2)
    with pytest.raises(RuntimeError, match="for the second time in a row"):
        trainer.train()


@pytest.mark.parametrize("peft_config", [None, LORA], ids=["full", "lora"])
def test_teacher_averages_float32_weights(tmp_path, peft_config):
    """At rate 1e-3 an average in float16 would stay where it is."""
    trainer = float16(tmp_path, peft_config=peft_config, teacher_update_rate=1e-3, learning_rate=0.1)
    weights = trainer.teacher.weights
    start = {name: value.clone() for name, value in weights.state_dict().items()}
    student = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert len(start) == len(student) > 0
    trainer.train()
    moved = 0
    for name, value in weights.state_dict().items():
        assert value.dtype == torch.float32
        after = trainer.model.get_parameter(name).detach()
        torch.testing.assert_close(value, start[name].lerp(after, 1e-3))
        moved += not torch.equal(value, start[name])
    assert (
        moved >= len(start) / 2
    )  # of an adapter's two matrices one begins at zero, and the other waits for it


@pytest.mark.parametrize("split", ["one step a batch", "inside a rollout batch"])
def test_resumed_run_equals_uninterrupted_run(tmp_path, split):
    """Bit for bit, the scale and its count of steps without overflow included."""

    def made(name):
        options = RUN | SPLITS[split] | {"reward_funcs": half}
        return with_scaler(make_trainer(tmp_path / name, fp16=True, **options), growth_interval=3)

    whole = made("whole")
    whole.train()
    made("parts").train()
    second = made("parts")
    second.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-2"))
    assert second.state.global_step == 4
    for resumed, uninterrupted in zip(states(second), states(whole), strict=True):
        assert torch.equal(resumed, uninterrupted)
    scales = [trainer.accelerator.scaler.state_dict() for trainer in (whole, second)]
    assert scales[0] == scales[1]
    assert scales[0]["scale"] == 2 * SCALE  # after three steps: the count of them was resumed
