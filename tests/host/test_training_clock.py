"""The clock of training time: evaluation left out, carried over checkpoints, the same stop on every process."""

import json
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerControl, TrainerState

from srpo_trl.host import training_clock
from srpo_trl.host.training_clock import TrainingClock


@pytest.fixture
def now(monkeypatch):
    """A clock face that the test turns: `now.time = 5.0`."""
    face = SimpleNamespace(time=100.0)
    monkeypatch.setattr(training_clock.time, "perf_counter", lambda: face.time)
    return face


ARGS = SimpleNamespace(device=torch.device("cpu"), eval_strategy="steps", world_size=1)


def step(clock: TrainingClock, now, seconds: float, args=ARGS) -> TrainerControl:
    """One optimizer step of so many seconds, and a pause after it."""
    control = TrainerControl()
    clock.on_step_begin(args, None, control)
    now.time += seconds
    clock.on_step_end(args, None, control)
    now.time += 1000.0  # evaluation, saving
    return control


def test_time_between_steps_does_not_count(now):
    clock = TrainingClock()
    for seconds in (2.0, 3.0):
        assert not step(clock, now, seconds).should_training_stop
    assert clock.seconds == 5.0


def test_the_step_that_crosses_the_limit_is_the_last_and_is_evaluated_and_saved(now):
    clock = TrainingClock(limit=5.0)
    before = step(clock, now, 4.9)
    assert not any(
        (before.should_training_stop, before.should_evaluate, before.should_save, before.should_log)
    )
    after = step(clock, now, 0.2)
    assert all((after.should_training_stop, after.should_evaluate, after.should_save, after.should_log))
    without = SimpleNamespace(**vars(ARGS) | {"eval_strategy": "no"})
    assert not step(clock, now, 1.0, without).should_evaluate


def test_every_log_has_the_seconds_so_far(now):
    clock, state = TrainingClock(), TrainerState()
    step(clock, now, 2.5)
    state.log_history.append({"step": 1, "eval_reward": 0.5})
    clock.on_log(ARGS, state, TrainerControl())
    assert state.log_history == [{"step": 1, "eval_reward": 0.5, "training_seconds": 2.5}]


def test_a_resumed_run_goes_on_counting_with_its_own_limit(now, tmp_path):
    clock = TrainingClock(limit=3.0)
    step(clock, now, 4.0)
    TrainerState(stateful_callbacks=[clock]).save_to_json(str(tmp_path / "state.json"))
    assert json.loads((tmp_path / "state.json").read_text())["stateful_callbacks"]["TrainingClock"]
    resumed = TrainingClock(limit=10.0)
    resumed.on_train_begin(ARGS, TrainerState.load_from_json(str(tmp_path / "state.json")), TrainerControl())
    assert not step(resumed, now, 5.0).should_training_stop
    assert resumed.seconds == 9.0
    assert step(resumed, now, 1.0).should_training_stop
    spent, control = TrainingClock(limit=4.0), TrainerControl()
    spent.on_train_begin(ARGS, TrainerState.load_from_json(str(tmp_path / "state.json")), control)
    assert control.should_training_stop  # the trainer asks before the first step
    fresh = TrainingClock()
    fresh.on_train_begin(ARGS, TrainerState(stateful_callbacks=[fresh]), TrainerControl())
    assert fresh.seconds == 0.0


def test_every_process_stops_by_the_first_ones_clock(now, monkeypatch):
    monkeypatch.setattr(training_clock, "broadcast", lambda seconds: torch.full_like(seconds, 7.0))
    alone, one_of_two = TrainingClock(limit=6.0), TrainingClock(limit=6.0)
    assert not step(alone, now, 1.0).should_training_stop
    assert step(one_of_two, now, 1.0, SimpleNamespace(**vars(ARGS) | {"world_size": 2})).should_training_stop
    assert (alone.seconds, one_of_two.seconds) == (1.0, 7.0)
