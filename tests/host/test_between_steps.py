"""Checkpoints and stops come at the end of an optimizer step, whenever they are asked for."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback
from transformers.trainer_jit_checkpoint import CheckpointManager

from harness import flat_parameters, make_trainer
from resumed_runs import RUN, half, states
from srpo_trl.host.manifest import checkpoints_in, flaw_of

OPTIONS = RUN | {
    "reward_funcs": half,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "steps_per_generation": 4,
    "save_strategy": "no",
    "max_steps": 5,
}


class At(TrainerCallback):
    """Does something at the n-th call of an event."""

    def __init__(self, event, number, do):
        self.calls = 0

        def called(args, state, control, **kwargs):
            self.calls += 1
            if self.calls == number:
                do(control)

        setattr(self, event, called)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nothing happens to."""
    trainer = make_trainer(tmp_path_factory.mktemp("whole"), **OPTIONS)
    trainer.train()
    return trainer


def steps_saved(folder):
    return [step for step, _ in checkpoints_in(Path(folder))]


def assert_resumes_to(whole, folder, step):
    checkpoint = folder / f"checkpoint-{step}"
    assert flaw_of(checkpoint) == ""
    resumed = make_trainer(folder, **OPTIONS)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert resumed._step == whole._step
    for ours, theirs in zip(states(resumed), states(whole), strict=True):
        assert torch.equal(ours, theirs)


# The moment, and the step at whose end the checkpoint comes. A rollout batch lasts two steps of two micro-batches.
MOMENTS = {
    "in a step's first micro-batch": ("on_substep_end", 2, 2),
    "in the second step of a rollout batch": ("on_substep_end", 4, 4),
    "before the optimizer": ("on_pre_optimizer_step", 2, 2),
    "after the optimizer": ("on_optimizer_step", 3, 3),
    "when a step begins": ("on_step_begin", 3, 3),
    "at a step's end, before the teacher moves": ("on_step_end", 2, 2),
    "at an epoch's end": ("on_epoch_end", 1, 1),
}


@pytest.mark.parametrize(("event", "number", "step"), MOMENTS.values(), ids=MOMENTS)
def test_a_save_inside_a_step_comes_at_its_end(tmp_path, whole, event, number, step):
    trainer = None

    def save(control):
        trainer._save_checkpoint(trainer.model, None)
        if event != "on_epoch_end":
            assert steps_saved(tmp_path) == []

    trainer = make_trainer(tmp_path, callbacks=[At(event, number, save)], **OPTIONS)
    trainer.train()
    (saved,) = steps_saved(tmp_path)
    assert saved == step or event == "on_epoch_end"
    assert torch.equal(flat_parameters(trainer.model), flat_parameters(whole.model))
    assert_resumes_to(whole, tmp_path, saved)


def test_a_save_asked_for_by_its_flag_inside_a_step_comes_at_its_end(tmp_path, whole):
    ask = At("on_substep_end", 3, lambda control: setattr(control, "should_save", True))
    make_trainer(tmp_path, callbacks=[ask], **OPTIONS).train()
    assert steps_saved(tmp_path) == [3]
    assert_resumes_to(whole, tmp_path, 3)


def test_a_save_that_is_put_off_to_one_that_comes_anyway_is_written_once(tmp_path):
    saves, trainer = [], None
    ask = At("on_substep_end", 1, lambda control: trainer._save_checkpoint(trainer.model, None))
    trainer = make_trainer(tmp_path, callbacks=[ask], **OPTIONS | {"save_strategy": "steps", "max_steps": 2})
    stage = trainer.checkpoints.staging
    trainer.checkpoints.staging = lambda state: saves.append(state.global_step) or stage(state)
    trainer.train()
    assert saves == [1, 2]


@pytest.mark.parametrize("event", ["on_substep_end", "on_pre_optimizer_step"])
@pytest.mark.parametrize("flag", ["should_training_stop", "should_epoch_stop"])
def test_a_stop_inside_a_step_comes_at_its_end(tmp_path, whole, event, flag):
    def stop(control):
        setattr(control, flag, True)
        control.should_save = True

    trainer = make_trainer(tmp_path, callbacks=[At(event, 2, stop)], **OPTIONS)
    trainer.train()
    assert 2 in steps_saved(tmp_path)
    assert trainer._step == 2 * trainer.state.global_step
    if flag == "should_training_stop":
        assert trainer.state.global_step == 2
        assert_resumes_to(whole, tmp_path, 2)


def test_no_checkpoint_of_a_run_that_broke_off_inside_a_step(tmp_path):
    def break_off(control):
        raise KeyboardInterrupt

    trainer = make_trainer(tmp_path, callbacks=[At("on_substep_end", 2, break_off)], **OPTIONS)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    with pytest.raises(RuntimeError, match="ended inside the optimizer step after step 1"):
        trainer._save_checkpoint(trainer.model, None)
    trainer.save_model(str(tmp_path / "model"))
    assert steps_saved(tmp_path) == []


# ------------------------------------------------------------------ preemption


@pytest.fixture
def at_once(monkeypatch):
    """The signal asks for a checkpoint after no seconds, not after three; the process gets its handler back."""
    handler, original = signal.getsignal(signal.SIGTERM), CheckpointManager.__init__
    monkeypatch.setattr(
        CheckpointManager, "__init__", lambda self, trainer: original(self, trainer, kill_wait=0)
    )
    yield
    signal.signal(signal.SIGTERM, handler)


def terminate(control):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.5)


PREEMPTED = {
    "first micro-batch": ("on_substep_end", 2, 2),
    "before the optimizer": ("on_pre_optimizer_step", 3, 3),
    "a step begins": ("on_step_begin", 2, 2),
    "a step ends": ("on_step_end", 2, 2),
    "a log": ("on_log", 2, 2),
}


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("save_strategy", ["no", "steps"])
@pytest.mark.parametrize(("event", "number", "step"), PREEMPTED.values(), ids=PREEMPTED)
def test_a_preempted_run_goes_on_to_the_same_weights(tmp_path, whole, event, number, step, save_strategy):
    before = signal.getsignal(signal.SIGTERM)
    options = OPTIONS | {"save_strategy": save_strategy, "save_steps": 100}
    trainer = make_trainer(
        tmp_path, callbacks=[At(event, number, terminate)], enable_jit_checkpoint=True, **options
    )
    trainer.train()
    assert trainer.state.global_step == step
    assert steps_saved(tmp_path) == [step]
    assert not list(tmp_path.rglob("*incomplete*"))
    assert signal.getsignal(signal.SIGTERM) == before
    assert_resumes_to(whole, tmp_path, step)
