"""The parts that SRPO adds to a checkpoint, each by itself."""

import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType

from srpo_trl.host.checkpoint_parts import (
    ROLLOUTS_FILE,
    STATE_FILE,
    BufferedRollouts,
    Counters,
    OwnFile,
    StateFile,
    engine_of,
)
from srpo_trl.rollout.batch_counter import BatchOptions, RolloutBatchCounter

OPTIONS = BatchOptions("srpo", 8, 1, 3, 1, 4, 1, 24)  # three micro-batches a rollout batch
CPU = torch.device("cpu")


class Run:
    """What the parts of a run refer to, after some micro-batches."""

    def __init__(self, step=0, options=OPTIONS, **values):
        self.step, self.batches, self.notes = step, [{"ids": torch.arange(3)}], []
        self.counter = RolloutBatchCounter(options.micro_batches_per_rollout_batch)
        self.counter.resume(step, 10 * step)
        self.past_head, self.restored_head = None, "none"
        self.counters = Counters(
            self.counter,
            options,
            lambda: self.step,
            lambda step: setattr(self, "step", step),
            tell=self.notes.append,
            **values,
        )
        self.rollouts = BufferedRollouts(
            self.counters,
            lambda: self.batches,
            lambda batches: setattr(self, "batches", batches),
            lambda: self.past_head,
            lambda head: setattr(self, "restored_head", head),
        )


class Number:
    def __init__(self, value):
        self.value = value

    def state(self):
        return {"value": self.value}

    def restore(self, state):
        self.value = state["value"]


def saved(run, folder, **others):
    StateFile(run.counters, **others).save(folder, 0, writes=True)
    run.rollouts.save(folder, 0, writes=True)


@pytest.mark.parametrize("step", [6, 7, 8])
def test_counters_and_rollouts_go_on_where_they_were(tmp_path, step):
    before = Run(step)
    saved(before, tmp_path)
    assert (tmp_path / ROLLOUTS_FILE.format(rank=0)).exists() == (step % 3 != 0)
    after = Run()
    states = StateFile(after.counters)
    states.check(tmp_path)
    states.load(tmp_path, 0, CPU)
    after.rollouts.load(tmp_path, 0, CPU)
    assert (after.step, after.counter.num_rollouts) == (step, 10 * step)
    assert after.counter.take_complete(9) == before.counter.take_complete(9) == 1
    assert after.notes == [""]
    if step % 3:
        assert torch.equal(after.batches[0]["ids"], torch.arange(3))
        assert after.restored_head is None
    else:
        assert after.batches is None
        assert after.restored_head == "none"


def test_each_process_has_its_own_rollouts_and_their_head(tmp_path):
    run = Run(1)
    run.past_head = (torch.ones(2, 2), None)
    run.rollouts.save(tmp_path, 5, writes=False)
    after = Run(1)
    with pytest.raises(FileNotFoundError):
        after.rollouts.load(tmp_path, 0, CPU)
    after.rollouts.load(tmp_path, 5, CPU)
    assert torch.equal(after.restored_head[0], torch.ones(2, 2))


def test_a_checkpoint_of_the_model_alone_begins_the_rollout_batch_anew(tmp_path):
    saved(Run(7, saves_rollouts=False), tmp_path)
    assert not (tmp_path / ROLLOUTS_FILE.format(rank=0)).exists()
    after = Run()
    StateFile(after.counters).load(tmp_path, 0, CPU)
    assert after.step == 6


def test_other_options_are_refused_inside_a_rollout_batch_and_told_elsewhere(tmp_path):
    now = dataclasses.replace(OPTIONS, steps_per_generation=2)
    saved(Run(7), tmp_path)
    with pytest.raises(ValueError, match=f"{tmp_path} lies inside a rollout batch.*steps_per_generation=2"):
        StateFile(Run(options=now).counters).check(tmp_path)
    saved(Run(6), tmp_path)
    after = Run(options=now)
    StateFile(after.counters).check(tmp_path)
    StateFile(after.counters).load(tmp_path, 0, CPU)
    assert after.step == 4  # as many rollout batches
    assert "steps_per_generation=2" in after.notes[0]


def test_another_engine_is_refused(tmp_path):
    saved(Run(engine="FSDP"), tmp_path)
    with pytest.raises(ValueError, match="under FSDP and cannot be resumed under one process or DDP"):
        StateFile(Run().counters).check(tmp_path)
    StateFile(Run(engine="FSDP").counters).check(tmp_path)


@pytest.mark.parametrize(
    ("kind", "engine"), [("FSDP", "FSDP"), ("DEEPSPEED", "DEEPSPEED"), ("NO", ""), ("MULTI_GPU", "")]
)
def test_engines_that_write_files_of_their_own(kind, engine):
    assert engine_of(SimpleNamespace(distributed_type=DistributedType(kind))) == engine


def test_small_states_are_written_under_their_names(tmp_path):
    saved(Run(), tmp_path, first=Number(1), second=Number(2))
    assert json.loads((tmp_path / STATE_FILE).read_text())["second"] == {"value": 2}
    first, second = Number(0), Number(0)
    StateFile(Run().counters, first=first, second=second).load(tmp_path, 0, CPU)
    assert (first.value, second.value) == (1, 2)


def test_one_process_writes_the_states(tmp_path):
    StateFile(Run().counters).save(tmp_path, 1, writes=False)
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError, match="not written by SRPOTrainer"):
        StateFile(Run().counters).check(tmp_path)


@pytest.mark.parametrize(("names", "missing"), [(("first", "new"), "new"), ((), "first")])
def test_states_of_another_version_are_refused_by_name(tmp_path, names, missing):
    saved(Run(), tmp_path, first=Number(1))
    states = StateFile(Run().counters, **{name: Number(0) for name in names})
    with pytest.raises(ValueError, match=f"written by another version of srpo-trl: .*'{missing}'"):
        states.check(tmp_path)


def test_a_part_with_a_file_of_its_own(tmp_path):
    calls = []
    part = OwnFile(lambda folder, writes: calls.append((folder, writes)), calls.append)
    part.save(tmp_path, 3, writes=False)
    part.check(tmp_path)
    part.load(tmp_path, 3, CPU)
    assert calls == [(tmp_path, False), tmp_path]
