"""`StepBoundary` by itself: first and last among the callbacks, and what it puts off."""

import pytest
import torch
from transformers import TrainerCallback, TrainerControl
from transformers.trainer_callback import CallbackHandler, DefaultFlowCallback

from srpo_trl.evaluation.temporary import temporarily_set
from srpo_trl.host.step_boundary import Preemption, StepBoundary
from srpo_trl.seams.trl import JITCheckpointCallback


class Seen(TrainerCallback):
    """Records whether the boundary is inside a step when each event comes."""

    def __init__(self):
        self.boundary, self.events, self.stops_at = None, [], None

    def on_event(self, name, control):
        self.events.append((name, self.boundary.is_inside))
        if name == self.stops_at:
            control.should_training_stop = True

    def on_step_begin(self, args, state, control, **kwargs):
        self.on_event("begin", control)

    def on_substep_end(self, args, state, control, **kwargs):
        self.on_event("substep", control)

    def on_step_end(self, args, state, control, **kwargs):
        self.on_event("end", control)


def call(callbacks, control, *events):
    for event in events:
        for callback in callbacks:
            getattr(callback, event)(None, None, control)


STEP = ("on_step_begin", "on_substep_end", "on_step_end")


@pytest.mark.parametrize("is_late", [False, True])
def test_every_other_callback_is_inside_from_begin_to_end(is_late):
    seen = Seen()
    callbacks = [] if is_late else [seen]
    seen.boundary = boundary = StepBoundary(callbacks)
    if is_late:
        callbacks.append(seen)
    call(callbacks, TrainerControl(), *STEP)
    assert seen.events == [("begin", True), ("substep", True), ("end", True)]
    assert not boundary.is_inside


@pytest.mark.parametrize("is_late", [False, True])
@pytest.mark.parametrize("moment", ["begin", "substep"])
def test_a_stop_inside_a_step_comes_at_its_end(moment, is_late):
    seen, control = Seen(), TrainerControl()
    seen.stops_at = moment
    callbacks = [] if is_late else [seen]
    seen.boundary = StepBoundary(callbacks)
    if is_late:
        callbacks.append(seen)
    call(callbacks, control, "on_train_begin", "on_step_begin", "on_substep_end")
    assert not control.should_training_stop
    call(callbacks, control, "on_step_end")
    assert control.should_training_stop


def test_a_new_run_begins_between_two_steps():
    callbacks, control = [], TrainerControl(should_epoch_stop=True)
    boundary = StepBoundary(callbacks)
    call(callbacks, control, "on_step_begin", "on_substep_end")  # broken off
    boundary.save_is_due = True
    call(callbacks, control, "on_train_begin")
    assert not boundary.is_inside
    assert not boundary.save_is_due
    call(callbacks, control, *STEP)
    assert not control.should_epoch_stop


def test_transformers_handler_calls_every_callback_once_while_the_last_is_moved():
    seen = Seen()
    handler = CallbackHandler([DefaultFlowCallback()], None, None, None, None)
    seen.boundary = StepBoundary(handler.callbacks)
    handler.add_callback(seen)
    control = TrainerControl()
    for _ in range(2):
        control = handler.on_step_begin(None, None, control)
    assert [name for name, _ in seen.events] == ["begin", "begin"]
    assert handler.callbacks[0] is seen.boundary
    assert handler.callbacks[-2] is seen


def test_transformers_preemption_is_taken_over():
    class Manager:
        is_checkpoint_requested = True

    theirs, ended = JITCheckpointCallback(), []
    theirs.on_train_end = lambda *args, **kwargs: ended.append(args)
    callbacks = [Seen(), theirs]
    boundary = StepBoundary(callbacks)
    assert theirs not in callbacks
    assert isinstance(boundary.preemption, Preemption)
    assert callbacks[2] is boundary.preemption
    cpu = torch.device("cpu")
    assert not boundary.preemption.take(cpu)  # before the signal's handler is there
    theirs.jit_manager = Manager()
    assert boundary.preemption.take(cpu)
    assert not boundary.preemption.take(cpu)
    call(callbacks[2:3], TrainerControl(), "on_train_end")
    assert len(ended) == 1
    assert StepBoundary([]).preemption is None


# ------------------------------------------------------------------ replaced methods


class Greeter:
    def greet(self):
        return "class"


def test_methods_are_replaced_for_the_block_and_on_one_object():
    one, other = Greeter(), Greeter()

    def greet_and_fail():
        assert (one.greet(), other.greet()) == ("inner", "class")
        raise KeyError

    with temporarily_set(one, greet=lambda: "outer"):
        with pytest.raises(KeyError), temporarily_set(one, greet=lambda: "inner"):
            greet_and_fail()
        assert one.greet() == "outer"
    assert one.greet() == "class"
    assert not vars(one)
