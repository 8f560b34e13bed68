"""`GRPOTrainer` whose checkpoints appear whole or not at all, and whose runs resume where they stopped."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset
from torch import nn
from torch.utils.data import Sampler
from trl import GRPOConfig, GRPOTrainer

from srpo_trl.evaluation.sampling import temporarily_set
from srpo_trl.host.checkpoints import Checkpoints
from srpo_trl.host.manifest import Manifest
from srpo_trl.host.prompt_order import PromptOrder
from srpo_trl.host.read_back import check_keys, load_weights
from srpo_trl.host.replaced_methods import replaced_methods
from srpo_trl.host.step_boundary import StepBoundary


class ResumableGRPOTrainer(GRPOTrainer):
    """`trl.GRPOTrainer` with staged checkpoints and, on resuming, the uninterrupted run's order of prompts.

    While it trains, `output_dir` is its own. Checkpoints are written between optimizer steps; only whole ones are
    resumed, and a parameter that is not read back from one is an error.

    Attributes:
        checkpoints: of `output_dir`; subclasses add the parts that they save.
    """

    args: GRPOConfig
    model: Any
    _is_routed = (
        False  # else a checkpoint has GRPOTrainer's files, and a finished run the checkpoints that it leaves
    )
    _resampled_frac = 0.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        args_, writes = self.args, self.args.should_save
        manifest = Manifest(
            writes=writes,
            is_resumable=not args_.save_only_model,
            has_own_disk=args_.save_on_each_node,
        )
        self.checkpoints = Checkpoints(
            str(args_.output_dir),
            self.accelerator,
            StepBoundary(self.callback_handler.callbacks),
            manifest if self._is_routed else None,
            writes=writes,
            must_write=args_.save_strategy != "no",
            limit=args_.save_total_limit,
        )
        assert args_.steps_per_generation is not None  # set by GRPOConfig
        self._prompt_order = PromptOrder(
            args_.steps_per_generation * self.num_iterations,
            lambda: self.state.epoch or 0.0,
            self._resampled_frac,
        )

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train as `Trainer.train` does; True resumes from the newest checkpoint of `output_dir` that is whole.

        "auto" does too, and begins anew where there is none.

        Raises:
            FolderInUseError: another run trains in `output_dir`.
            BrokenCheckpointError: the checkpoint is not whole, or holds other parameters than the model.
            ValueError: it cannot be resumed by this launch, or there is none.
            FileNotFoundError: it was written by another trainer.
        """
        readers: dict[str, Any] = {
            "_load_from_checkpoint": self._read_checkpoint,
            "_load_best_model": self._read_best,
        }
        with self.checkpoints.run(resume_from_checkpoint) as checkpoint, replaced_methods(self, **readers):
            return super().train(checkpoint, *args, **kwargs)

    # ---------------------------------------------------------------- weights read back

    def _read_checkpoint(self, folder: str, model: nn.Module | None = None) -> None:
        self._read_weights(folder, partial(super()._load_from_checkpoint, folder, model))

    def _read_best(self) -> None:
        best = str(self.state.best_model_checkpoint)
        self.checkpoints.check_whole(best, to_resume=False)
        self._read_weights(best, super()._load_best_model)

    def _read_weights(self, folder: str, load: Callable[[], None]) -> None:
        """Read weights with transformers' `load`, and raise where it warns; engines read files of their own."""
        with replaced_methods(self, _issue_warnings_after_load=partial(check_keys, self.model, folder)):
            if self.is_fsdp_enabled or self.is_deepspeed_enabled:
                load()
            else:
                load_weights(self.model, Path(folder), load)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        self.checkpoints.load(checkpoint)

    # ---------------------------------------------------------------- order of prompts, ends of runs and steps

    def _get_train_sampler(self, dataset: Dataset | None = None) -> Sampler[Any]:
        return self._prompt_order.sampler_like(super()._get_train_sampler(dataset))

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Train to the end of an epoch; not at all where the run is over, as one resumed from its last checkpoint is.

        `Trainer` asks only after a step whether it was the last, and so would take one too many.
        """
        if self.control.should_training_stop or self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        is_resumed = kwargs["epoch"] == kwargs["epochs_trained"]
        num_skipped = kwargs["steps_trained_in_current_epoch"] if is_resumed else 0
        self._prompt_order.begin_epoch(kwargs["epoch"], num_skipped, self._step)
        super()._run_epoch(*args, **kwargs)

    def _maybe_log_save_evaluate(
        self, tr_loss: Any, grad_norm: Any, model: nn.Module, trial: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Log, evaluate and save; then save what was put off to here, and stop where a signal asks for it."""
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, model, trial, *args, **kwargs)
        if self.checkpoints.is_due(self.state, self.control):
            self._save_checkpoint(model, trial)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint into a staging folder, then give it its name in one rename; at the end of a step."""
        if self.checkpoints.puts_off(self.state.global_step):
            return
        with (
            self.checkpoints.staging(self.state) as folder,
            replaced_methods(
                self, _get_output_dir=lambda trial: folder, _push_from_checkpoint=lambda folder: None
            ),
        ):
            super()._save_checkpoint(model, trial)
        if self.args.push_to_hub:
            self._push_from_checkpoint(self.checkpoints.path_of(self.state.global_step))

    def _finalize_training(self, *args: Any) -> Any:
        """Return TRL's result; with `save_total_limit=1` it would remove the last checkpoint unless it is the best."""
        if self.args.load_best_model_at_end:
            self.checkpoints.find_best(self.state)
        limit = None if self._is_routed else self.args.save_total_limit
        with temporarily_set(self.args, save_total_limit=limit):
            return super()._finalize_training(*args)
