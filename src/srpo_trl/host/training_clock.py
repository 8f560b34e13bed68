"""Seconds of training, evaluation and saving left out: what wall-clock budgets are counted in.

Each log of a run gets them as `training_seconds`; they are part of every checkpoint, so a resumed run goes on counting.
"""

import time
from typing import Any

import torch
from accelerate.utils import broadcast
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

TRAINING_SECONDS = "training_seconds"
SECONDS_PER_UNIT = {"s": 1, "m": 60, "h": 3600}


def seconds_of(text: str | float) -> float:
    """Return the seconds of a duration such as `90s`, `30m`, `1.5h`, or a plain number of seconds.

    Raises:
        ValueError: it is none of these, or not above 0.
    """
    written = str(text).strip()
    unit = written[-1:] if written[-1:] in SECONDS_PER_UNIT else ""
    try:
        seconds = float(written.removesuffix(unit)) * SECONDS_PER_UNIT.get(unit, 1)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ValueError(f"{text!r} is not a duration above 0, such as 90s, 30m or 1.5h.")
    return seconds


class TrainingClock(TrainerCallback, ExportableState):
    """Runs from the beginning of each step to its end, and stops the run once `limit` seconds are used up.

    The step that crosses the limit is finished, logged, evaluated where the run evaluates at all, and saved.
    """

    def __init__(self, limit: float | None = None) -> None:
        self.limit = limit
        self.seconds = 0.0
        self._step_began = 0.0

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"args": {"limit": self.limit}, "attributes": {"seconds": self.seconds}}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Go on from the checkpoint's count, where there is one. The limit is the new run's own; it may be used up."""
        saved = state.stateful_callbacks.get(type(self).__name__)
        if isinstance(saved, dict):
            self.seconds = saved["attributes"]["seconds"]
        if self.limit is not None and self.seconds >= self.limit:
            control.should_training_stop = True

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._step_began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop the clock. With several processes the first one's count is everyone's: all stop at the same step."""
        self.seconds += time.perf_counter() - self._step_began
        if args.world_size > 1:
            seconds = torch.tensor(self.seconds, dtype=torch.float64, device=args.device)
            self.seconds = float(broadcast(seconds))
        if self.limit is not None and self.seconds >= self.limit:
            control.should_training_stop = control.should_log = control.should_save = True
            control.should_evaluate = control.should_evaluate or args.eval_strategy != "no"

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add the count to the log that was just taken down, training's or an evaluation's."""
        state.log_history[-1][TRAINING_SECONDS] = self.seconds
