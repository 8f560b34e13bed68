"""`GRPOTrainer` whose checkpoints appear whole or not at all, and whose runs go on where they stopped."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather, gather_object
from datasets import Dataset
from peft import PeftModel
from torch import nn
from torch.utils.data import Sampler
from transformers import PreTrainedModel, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import GRPOConfig, GRPOTrainer

from srpo_trl.host import checkpoints as checkpointing
from srpo_trl.host import read_back
from srpo_trl.host.checkpoints import rotate_checkpoints
from srpo_trl.host.manifest import (
    BrokenCheckpointError,
    checkpoints_in,
    flaw_of,
    names_in,
    names_of_processes,
    newest_whole,
    remedy,
    write_manifest,
)
from srpo_trl.host.prompt_order import ResumableRepeatSampler
from srpo_trl.host.run_lock import FolderInUseError, RunLock, may_be_in_use
from srpo_trl.host.step_boundary import Preemption, StepBoundary, StopsAtStepEnd
from srpo_trl.rollout.batch_counter import next_of_epoch

logger = logging.getLogger(__name__)


class ResumableGRPOTrainer(GRPOTrainer):
    """`trl.GRPOTrainer` with staged checkpoints and, on resuming, the uninterrupted run's order of prompts.

    While it trains, `output_dir` is its own. Checkpoints are listed file by file and written between optimizer steps;
    only whole ones are gone on from, and a parameter that is not read back from one is an error.

    Subclasses save and load what they add through `_save_run_state` and `_load_run_state`, and say through
    `_check_run_state` which checkpoints they cannot go on from.
    """

    args: GRPOConfig
    _is_saving = False
    _lists_files = True  # in a manifest, by which a later run sees whether a checkpoint is whole
    _resampled_frac = 0.0  # largest share of a rollout batch's prompts that may be drawn again
    _train_sampler: ResumableRepeatSampler | None = None  # iterable datasets have none
    _run_lock: RunLock | None = None  # of the processes that write into output_dir, while they train
    _is_training = False
    _last_saved_step: int | None = None
    _read_from = ""  # the checkpoint whose weights are being read
    _known_whole: str | None = None  # the checkpoint that was chosen for being whole

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.args.should_save and not may_be_in_use(Path(str(self.args.output_dir))):
            checkpointing.restore_replaced(str(self.args.output_dir))
        self.accelerator.wait_for_everyone()
        self._boundary = StepBoundary()
        self._stops = StopsAtStepEnd()
        self._preemption = Preemption.taken_over(self.callback_handler.callbacks, self.remove_callback)
        self.add_callback(_TrainEnd(self))
        self.add_callback(self._stops)

    def _save_run_state(self, folder: Path) -> None:
        """Add to a checkpoint that is not visible yet; called on every process."""

    def _check_run_state(self, folder: Path) -> None:
        """Refuse a checkpoint that this launch cannot go on from; called before anything of it is loaded."""

    def _load_run_state(self, folder: Path) -> None:
        """Restore what `_save_run_state` wrote; called on every process, after weights and optimizer."""

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train as `Trainer.train` does; True goes on from the newest checkpoint of `output_dir` that is whole.

        "auto" does too, and begins anew where there is none.

        Raises:
            FolderInUseError: another run trains in `output_dir`.
            BrokenCheckpointError: the checkpoint is not whole, or holds other parameters than the model.
            ValueError: it cannot be gone on from by this launch, or there is none.
            FileNotFoundError: it was written by another trainer.
        """
        with self._folder_of_its_own():
            if self.args.should_save:
                checkpointing.restore_replaced(str(self.args.output_dir))
            self.accelerator.wait_for_everyone()
            if resume_from_checkpoint == "auto":
                resume_from_checkpoint = self.newest_whole_checkpoint()
            if resume_from_checkpoint is True:
                resume_from_checkpoint = self.newest_whole_checkpoint() or self._none_is_whole()
            if isinstance(resume_from_checkpoint, str | os.PathLike) and os.path.isdir(
                resume_from_checkpoint
            ):
                self._check_is_whole(str(resume_from_checkpoint))
                self._check_run_state(Path(resume_from_checkpoint))
            self._boundary.reset()
            self._is_training, self._last_saved_step = True, None
            try:
                return super().train(resume_from_checkpoint, *args, **kwargs)
            finally:
                self._is_training = False

    @contextmanager
    def _folder_of_its_own(self) -> Iterator[None]:
        """Hold `output_dir` for the length of the block; every process calls it alike, and fails where one fails."""
        in_use = unwritable = ""
        if self.args.should_save:
            try:
                self._run_lock = RunLock.take(Path(str(self.args.output_dir)), say=logger.warning)
            except FolderInUseError as error:
                in_use = str(error)
            except OSError as error:
                unwritable = f"output_dir={self.args.output_dir!r} cannot be written to: {error}"
        try:
            if in_use := self._first_of_all_processes(in_use):
                raise FolderInUseError(in_use)
            unwritable = self._first_of_all_processes(unwritable)
            if unwritable and self.args.save_strategy != "no":
                raise OSError(f"{unwritable}. Give another folder, or set save_strategy='no'.")
            if unwritable:
                logger.warning("%s. It is not locked, and other runs can use it.", unwritable)
            yield
        finally:
            if self._run_lock is not None:
                self._run_lock.release()
                self._run_lock = None

    def _first_of_all_processes(self, text: str) -> str:
        """Return the first text of any process that is not empty; every process calls it alike."""
        return next(filter(None, gather_object([text])), "")

    # ---------------------------------------------------------------- whole checkpoints

    def newest_whole_checkpoint(self) -> str | None:
        """Return the checkpoint of `output_dir` with the highest step that is whole, None where there is none.

        Each that is passed over is logged with the file that is wrong. Every process calls it alike.
        """
        chosen = newest_whole(Path(str(self.args.output_dir)), self._flaw)
        if self.args.should_save:
            for reason in chosen.passed_over:
                logger.warning(reason)
        self._known_whole = str(chosen.folder) if chosen.folder else None
        return self._known_whole

    def _none_is_whole(self) -> bool:
        """Return what makes `Trainer` say that there is no checkpoint; raise where there are, and none is whole."""
        if found := checkpoints_in(Path(str(self.args.output_dir))):
            newest = found[-1][1]
            flaw = f"no checkpoint beside it is whole, and {self._flaw(newest)}"
            raise BrokenCheckpointError(remedy(newest, flaw))
        return True

    def _flaw(self, folder: Path, *, to_resume: bool = True) -> str:
        """Return what is wrong with a checkpoint; the processes that wrote it read it, and all learn of it."""
        return self._first_of_all_processes(
            flaw_of(folder, to_resume=to_resume) if self.args.should_save else ""
        )

    def _check_is_whole(self, folder: str, *, to_resume: bool = True) -> None:
        """Raise BrokenCheckpointError, on every process, unless a checkpoint is whole."""
        if folder == self._known_whole:
            return
        if flaw := self._flaw(Path(folder), to_resume=to_resume):
            raise BrokenCheckpointError(remedy(Path(folder), flaw))

    # ---------------------------------------------------------------- weights read back

    def _converted_model(self) -> PreTrainedModel | None:
        """Return the model where transformers changes names or shapes of its weights in files; engines do not."""
        model = self.model
        if self.is_fsdp_enabled or self.is_deepspeed_enabled or not isinstance(model, PreTrainedModel):
            return None
        return model if read_back.conversions_of(model) else None

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self._read_from = resume_from_checkpoint
        converted = self._converted_model()
        if converted is not None:
            read_back.read_back(converted, Path(resume_from_checkpoint))
            return
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._check_adapters(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        best = str(self.state.best_model_checkpoint)
        self._check_is_whole(best, to_resume=False)
        self._read_from = best
        converted = self._converted_model()
        if converted is not None:
            read_back.read_back(converted, Path(best))
            return
        super()._load_best_model()
        self._check_adapters(best)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Raise where transformers warns."""
        model: Any = self.model
        read_back.check_keys(model, self._read_from, load_result.missing_keys, load_result.unexpected_keys)

    def _check_adapters(self, folder: str) -> None:
        model: Any = self.model
        if isinstance(model, PeftModel) and not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            read_back.check_adapters(model, Path(folder))

    # ---------------------------------------------------------------- order of prompts, ends of runs and steps

    def _get_train_sampler(self, dataset: Dataset | None = None) -> Sampler:
        self._train_sampler = ResumableRepeatSampler.like(super()._get_train_sampler(dataset))
        self._train_sampler.max_again = int(self._resampled_frac * self._train_sampler.batch_size)
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

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Draw the batches of an optimizer step, which begins with it."""
        self._boundary.enter(self.state.global_step)
        if self.callback_handler.callbacks[-1] is not self._stops:
            self.remove_callback(self._stops)
            self.add_callback(self._stops)
        return super().get_batch_samples(*args, **kwargs)

    def _maybe_log_save_evaluate(
        self, tr_loss: Any, grad_norm: Any, model: nn.Module, trial: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Log, evaluate and save; then save what was put off to here, and stop where a signal asks for it."""
        self._boundary.reach(self.state.global_step)
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, model, trial, *args, **kwargs)
        if self._boundary.is_inside:  # stopped inside the step, by a callback that came after all others
            return
        if self._is_preempted():
            self._boundary.save_is_due = self.control.should_training_stop = True
        if self._boundary.save_is_due and self._last_saved_step != self.state.global_step:
            self._save_checkpoint(model, trial)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)
        self._boundary.save_is_due = False

    def _is_preempted(self) -> bool:
        """Return whether any process was told by a signal to save and stop; every process calls it alike."""
        if self._preemption is None:
            return False
        asked = torch.tensor([int(self._preemption.is_asked_for())], device=self.accelerator.device)
        is_preempted = bool(gather(asked).any())
        if is_preempted:
            self._preemption.is_done()
        return is_preempted

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint into a staging folder, then give it its name in one rename; at the end of a step.

        Raises:
            OSError: it could not be written; the checkpoints before it are whole.
            FolderInUseError: another run has taken the folder.
            RuntimeError: training has ended inside an optimizer step.
        """
        if self._boundary.is_inside:
            self._put_off_save()
            return
        run_dir = self._get_output_dir(trial)
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if self._run_lock is not None:
            self._run_lock.check()
        with checkpointing.explained_failure(run_dir, name, clears=self.args.should_save):
            if self.args.should_save:
                checkpointing.clear_staging(run_dir)
            self.accelerator.wait_for_everyone()
            staged = self._stage(model, trial)
            if self._name_best_checkpoint(Path(run_dir), staged) and self.args.should_save:
                self.state.save_to_json(str(staged / TRAINER_STATE_NAME))
            self.accelerator.wait_for_everyone()
            self._list_files(staged)
            if self.args.should_save:
                self._publish(run_dir, staged)
            self.accelerator.wait_for_everyone()
        self._last_saved_step = self.state.global_step
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(Path(run_dir) / name))

    def _put_off_save(self) -> None:
        step = self.state.global_step
        if not self._is_training:
            raise RuntimeError(
                f"No checkpoint can be written: training ended inside the optimizer step after step {step}, when "
                "rollouts were partly used and gradients not yet taken. Go on from the last checkpoint; "
                "`save_model` saves the weights."
            )
        logger.info("The checkpoint asked for in the step after %d is written at the end of that step.", step)
        self._boundary.save_is_due = True

    def _list_files(self, staged: Path) -> None:
        """List the files of all processes that write to this disk; every process calls it alike."""
        if not self._lists_files:
            return
        names = names_in(staged) if staged.is_dir() else []
        seen = [names] if self.args.save_on_each_node else gather_object([names])
        if self.args.should_save:
            names, elsewhere = names_of_processes(staged, seen)
            if elsewhere:
                logger.warning(
                    "%s: %s of other processes do not appear on this disk. Save to a disk that all share, or set "
                    "save_on_each_node=True; else the checkpoint cannot be resumed.",
                    staged.name,
                    ", ".join(elsewhere),
                )
            write_manifest(staged, names, is_resumable=not self.args.save_only_model)

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

    def _name_best_checkpoint(self, run_dir: Path, staged: Path | None = None) -> bool:
        """Point to the best checkpoint where it lies, or is about to; return whether there is one to load."""
        best = run_dir / f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}"
        is_staged = staged is not None and best.name == staged.name
        is_found = bool(self.state.best_global_step) and (is_staged or best.is_dir())
        if is_found:
            self.state.best_model_checkpoint = str(best)
        return is_found

    def _publish(self, run_dir: str, staged: Path) -> None:
        checkpointing.publish(run_dir, staged.name)
        # Only now may older checkpoints go.
        best = Path(self.state.best_model_checkpoint) if self.state.best_model_checkpoint else None
        is_here = best is not None and best.parent.resolve() == Path(run_dir).resolve()
        best_step = self.state.best_global_step if is_here else None
        rotate_checkpoints(run_dir, self.args.save_total_limit, self.state.global_step, best_step)

    def _finalize_training(self, *args: Any) -> Any:
        """Return TRL's result; with `save_total_limit=1` it would remove the last checkpoint unless it is the best."""
        best, out = self.state.best_global_step, self.args.output_dir
        is_lost = self.args.load_best_model_at_end and best and not self.state.best_model_checkpoint
        if is_lost and not self._name_best_checkpoint(
            Path(str(out))
        ):  # output_dir was moved, or copied in part
            logger.warning("The best checkpoint, of step %d, is not in %s: the last model stays.", best, out)
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            return super()._finalize_training(*args)
        finally:
            self.args.save_total_limit = limit

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self._load_run_state(Path(checkpoint))


class _TrainEnd(TrainerCallback):
    """Gives signals back at the end of training."""

    def __init__(self, trainer: ResumableGRPOTrainer) -> None:
        self._trainer = trainer

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called after the last log."""
        if self._trainer._preemption is not None:
            self._trainer._preemption.end(args, state, control)
