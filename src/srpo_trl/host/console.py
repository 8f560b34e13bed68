"""One line for each log on the terminal: what to read first, seconds a step and the time left.

It takes the place of the whole dictionary that transformers prints; the run's log has that.
"""

import re
import time
from collections.abc import Mapping
from typing import Any

from transformers.trainer import DEFAULT_PROGRESS_CALLBACK
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from srpo_trl.host.callbacks import TrainingClock
from srpo_trl.runs.durations import format_duration

LENGTH = "completions/mean_length"
# By the word on the line, what is printed of a training log: of one with routes, and of one without.
ROUTED = {
    "correct": "srpo/correct_frac",
    "distilled": "srpo/route/distilled_frac",
    "teacher": "srpo/teacher/available_frac",
    "divergence": "srpo/distillation/divergence",
    "tokens": LENGTH,
}
UNROUTED = {
    "reward": "reward",
    "std": "reward_std",
    "entropy": "entropy",
    "kl": "kl",
    "tokens": LENGTH,
}
# Names of an evaluation's scores, as regular expressions, without prefix; of several data sets each has its own.
EVALUATED = (r".*avg@\d+", r".*maj@\d+", r"(.*_)?format_rate", r"(.*_)?loss", r"(.*_)?reward", rf".*{LENGTH}")


class LogLines:
    """Makes the line of each log.

    Args:
        clock: of the run, which may have a limit.
    """

    def __init__(self, clock: TrainingClock) -> None:
        self._clock = clock
        self._first_step = self._last_step = 0
        self._has_routes = False
        self._began = self._last_seconds = 0.0

    def begin(self, state: Any) -> None:
        """Start a run, or the part of one that resumes."""
        self._first_step = self._last_step = state.global_step
        self._began = time.perf_counter()

    def begin_step(self, state: Any) -> None:
        """Take the clock's count before the first step, which a resumed run's clock has by then."""
        if state.global_step == self._first_step:
            self._last_seconds = self._clock.seconds

    def line(self, state: Any, logs: Mapping[str, Any]) -> str:
        """Return the line of a log of training, of an evaluation, of the end, or of the user's own."""
        if isinstance(logs.get("train_runtime"), float):
            return f"trained to step {state.global_step} in {format_duration(logs['train_runtime'])}"
        if "loss" in logs and "learning_rate" in logs:
            self._has_routes |= ROUTED["distilled"] in logs  # a step without new rollouts logs none
            columns = ROUTED if self._has_routes else UNROUTED
            shown = [f"{word} {_written(logs.get(name))}" for word, name in columns.items()]
            shown += self._times(state)
        else:
            shown = _evaluation(logs) or [f"{name} {_written(value)}" for name, value in logs.items()]
        return "  ".join([f"step {state.global_step}/{state.max_steps}", *shown])

    def _times(self, state: Any) -> list[str]:
        """Return seconds of training a step since the last log, and what is left of the run at its pace so far."""
        steps, seconds = state.global_step - self._last_step, self._clock.seconds - self._last_seconds
        self._last_step, self._last_seconds = state.global_step, self._clock.seconds
        num_done = state.global_step - self._first_step
        if not steps or not num_done:
            return []
        pace = (time.perf_counter() - self._began) / num_done  # with evaluation and saving
        left = pace * (state.max_steps - state.global_step)
        if self._clock.limit is not None:
            left = min(left, max(0.0, self._clock.limit - self._clock.seconds))
        return [f"{_written(seconds / steps)} s/step", *([f"{format_duration(left)} left"] * (left > 0))]


class LinePrinter(PrinterCallback):
    """Prints the line of each log, on the main process; in a notebook too."""

    def __init__(self, lines: LogLines) -> None:
        self._lines = lines

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the lines of a run."""
        self._lines.begin(state)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the time of a run."""
        self._lines.begin_step(state)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Print a line."""
        if state.is_world_process_zero:
            print(self._lines.line(state, logs or {}), flush=True)


class LineBesideBar(ProgressCallback):
    """Writes the line of each log above transformers' progress bar, on the main process."""

    def __init__(self, lines: LogLines) -> None:
        super().__init__()
        self._lines = lines

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the bar and the lines of a run."""
        super().on_train_begin(args, state, control, **kwargs)
        self._lines.begin(state)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the time of a run."""
        super().on_step_begin(args, state, control, **kwargs)
        self._lines.begin_step(state)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Write a line."""
        if state.is_world_process_zero and self.training_bar is not None:
            self.training_bar.write(self._lines.line(state, logs or {}))


def print_lines(callbacks: list[Any], clock: TrainingClock) -> None:
    """Put the lines in the place of transformers' own callback, in a list of callbacks.

    It is the last of its kind. Those that a user has given, subclasses too, stay; where he has taken it out there are
    no lines.
    """
    ours = {PrinterCallback: LinePrinter, ProgressCallback: LineBesideBar}
    for place, callback in reversed(list(enumerate(callbacks))):
        if type(callback) in (
            PrinterCallback,
            DEFAULT_PROGRESS_CALLBACK,
        ):  # the latter is a widget in a notebook
            callbacks[place] = ours.get(type(callback), LinePrinter)(LogLines(clock))
            return


def _evaluation(logs: Mapping[str, Any]) -> list[str]:
    """Return the scores of an evaluation, each with its standard error where it has one; nothing of another log."""
    known = next((name for name in logs if name.startswith("eval_") or name.endswith("_runtime")), None)
    if known is None:
        return []
    prefix, shown = known.split("_")[0] + "_", ["evaluation"]
    for pattern in EVALUATED:
        for name in logs:
            label = name.removeprefix(prefix)
            if re.fullmatch(pattern, label):
                error = logs.get(f"{name}_stderr")
                spread = "" if error is None else f" ± {_written(error)}"
                shown.append(f"{label.replace(LENGTH, 'tokens')} {_written(logs[name])}{spread}")
    return shown


def _written(value: Any) -> str:
    """Return a number with three digits or more; a dash where there is none."""
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return "-" if value is None else str(value)
