"""A resumed run ends as one that never stopped, bit for bit: in float32, under bfloat16 autocast, with a scaler."""

import pytest
import torch

from harness import make_trainer
from resumed_runs import RUN, SPLITS, half, states

ONE_STEP = RUN | SPLITS["one step a batch"] | {"reward_funcs": half}


def assert_resumed_is_whole(tmp_path, device, **options):
    options = ONE_STEP | {"use_cpu": device == "cpu"} | options
    whole = make_trainer(tmp_path / "whole", **options)
    whole.train()
    make_trainer(tmp_path / "parts", **options).train()
    second = make_trainer(tmp_path / "parts", **options)
    second.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-2"))
    assert second.model.device.type == device
    assert second.state.global_step == 4
    for resumed, uninterrupted in zip(states(second), states(whole), strict=True):
        assert torch.equal(resumed, uninterrupted)
    assert second.teacher.weights.num_updates == whole.teacher.weights.num_updates > 0
    return whole, second


@pytest.mark.parametrize("options", [{}, {"bf16": True}], ids=["float32", "bf16"])
def test_resumed_run_equals_uninterrupted_run(tmp_path, device, options):
    assert_resumed_is_whole(tmp_path, device, **options)


def test_resumed_run_with_a_scaler_equals_uninterrupted_run(tmp_path, gpu):
    whole, second = assert_resumed_is_whole(tmp_path, gpu, fp16=True)
    scales = [trainer.accelerator.scaler.get_scale() for trainer in (whole, second)]
    assert scales[0] == scales[1]
