"""The clock of training, its log and its cost, each without a trainer."""

import json
from types import SimpleNamespace

import pytest
import torch
from transformers import Qwen3Config, TrainerControl, TrainerState

from srpo_trl.config import SRPOConfig
from srpo_trl.host import callbacks
from srpo_trl.host.callbacks import RunLogCallback, TrainingClock, peak_memory, run_facts
from srpo_trl.runs.log import read_run_log


@pytest.fixture
def now(monkeypatch):
    """A clock face that the test turns: `now.time = 5.0`."""
    face = SimpleNamespace(time=100.0)
    monkeypatch.setattr(callbacks.time, "perf_counter", lambda: face.time)
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
    TrainerState(global_step=1, stateful_callbacks=[clock]).save_to_json(str(tmp_path / "state.json"))
    assert json.loads((tmp_path / "state.json").read_text())["stateful_callbacks"]["TrainingClock"]
    resumed = TrainingClock(limit=10.0)
    resumed.on_train_begin(ARGS, TrainerState.load_from_json(str(tmp_path / "state.json")), TrainerControl())
    assert not step(resumed, now, 5.0).should_training_stop
    assert resumed.seconds == 9.0
    assert step(resumed, now, 1.0).should_training_stop
    spent, control = TrainingClock(limit=4.0), TrainerControl()
    spent.on_train_begin(ARGS, TrainerState.load_from_json(str(tmp_path / "state.json")), control)
    assert control.should_training_stop  # the trainer asks before the first step
    resumed.on_train_begin(ARGS, TrainerState(stateful_callbacks=[resumed]), TrainerControl())
    assert resumed.seconds == 0.0  # a second run of one trainer starts anew


def test_a_checkpoint_of_a_run_without_a_clock_can_be_resumed_and_saved(tmp_path):
    TrainerState(global_step=3).save_to_json(str(tmp_path / "state.json"))
    clock, state = TrainingClock(), TrainerState.load_from_json(str(tmp_path / "state.json"))
    clock.on_train_begin(ARGS, state, TrainerControl())
    assert clock.seconds == 0.0
    assert state.stateful_callbacks["TrainingClock"]  # which transformers replaces when it saves


def test_every_process_stops_by_the_first_ones_clock(now, monkeypatch):
    monkeypatch.setattr(callbacks, "broadcast", lambda seconds: torch.full_like(seconds, 7.0))
    alone, one_of_two = TrainingClock(limit=6.0), TrainingClock(limit=6.0)
    assert not step(alone, now, 1.0).should_training_stop
    assert step(one_of_two, now, 1.0, SimpleNamespace(**vars(ARGS) | {"world_size": 2})).should_training_stop
    assert (alone.seconds, one_of_two.seconds) == (1.0, 7.0)


def test_a_clock_without_a_limit_asks_no_other_process(now, monkeypatch):
    monkeypatch.delattr(callbacks, "broadcast")
    clock = TrainingClock()
    step(clock, now, 2.0, SimpleNamespace(**vars(ARGS) | {"world_size": 2}))
    assert clock.seconds == 2.0


# ---------------------------------------------------------------- the log


def log_part(path, clock, state: TrainerState, *steps: int) -> None:
    """One part of a run, evaluated before it begins; a step takes a second by the clock."""
    callback = RunLogCallback(path, {"model": "tiny"}, clock)
    callback.on_log(ARGS, state, TrainerControl(), logs={"eval_reward": 0.1})
    callback.on_train_begin(ARGS, state, TrainerControl())
    for state.global_step in steps:
        clock.seconds += 1.0
        callback.on_log(ARGS, state, TrainerControl(), logs={"loss": 0.5})


def test_log_has_facts_and_the_seconds_of_each_log(tmp_path):
    log_part(
        tmp_path / "log.jsonl", TrainingClock(), TrainerState(is_world_process_zero=True, max_steps=9), 1, 2
    )
    contents = read_run_log(tmp_path / "log.jsonl")
    assert contents.begins == [{"step": 0, "max_steps": 9, "model": "tiny"}]
    assert contents.records == [
        {"step": step, "logs": {"loss": 0.5, "training_seconds": float(step)}} for step in (1, 2)
    ]


def test_log_of_a_resumed_run_stands_once_and_has_what_came_before(tmp_path):
    path, clock = tmp_path / "log.jsonl", TrainingClock()
    log_part(path, clock, TrainerState(is_world_process_zero=True), 1, 2, 3)
    history = [{"step": step, "loss": 0.5} for step in (1, 2)]
    for place in (path, tmp_path / "elsewhere.jsonl"):
        state = TrainerState(global_step=2, log_history=list(history), is_world_process_zero=True)
        log_part(place, clock, state, 3, 4)
        assert [record["step"] for record in read_run_log(place).records] == [1, 2, 3, 4]


def test_only_the_main_process_writes(tmp_path):
    log_part(tmp_path / "log.jsonl", TrainingClock(), TrainerState(is_world_process_zero=False), 1)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- memory


def test_peak_memory_is_this_processs(monkeypatch):
    name = callbacks.PEAK_MEMORY
    before = peak_memory(torch.device("cpu"))[name]
    assert 0.05 < before < 100
    block = torch.ones(250_000_000 // 4)  # 0.25 GB
    assert before <= peak_memory(torch.device("cpu"))[name] <= before + 0.5
    del block
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3_000_000_000)
    monkeypatch.setattr(callbacks, "gather", lambda values: torch.cat([values.cpu(), torch.tensor([4.0])]))
    monkeypatch.setattr(torch, "tensor", lambda values, device=None, tensor=torch.tensor: tensor(values))
    assert peak_memory(torch.device("cuda")) == {name: 4.0}  # the largest over processes


def test_without_a_means_to_know_the_memory_it_is_not_logged(monkeypatch):
    monkeypatch.setattr(callbacks.sys, "platform", "win32")
    assert peak_memory(torch.device("cpu")) == {}


@pytest.mark.parametrize(
    "path", ["Qwen/Qwen3-0.6B", "/home/ann/models/Qwen3-0.6B/", "C:\\Users\\Ann\\models\\Qwen3-0.6B"]
)
def test_a_run_says_its_models_name_without_the_folder(tmp_path, path):
    facts = run_facts(
        SRPOConfig(str(tmp_path), use_cpu=True, bf16=False),
        Qwen3Config(name_or_path=path),
        torch.device("cpu"),
        1,
    )
    assert facts["model"] == "Qwen3-0.6B"
