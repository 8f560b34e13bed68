"""Checkpoints and stops come at the end of an optimizer step, whenever they are asked for.

Inside a step micro-batches are counted whose gradient is not yet taken, rollouts are half used, and the teacher has not
moved: a checkpoint of that moment resumes to another run. transformers saves there on a preemption signal
(`enable_jit_checkpoint`), and callbacks can ask for a save or a stop at any time.
"""

from collections.abc import Callable
from typing import Any

import torch
from accelerate.utils import gather
from transformers import TrainerCallback, TrainerControl

from srpo_trl.seams.trl import JITCheckpointCallback


class StepBoundary(TrainerCallback):
    """Whether a run is inside an optimizer step or between two, and what waits for the step's end.

    Args:
        callbacks: the trainer's, changed in place: this callback comes first, one that puts stops off comes last, and
            transformers' own for preemption, which saves inside a step, is taken over.

    Attributes:
        is_inside: from the moment the step's batches are drawn to its end, when the teacher has moved.
        save_is_due: a checkpoint was asked for inside the step.
        preemption: None without `enable_jit_checkpoint`.
    """

    def __init__(self, callbacks: list[TrainerCallback]) -> None:
        self.is_inside = self.save_is_due = False
        self.preemption: Preemption | None = None
        for place, callback in enumerate(callbacks):
            if isinstance(callback, JITCheckpointCallback):
                callbacks[place] = self.preemption = Preemption(callback)
        self._callbacks, self._last = callbacks, _StepEnd(self)
        callbacks[:] = [self, *callbacks, self._last]

    def on_train_begin(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> None:
        """Called before the first step; an earlier run may have broken off inside one."""
        self.is_inside = self.save_is_due = False

    def on_step_begin(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> None:
        """Called when the batches of a step have been drawn."""
        self.is_inside = True
        if self._callbacks[-1] is not self._last:
            self._callbacks.remove(self._last)
            self._callbacks.append(self._last)


class _StepEnd(TrainerCallback):
    """Puts a stop that was asked for between two micro-batches off to the end of their step; must be called last."""

    def __init__(self, boundary: StepBoundary) -> None:
        self._boundary = boundary
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
        """Called after the optimizer's step, and before it is logged, evaluated and saved."""
        self._boundary.is_inside = False
        control.should_training_stop |= self._training_stop
        control.should_epoch_stop |= self._epoch_stop
        self._training_stop = self._epoch_stop = False


class Preemption(TrainerCallback):
    """Whether a signal has asked for a checkpoint, as transformers' own callback finds out, which saves mid-step."""

    def __init__(self, callback: JITCheckpointCallback) -> None:
        self._callback: Any = callback

    def take(self, device: torch.device) -> bool:
        """Return, once per signal, whether any rank was asked for a checkpoint; all ranks must call it."""
        manager = self._callback.jit_manager
        is_asked = manager is not None and manager.is_checkpoint_requested
        is_asked = bool(gather(torch.tensor([int(is_asked)], device=device)).any())
        if is_asked and manager is not None:
            manager.is_checkpoint_requested = False
        return is_asked

    def on_train_end(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> None:
        """Give the signal back to whoever had it before."""
        self._callback.on_train_end(args, state, control)


class AtStepEnd(TrainerCallback):
    """Calls a function at the end of every optimizer step."""

    def __init__(self, function: Callable[[], None]) -> None:
        self._function = function

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Call it."""
        self._function()
