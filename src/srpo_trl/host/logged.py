"""`GRPOTrainer` that knows what its run has cost and leaves a log that `srpo-trl report` reads."""

import dataclasses
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather
from torch import nn
from transformers import PreTrainedModel, TrainerCallback, TrainerState

from srpo_trl.config import SRPOConfig
from srpo_trl.host.resumable import ResumableGRPOTrainer
from srpo_trl.host.run_costs import Stopwatch, peak_memory_gb
from srpo_trl.runs.log import LOG_FILE, RunLog
from srpo_trl.seams.trl import get_config_model_id

ELAPSED = "srpo/seconds/elapsed"
PEAK_MEMORY = "srpo/memory/peak_gb"
RUN_METRICS = (ELAPSED, PEAK_MEMORY)

_CLOCK = "srpo_trl.Stopwatch"  # in the trainer state of a checkpoint
_OF_A_PLACE = ("output_dir", "logging_dir", "run_name", "hub_model_id", "resume_from_checkpoint")
_OF_A_SECRET = ("token", "key", "secret", "password", "url", "host")  # ends of names
_PACKAGES = ("srpo-trl", "trl", "transformers", "torch")


class LoggedGRPOTrainer(ResumableGRPOTrainer):
    """`ResumableGRPOTrainer` with `RUN_METRICS` in its logs, all of which also go to `log.jsonl` in `output_dir`.

    Without `run_log` it does neither.
    """

    args: SRPOConfig
    model: PreTrainedModel

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._clock = Stopwatch()
        self._run_log = RunLog(Path(str(self.args.output_dir)) / LOG_FILE)
        self._log_has_begun = False  # an evaluation before any training belongs to no run
        if self.args.run_log:
            self.add_callback(_KeepLog(self))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the run's costs to what is logged of training."""
        if self.args.run_log and self.model.training:
            device = self.accelerator.device
            peak = torch.tensor([peak_memory_gb(device)], device=device)
            logs |= {ELAPSED: self._clock.seconds, PEAK_MEMORY: float(gather(peak).max())}
        super().log(logs, start_time)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate off the clock."""
        with self._clock.paused():
            return super().evaluate(*args, **kwargs)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        if self.args.run_log:
            saved: Any = self.state.stateful_callbacks
            saved[_CLOCK] = {"attributes": {"seconds": self._clock.seconds}}
        super()._save_checkpoint(model, trial)

    def _begin_log(self, state: TrainerState) -> None:
        """Start the clock and the log where an earlier part of the run left them."""
        saved: Any = state.stateful_callbacks
        earlier = saved.get(_CLOCK, {"attributes": {"seconds": 0.0}})["attributes"]["seconds"]
        self._clock.start(earlier if state.global_step else 0.0)
        if not state.is_world_process_zero:
            return
        self._log_has_begun = True
        is_new = not self._run_log.exists()
        self._run_log.begin(state.global_step, **self._facts())
        if is_new:  # it goes on from a checkpoint of another folder, or of a trainer that left no such log
            for entry in state.log_history:
                self._run_log.append({"step": entry["step"], "logs": entry})

    def _facts(self) -> dict[str, Any]:
        return {
            "model": get_config_model_id(self.model.config).rstrip("/").split("/")[-1],
            "options": {"method": self.args.method, **changed_options(self.args)},
            "num_processes": self.accelerator.num_processes,
            "device": (
                torch.cuda.get_device_name(self.accelerator.device)
                if self.accelerator.device.type == "cuda"
                else self.accelerator.device.type
            ),
            "versions": {package: version(package) for package in _PACKAGES},
        }


def changed_options(args: SRPOConfig) -> dict[str, Any]:
    """Return the options whose value is not their default, without those of a place or a secret."""
    public = _without_private(args.to_dict())
    changed = {}
    for field in dataclasses.fields(args):
        factory = field.default_factory
        default = field.default if factory is dataclasses.MISSING else factory()
        is_default = field.name in args.defaulted or getattr(args, field.name) == default
        if field.name in public and not is_default:
            changed[field.name] = public[field.name]
    return changed


def _without_private(options: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _without_private(value) if isinstance(value, dict) else value
        for name, value in options.items()
        if name not in _OF_A_PLACE and not str(name).endswith(_OF_A_SECRET)
    }


class _KeepLog(TrainerCallback):
    """Tells the trainer when training begins and ends, and writes what it logs."""

    def __init__(self, trainer: LoggedGRPOTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called once a checkpoint, where there is one, has been loaded."""
        self._trainer._begin_log(state)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called after the last log."""
        self._trainer._clock.stop()

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any
    ) -> None:
        """Write a training or an evaluation log, with the seconds of training before it."""
        trainer = self._trainer
        if trainer._log_has_begun:
            trainer._run_log.append(
                {"step": state.global_step, "seconds": trainer._clock.seconds, "logs": logs}
            )
