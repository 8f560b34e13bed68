"""`GRPOTrainer` that knows what its run has cost and leaves a log that `srpo-trl report` reads."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from srpo_trl.config import SRPOConfig
from srpo_trl.host.callbacks import RunLogCallback, TrainingClock, peak_memory, run_facts
from srpo_trl.host.resumable import ResumableGRPOTrainer
from srpo_trl.runs.log import LOG_FILE


class LoggedGRPOTrainer(ResumableGRPOTrainer):
    """`ResumableGRPOTrainer` with a clock, the cost of the run in its logs, and `log.jsonl`; only with `run_log`."""

    args: SRPOConfig
    model: PreTrainedModel

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.args.run_log:
            self._clock = TrainingClock.of(self)
            device, num_processes = self.accelerator.device, self.accelerator.num_processes
            facts = run_facts(self.args, self.model.config, device, num_processes)
            self.add_callback(RunLogCallback(Path(str(self.args.output_dir)) / LOG_FILE, facts, self._clock))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the run's costs to what is logged of training."""
        if self.args.run_log and self.model.training:
            logs = {**logs, **self._clock.drain(), **peak_memory(self.accelerator.device)}
        super().log(logs, start_time)
