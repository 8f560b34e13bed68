"""What a run keeps beside its model: the clock of training, its log, and what is done about a guard's finding."""

import contextlib
import dataclasses
import json
import logging
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path, PureWindowsPath
from typing import Any

import torch
from accelerate.utils import broadcast, broadcast_object_list, gather
from transformers import PretrainedConfig, Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState

from srpo_trl.config import SRPOConfig
from srpo_trl.config.former import SECRETS
from srpo_trl.runs.guards import DEFAULT_THRESHOLDS, GUARDS, Finding, GuardThresholds, Watch
from srpo_trl.runs.log import GUARDS_FILE, TRAINING_SECONDS, RunLog
from srpo_trl.seams.trl import get_config_model_id

PEAK_MEMORY = "srpo/memory/peak_gb"

_OF_A_PLACE = ("output_dir", "logging_dir", "run_name", "hub_model_id", "resume_from_checkpoint")
_OF_A_SECRET = (*SECRETS, "url", "host")  # ends of names
_PACKAGES = ("srpo-trl", "trl", "transformers", "torch")

_logger = logging.getLogger(__name__)


class TrainingClock(TrainerCallback, ExportableState):
    """Counts the seconds inside training steps, over all parts of a resumed run; can end the run by them.

    Evaluation, logging and saving are left out. transformers saves the count with each checkpoint.

    Args:
        limit: seconds after which the run stops. The step that crosses it is finished, logged, evaluated where the
            run evaluates at all, and saved.

    Attributes:
        now: tells the time, in seconds.
    """

    def __init__(self, limit: float | None = None) -> None:
        self.limit = limit
        self.now = time.perf_counter
        self.seconds = 0.0
        self._step_began = 0.0

    @classmethod
    def of(cls, trainer: Trainer) -> "TrainingClock":
        """Return the trainer's clock, made where there is none, as the last of its callbacks.

        Time that the other callbacks take at the end of a step counts, too.
        """
        found = trainer.pop_callback(cls)
        clock = found if isinstance(found, cls) else cls()
        trainer.add_callback(clock)
        return clock

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"args": {"limit": self.limit}, "attributes": {"seconds": self.seconds}}

    def drain(self) -> dict[str, float]:
        """Return the count by its name in logs."""
        return {TRAINING_SECONDS: self.seconds}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Resume the checkpoint's count, where there is one. The limit is the new run's own and may have passed."""
        saved = state.stateful_callbacks.setdefault(type(self).__name__, self.state())
        resumes = state.global_step and isinstance(saved, dict)
        self.seconds = saved["attributes"]["seconds"] if resumes else 0.0
        if self.limit is not None and self.seconds >= self.limit:
            control.should_training_stop = True

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._step_began = self.now()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop the clock. With several processes a limit goes by the first one's: all stop at the same step."""
        self.seconds += self.now() - self._step_began
        if self.limit is None:
            return
        if args.world_size > 1:
            seconds = torch.tensor(self.seconds, dtype=torch.float64, device=args.device)
            self.seconds = float(broadcast(seconds))
        if self.seconds >= self.limit:
            control.should_training_stop = control.should_log = control.should_save = True
            control.should_evaluate = control.should_evaluate or args.eval_strategy != "no"

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add the count to the log that was just taken down, training's or an evaluation's."""
        state.log_history[-1] |= self.drain()


def peak_memory(device: torch.device) -> dict[str, float]:
    """Return the peak memory since the processes' start, in 10^9 bytes, the largest over processes.

    On a CUDA device it is what torch has held in tensors there, else the resident memory of a whole process; without a
    means to know it, nothing is returned. A collective: all ranks must call it.
    """
    if device.type == "cuda":
        own = torch.cuda.max_memory_allocated(device) / 1e9
    elif sys.platform == "win32":  # which has no `resource`
        return {}
    else:
        import resource

        unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
    return {PEAK_MEMORY: float(gather(torch.tensor([own], device=device)).max())}


class RunLogCallback(TrainerCallback):
    """Writes every log of a run to a file that `srpo-trl report` reads, on the main process.

    Args:
        path: of the file, which may hold earlier parts of the run.
        facts: about the run, see `run_facts`.
        clock: of the run.
    """

    def __init__(self, path: Path, facts: Mapping[str, Any], clock: TrainingClock) -> None:
        self._log = RunLog(path)
        self._facts = facts
        self._clock = clock
        self._has_begun = False  # an evaluation before any training belongs to no run

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin a part of the log, once a checkpoint, where there is one, has been loaded."""
        if not state.is_world_process_zero:
            return
        self._has_begun = True
        is_new = not self._log.exists()
        self._log.begin(state.global_step, max_steps=state.max_steps, **self._facts)
        if is_new:  # it resumes a checkpoint of another folder, or of a trainer that left no such log
            for entry in state.log_history:
                self._log.append({"step": entry["step"], "logs": entry})

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Write a training or an evaluation log, with the seconds of training before it."""
        if self._has_begun:
            self._log.append({"step": state.global_step, "logs": {**(logs or {}), **self._clock.drain()}})


def run_facts(
    config: SRPOConfig, model_config: PretrainedConfig, device: torch.device, num_processes: int
) -> dict[str, Any]:
    """Return what a report says about a run beside its metrics; no path, no secret."""
    return {
        "model": PureWindowsPath(get_config_model_id(model_config)).name,
        "options": {"method": config.method, **changed_options(config)},
        "num_processes": num_processes,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "versions": package_versions(),
    }


def package_versions() -> dict[str, str]:
    """Return the versions of what a run is made with."""
    return {package: version(package) for package in _PACKAGES}


def changed_options(config: SRPOConfig) -> dict[str, Any]:
    """Return the options that somebody set to another value than their default, as they were given.

    Left out is what SRPO, TRL or transformers made of other options, and what names a place or a secret.
    """
    untyped: Any = config
    given = {name: was for name, (was, made) in untyped.derived.items() if getattr(config, name) == made}
    shown = _without_private({**untyped.to_dict(), **given})
    changed = {}
    for field in dataclasses.fields(config):
        factory = field.default_factory
        default = field.default if factory is dataclasses.MISSING else factory()
        if field.name in shown and given.get(field.name, getattr(config, field.name)) != default:
            changed[field.name] = shown[field.name]
    return changed


def _without_private(value: Any) -> Any:
    """Return options, or the value of one, without what names places and secrets, also in JSON text and lists."""
    if isinstance(value, str) and value.lstrip().startswith(("{", "[")):
        with contextlib.suppress(ValueError):
            value = json.loads(value)
    if isinstance(value, dict):
        return {
            name: _without_private(held)
            for name, held in value.items()
            if name not in _OF_A_PLACE and not str(name).endswith(_OF_A_SECRET)
        }
    return [_without_private(held) for held in value] if isinstance(value, list | tuple) else value


class GuardCallback(TrainerCallback):
    """Watches a run's log; warns, and acts where `guard_action` is a remedy.

    Args:
        action: `guard_action`, not "off".
        remedies: what each action but "warn" and "stop" does.
        thresholds: when a guard warns.

    Other thresholds than the default ones: `guard_action="off"`, and `trainer.add_callback(GuardCallback(...))`.
    """

    def __init__(
        self,
        action: str,
        remedies: Mapping[str, Callable[[], None]],
        thresholds: GuardThresholds = DEFAULT_THRESHOLDS,
    ) -> None:
        self._action = action
        self._remedies = remedies
        self._thresholds = thresholds
        self._watch = Watch(action, thresholds)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take what a resumed run has logged so far; findings of then are not repeated."""
        self._watch = Watch(self._action, self._thresholds)
        for entry in state.log_history:
            self._watch.observe(entry, entry.get("step", 0))
        log = RunLog(Path(args.output_dir) / GUARDS_FILE)
        # What an earlier run in the folder found beyond this step is no finding of this one.
        if state.is_world_process_zero and log.exists():
            log.begin(state.global_step)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Look at the newest log, on every process; the first one's findings count."""
        findings = [self._watch.observe(logs or {}, state.global_step)]
        broadcast_object_list(findings)
        if state.is_world_process_zero:
            _report(Path(args.output_dir) / GUARDS_FILE, findings[0])
        for action in sorted({finding.action for finding in findings[0]}):
            if action == "stop":
                control.should_save = control.should_training_stop = True
            elif action != "warn":
                self._remedies[action]()


def _report(path: Path, findings: Iterable[Finding]) -> None:
    """Warn, and add the findings to a file, one JSON object a line."""
    for finding in findings:
        advice = GUARDS[finding.guard].advice
        said = (finding.guard, finding.step, finding.message, advice, finding.action)
        _logger.warning("guard %s at step %d: %s. %s. Action: %s.", *said)
        RunLog(path).append({**finding._asdict(), "advice": advice})
