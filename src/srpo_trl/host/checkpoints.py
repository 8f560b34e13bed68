"""The checkpoints of a run, and its output folder while it trains.

Checkpoints are whole or not there (`staging`), are listed file by file (`manifest`) and written between optimizer steps
(`step_boundary`). What is added to them is a list of parts.
"""

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from transformers import TrainerControl, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from srpo_trl.host.manifest import (
    BrokenCheckpointError,
    Manifest,
    checkpoints_in,
    flaw_of,
    newest_whole,
    remedy,
)
from srpo_trl.host.run_lock import FolderInUseError, RunLock, may_be_in_use
from srpo_trl.host.staging import (
    clear_staging,
    explained_failure,
    publish,
    restore_replaced,
    rotate_checkpoints,
    staging_folder,
)
from srpo_trl.host.step_boundary import StepBoundary

logger = logging.getLogger(__name__)


class CheckpointPart(Protocol):
    """State that a checkpoint holds beside transformers' files. Each method is a collective: all ranks must call it."""

    def save(self, folder: Path, rank: int, *, writes: bool) -> None:
        """Add to a checkpoint that is not visible yet; without `writes`, only files of this rank."""

    def check(self, folder: Path) -> None:
        """Raise, with the remedy, where this launch cannot resume from the checkpoint; nothing is loaded yet."""
        return  # parts that inherit this can resume from every checkpoint

    def load(self, folder: Path, rank: int, device: torch.device) -> None:
        """Restore what `save` wrote; weights and optimizer are loaded, and the parts before this one."""


