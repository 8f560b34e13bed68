"""What goes wrong on one of two processes is dealt with alike on both, and none waits for the other."""

import pytest
import torch

from engine_launch import launch
from engine_options import ENGINES
from harness import relative_error


@pytest.fixture(scope="module")
def ddp(tmp_path_factory):
    return launch("ddp", tmp_path_factory.mktemp("ddp"), "nonfinite", "hanging")


def assert_all_skip_and_all_stop(engine, ranks):
    """What a run does without the step is what it does with the step skipped: weights, moments and teacher."""
    first, second = (rank["nonfinite"] for rank in ranks)
    for found in (first, second):
        assert found["engine"] == ENGINES[engine][0]
        for clean, skipping, stopped in (found["student"], found["teacher"]):
            assert relative_error(skipping, clean) < 1e-6
            assert relative_error(stopped, clean) > 1e-5
            assert torch.isfinite(stopped).all()
        assert found["num_updates"] == [2, 2, 1]
        assert found["steps"] == [2, 3, 2]
        assert found["counted"] == [0.0, 1.0, 0.0]
        assert found["report"].startswith("Optimizer step 3: ")
        assert found["files"] == [f"step-{step}-rank-{rank}.pt" for step in (2, 3) for rank in (0, 1)]
    assert "- loss on processes 1, which report their own" in first["report"]
    assert "- loss: in micro-batches 0, 1, 2 of 3" in second["report"]


def test_a_loss_that_is_not_finite_on_one_process_makes_both_skip_and_both_stop(ddp):
    assert_all_skip_and_all_stop("ddp", ddp)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["fsdp2", "zero2", "zero3"])
def test_sharded_engines_skip_and_stop_on_all_processes(tmp_path, engine):
    """DeepSpeed steps inside backward and drops the step itself; the trainer counts, saves and stops."""
    assert_all_skip_and_all_stop(engine, launch(engine, tmp_path, "nonfinite"))


def test_a_reward_function_that_hangs_on_one_process_holds_up_neither(ddp):
    first, second = (rank["hanging"] for rank in ddp)
    assert torch.equal(first["student"], second["student"])
    for found in (first, second):
        assert 2 <= found["seconds"] < 50
        assert found["skipped"] == pytest.approx([6 / 12, 1 / 12])
        assert found["timed_out"] == [0.5, 0.0]
