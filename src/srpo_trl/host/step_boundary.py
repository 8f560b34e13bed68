"""Checkpoints and stops come at the end of an optimizer step, whenever they are asked for.

Inside a step micro-batches are counted whose gradient is not yet taken, rollouts are half used, and the teacher has not
moved: a checkpoint of that moment resumes to another run. transformers saves there on a preemption signal
(`enable_jit_checkpoint`), and callbacks can ask for a save or a stop at any time.
"""

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl

from srpo_trl.seams.trl import JITCheckpointCallback


class StepBoundary:
    """Where a run is, inside an optimizer step or between two, and what waits for the step's end.

    Attributes:
        is_inside: from the moment the step's batches are drawn to its end, when the teacher has moved.
        save_is_due: a checkpoint was asked for inside the step.
    """

    def __init__(self) -> None:
        self.is_inside = self.save_is_due = False
        self._step = -1

    def enter(self, global_step: int) -> None:
        """Take note that the batches of the step after `global_step` are drawn."""
        self.is_inside, self._step = True, global_step

    def reach(self, global_step: int) -> None:
        """Take note that all is done of the step that led to `global_step`; nothing where it is still the same."""
        if global_step != self._step:
            self.is_inside = False

    def reset(self) -> None:
        """Begin a run."""
        self.is_inside = self.save_is_due = False


class StopsAtStepEnd(TrainerCallback):
    """Puts a stop that was asked for between two micro-batches off to the end of their step; must be called last."""

    def __init__(self) -> None:
        self._training_stop = self._epoch_stop = False

    def on_train_begin(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> None:
        """Called before the first step; an earlier run may have broken off inside one."""
        self._training_stop = self._epoch_stop = False

    def on_substep_end(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> None:
        """Called after each micro-batch but a step's last."""
        self._training_stop |= control.should_training_stop
        self._epoch_stop |= control.should_epoch_stop
        control.should_training_stop = control.should_epoch_stop = False

    def on_step_end(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> None:
        """Called after the optimizer's step."""
        control.should_training_stop |= self._training_stop
        control.should_epoch_stop |= self._epoch_stop
        self._training_stop = self._epoch_stop = False


class Preemption:
    """Whether a signal has asked for a checkpoint, as transformers' own callback finds out, which saves mid-step."""

    def __init__(self, callback: JITCheckpointCallback) -> None:
        self._callback = callback

    @classmethod
    def taken_over(
        cls, callbacks: list[TrainerCallback], remove: Callable[[Any], None]
    ) -> "Preemption | None":
        """Return what takes the place of transformers' callback, which is removed; None where there is none."""
        found = [callback for callback in callbacks if isinstance(callback, JITCheckpointCallback)]
        for callback in found:
            remove(callback)
        return cls(found[0]) if found else None

    def is_asked_for(self) -> bool:
        """Return whether a checkpoint has been asked for since the last one that was written for it."""
        manager = self._callback.jit_manager
        return manager is not None and manager.is_checkpoint_requested

    def is_done(self) -> None:
        """Take note that the checkpoint is written."""
        if self._callback.jit_manager is not None:
            self._callback.jit_manager.is_checkpoint_requested = False

    def end(self, args: Any, state: Any, control: TrainerControl) -> None:
        """Give the signal back to whoever had it before."""
        self._callback.on_train_end(args, state, control)


class AtStepEnd(TrainerCallback):
    """Calls a function at the end of every optimizer step."""

    def __init__(self, function: Callable[[], None]) -> None:
        self._function = function

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Call it."""
        self._function()