class Checkpoints:
    """The checkpoints in a run's folder. Each method is a collective: all ranks must call it.

    Args:
        run_dir: `output_dir`. A checkpoint that a killed save had set aside gets its name back.
        accelerator: of the run.
        boundary: where the run is, inside an optimizer step or between two.
        manifest: lists the files of each checkpoint; None: a checkpoint has no list.
        writes: whether this process writes the files that all share (`TrainingArguments.should_save`).
        must_write: whether the run saves, so that a folder that cannot be written to is an error.
        limit: `save_total_limit`.

    Attributes:
        parts: asked in this order.
    """

    def __init__(
        self,
        run_dir: str,
        accelerator: Accelerator,
        boundary: StepBoundary,
        manifest: Manifest | None = None,
        *,
        parts: Iterable[CheckpointPart] = (),
        writes: bool = True,
        must_write: bool = True,
        limit: int | None = None,
    ) -> None:
        self.parts = list(parts)
        self._run_dir, self._accelerator, self._boundary = run_dir, accelerator, boundary
        self._manifest = manifest
        self._writes, self._must_write, self._limit = writes, must_write, limit
        self._lock: RunLock | None = None  # of the processes that write, while they train
        self._is_training = False
        self._last_saved_step: int | None = None
        self._known_whole: str | None = None  # the checkpoint that was chosen for being whole
        if writes and not may_be_in_use(Path(run_dir)):
            restore_replaced(run_dir)
        accelerator.wait_for_everyone()

    # ---------------------------------------------------------------- a run

    @contextmanager
    def run(self, resume: str | bool | None) -> Iterator[str | bool | None]:
        """Hold the folder while the block trains, and give it what `Trainer.train` is to resume from.

        Args:
            resume: a checkpoint; True: the latest complete one; "auto": the same, or None where there is none.

        Raises:
            FolderInUseError: another run trains in the folder.
            BrokenCheckpointError: the checkpoint is not whole.
            ValueError, FileNotFoundError: a part cannot resume from it.
        """
        with self._own_folder():
            if self._writes:
                restore_replaced(self._run_dir)
            self._accelerator.wait_for_everyone()
            if resume == "auto":
                resume = self.newest_whole()
            elif resume is True:
                resume = self.newest_whole() or self._none_is_whole()
            if isinstance(resume, str | os.PathLike) and os.path.isdir(resume):
                self.check(str(resume))
            self._is_training, self._last_saved_step = True, None
            try:
                yield resume
            finally:
                self._is_training = False

    @contextmanager
    def _own_folder(self) -> Iterator[None]:
        """Hold the folder for the length of the block; it fails on all processes where it fails on one."""
        in_use = unwritable = ""
        if self._writes:
            try:
                self._lock = RunLock.take(Path(self._run_dir), say=logger.warning)
            except FolderInUseError as error:
                in_use = str(error)
            except OSError as error:
                unwritable = f"output_dir={self._run_dir!r} cannot be written to: {error}"
        try:
            if in_use := _first_of_all_processes(in_use):
                raise FolderInUseError(in_use)
            unwritable = _first_of_all_processes(unwritable)
            if unwritable and self._must_write:
                raise OSError(f"{unwritable}. Give another folder, or set save_strategy='no'.")
            if unwritable:
                logger.warning("%s. It is not locked, and other runs can use it.", unwritable)
            yield
        finally:
            if self._lock is not None:
                self._lock.release()
                self._lock = None

    # ---------------------------------------------------------------- reading

    def newest_whole(self) -> str | None:
        """Return the checkpoint with the highest step that is whole, None where there is none.

        Each that is passed over is logged with the file that is wrong.
        """
        chosen = newest_whole(Path(self._run_dir), self._flaw)
        if self._writes:
            for reason in chosen.passed_over:
                logger.warning(reason)
        self._known_whole = str(chosen.folder) if chosen.folder else None
        return self._known_whole

    def _none_is_whole(self) -> bool:
        """Return what makes `Trainer` say that there is no checkpoint; raise where there are, and none is whole."""
        if found := checkpoints_in(Path(self._run_dir)):
            newest = found[-1][1]
            flaw = f"no checkpoint beside it is whole, and {self._flaw(newest)}"
            raise BrokenCheckpointError(remedy(newest, flaw))
        return True

    def _flaw(self, folder: Path, *, to_resume: bool = True) -> str:
        """Return what is wrong with a checkpoint; the processes that wrote it read it, and all learn of it."""
        return _first_of_all_processes(flaw_of(folder, to_resume=to_resume) if self._writes else "")

    def check_whole(self, folder: str, *, to_resume: bool = True) -> None:
        """Raise BrokenCheckpointError unless a checkpoint is whole; without `to_resume`, its model is enough."""
        if folder != self._known_whole and (flaw := self._flaw(Path(folder), to_resume=to_resume)):
            raise BrokenCheckpointError(remedy(Path(folder), flaw))

    def check(self, folder: str) -> None:
        """Raise unless a checkpoint is whole and every part can resume from it."""
        self.check_whole(folder)
        for part in self.parts:
            part.check(Path(folder))

    def load(self, folder: str | None) -> None:
        """Let every part load from a checkpoint, if any; weights and optimizer are loaded."""
        for part in self.parts if folder is not None else ():
            part.load(Path(str(folder)), self._accelerator.process_index, self._accelerator.device)

    # ---------------------------------------------------------------- writing

    @contextmanager
    def staging(self, state: TrainerState) -> Iterator[str]:
        """Give the folder into which the block writes transformers' part; then add the others and publish the whole.

        Args:
            state: of the step that is saved; learns where the best checkpoint lies.

        Raises:
            OSError: it could not be written; the checkpoints before it are whole.
            FolderInUseError: another run has taken the folder.
        """
        run_dir, name = self._run_dir, f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        if self._lock is not None:
            self._lock.check()
        with explained_failure(run_dir, name, clears=self._writes):
            if self._writes:
                clear_staging(run_dir)
            self._accelerator.wait_for_everyone()
            yield staging_folder(run_dir)
            staged = Path(staging_folder(run_dir)) / name
            for part in self.parts:
                part.save(staged, self._accelerator.process_index, writes=self._writes)
            if self._name_best(state, staged=name) and self._writes:
                state.save_to_json(str(staged / TRAINER_STATE_NAME))
            self._accelerator.wait_for_everyone()
            if self._manifest is not None:
                self._manifest.write(staged)
            if self._writes:
                publish(run_dir, name)
                best = Path(state.best_model_checkpoint or "")
                is_here = best.parent.resolve() == Path(run_dir).resolve()
                # Only now may older checkpoints go.
                rotate_checkpoints(
                    run_dir, self._limit, state.global_step, state.best_global_step if is_here else None
                )
            self._accelerator.wait_for_everyone()
        self._last_saved_step = state.global_step

    def path_of(self, step: int) -> str:
        """Return the folder of a step's checkpoint."""
        return os.path.join(self._run_dir, f"{PREFIX_CHECKPOINT_DIR}-{step}")

    def _name_best(self, state: TrainerState, staged: str = "") -> bool:
        """Point to the best checkpoint where it lies, or is about to; return whether there is one to load."""
        if not state.best_global_step:
            return False
        best = self.path_of(state.best_global_step)
        is_found = os.path.basename(best) == staged or os.path.isdir(best)
        if is_found:
            state.best_model_checkpoint = best
        return is_found

    def find_best(self, state: TrainerState) -> None:
        """Point to the best checkpoint of a run whose folder was moved; warn where it was not moved along."""
        is_lost = state.best_global_step and not state.best_model_checkpoint
        if is_lost and not self._name_best(state):
            logger.warning(
                "The best checkpoint, of step %d, is not in %s: the last model stays.",
                state.best_global_step,
                self._run_dir,
            )

    # ---------------------------------------------------------------- the end of a step

    def puts_off(self, step: int) -> bool:
        """Return whether a checkpoint that is asked for now has to wait, and keep it in mind then.

        Args:
            step: optimizer steps taken.

        Raises:
            RuntimeError: training has ended inside an optimizer step.
        """
        if not self._boundary.is_inside:
            return False
        if not self._is_training:
            raise RuntimeError(
                f"No checkpoint can be written: training ended inside the optimizer step after step {step}, when "
                "rollouts were partly used and gradients not yet taken. Resume from the last checkpoint; "
                "`save_model` saves the weights."
            )
        logger.info("The checkpoint asked for in the step after %d is written at the end of that step.", step)
        self._boundary.save_is_due = True
        return True

    def is_due(self, state: TrainerState, control: TrainerControl) -> bool:
        """Return, at the end of a step, whether a checkpoint was put off to here; after a signal, stop the run too."""
        if self._boundary.is_inside:  # stopped inside the step, by a callback that came after all others
            return False
        preemption = self._boundary.preemption
        if preemption is not None and preemption.take(self._accelerator.device):
            self._boundary.save_is_due = control.should_training_stop = True
        is_due, self._boundary.save_is_due = self._boundary.save_is_due, False
        return is_due and self._last_saved_step != state.global_step


def _first_of_all_processes(text: str) -> str:
    """Return the first text of any process that is not empty."""
    return next(filter(None, gather_object([text])), "")
