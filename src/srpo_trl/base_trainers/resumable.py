"""`GRPOTrainer` whose checkpoints appear whole or not at all, and whose runs go on where they stopped."""

import os
from pathlib import Path
from typing import Any

from datasets import Dataset
from torch import nn
from torch.utils.data import Sampler
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint
from trl import GRPOConfig, GRPOTrainer

from srpo_trl.base_trainers import checkpointing
from srpo_trl.base_trainers.rollout_batches import next_of_epoch
from srpo_trl.base_trainers.sampler import ResumableRepeatSampler
from srpo_trl.trl_seams import rotate_checkpoints


class ResumableGRPOTrainer(GRPOTrainer):
    """`trl.GRPOTrainer` with staged checkpoints and, on resuming, the uninterrupted run's order of prompts.

    Subclasses save and load what they add through `_save_run_state` and `_load_run_state`, and say through
    `_check_run_state` which checkpoints they cannot go on from.
    """

    args: GRPOConfig
    _is_saving = False
    _redrawn_frac = 0.0  # largest share of a rollout batch's prompts that may be drawn again
    _train_sampler: ResumableRepeatSampler | None = None  # iterable datasets have none

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.args.should_save:
            checkpointing.restore_replaced(str(self.args.output_dir))
        self.accelerator.wait_for_everyone()

    def _save_run_state(self, folder: Path) -> None:
        """Add to a checkpoint that is not visible yet; called on every process."""

    def _check_run_state(self, folder: Path) -> None:
        """Refuse a checkpoint that this launch cannot go on from; called before anything of it is loaded."""

    def _load_run_state(self, folder: Path) -> None:
        """Restore what `_save_run_state` wrote; called on every process, after weights and optimizer."""

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train as `Trainer.train` does.

        Raises:
            ValueError: the checkpoint cannot be gone on from by this launch.
            FileNotFoundError: it was written by another trainer.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = get_last_checkpoint(str(self.args.output_dir)) or True
        if isinstance(resume_from_checkpoint, str | os.PathLike) and os.path.isdir(resume_from_checkpoint):
            self._check_run_state(Path(resume_from_checkpoint))
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _get_train_sampler(self, dataset: Dataset | None = None) -> Sampler:
        self._train_sampler = ResumableRepeatSampler.like(super()._get_train_sampler(dataset))
        self._train_sampler.max_again = int(self._redrawn_frac * self._train_sampler.batch_size)
        return self._train_sampler

    def _get_output_dir(self, trial: Any) -> str:
        run_dir = super()._get_output_dir(trial)
        return checkpointing.staging_folder(run_dir) if self._is_saving else run_dir

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self._is_saving:  # a staged checkpoint is pushed once it has its final name
            super()._push_from_checkpoint(checkpoint_folder)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Train to the end of an epoch; not at all where the run is over, as one resumed from its last checkpoint is.

        `Trainer` asks only after a step whether it was the last, and so would take one too many.
        """
        if self.control.should_training_stop or self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        if self._train_sampler is not None:
            is_resumed = (
                kwargs["resume_from_checkpoint"] is not None and kwargs["epoch"] == kwargs["epochs_trained"]
            )
            num_skipped = kwargs["steps_trained_in_current_epoch"] if is_resumed else 0
            assert self.args.steps_per_generation is not None  # set by GRPOConfig
            each = self.args.steps_per_generation * self.num_iterations
            self._train_sampler.set_epoch(kwargs["epoch"])
            self._train_sampler.start_at(next_of_epoch(num_skipped, self._step, each))
        super()._run_epoch(*args, **kwargs)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint into a staging folder, then give it its name in one rename.

        Raises:
            OSError: it could not be written; the checkpoints before it are whole.
        """
        run_dir = self._get_output_dir(trial)
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        with checkpointing.explained_failure(run_dir, name, clears=self.args.should_save):
            if self.args.should_save:
                checkpointing.clear_staging(run_dir)
            self.accelerator.wait_for_everyone()
            staged = self._stage(model, trial)
            self._name_best_checkpoint(Path(run_dir), staged)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                self._publish(run_dir, staged)
            self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(Path(run_dir) / name))

    def _stage(self, model: nn.Module, trial: Any) -> Path:
        """Write all files of a checkpoint into the staging folder, and return where they are."""
        self._is_saving = True
        try:
            super()._save_checkpoint(model, trial)
            staged = Path(self._get_output_dir(trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        finally:
            self._is_saving = False
        self._save_run_state(staged)
        return staged

    def _name_best_checkpoint(self, run_dir: Path, staged: Path) -> None:
        """Point to the best checkpoint where it lies, or is about to; every process loads it from there in the end."""
        best = run_dir / f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}"
        if self.state.best_global_step and (best.name == staged.name or best.is_dir()):
            self.state.best_model_checkpoint = str(best)
            if self.args.should_save:
                self.state.save_to_json(str(staged / TRAINER_STATE_NAME))

    def _publish(self, run_dir: str, staged: Path) -> None:
        checkpointing.publish(run_dir, staged.name)
        # Only now may older checkpoints go.
        rotate_checkpoints(
            output_dir=run_dir,
            save_total_limit=self.args.save_total_limit,
            best_model_checkpoint=self.state.best_model_checkpoint,
            use_mtime=True,
        )

    def _finalize_training(self, *args: Any) -> Any:
        """Return TRL's result; with `save_total_limit=1` it would remove the last checkpoint unless it is the best."""
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            return super()._finalize_training(*args)
        finally:
            self.args.save_total_limit = limit

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self._load_run_state(Path(checkpoint))
