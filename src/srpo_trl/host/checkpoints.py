"""What SRPO adds to a checkpoint, and how a checkpoint becomes visible: whole, or not at all.

`Trainer` writes a checkpoint file by file into its final folder, so a run killed in the middle of a save leaves a
folder that looks like the last checkpoint and is not one. Here every process writes into a staging folder, which
takes its final name in one rename after the last file, the list of all the others (`manifest`).
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, send_to_device
from safetensors import SafetensorError
from torch import Tensor

from srpo_trl.host.manifest import checkpoints_in, expendable
from srpo_trl.host.write_failures import cause_of
from srpo_trl.rollout.batch_counter import BatchOptions, resume_problem

STATE_FILE = "srpo_state.json"
STAGING_FOLDER = ".saving"
_ROLLOUTS_FILE = "srpo_rollouts_rank{rank}.pt"
_REPLACED, _REMOVED = ".replaced", ".removed"


@dataclass
class RunState:
    """Counters of a run that TRL does not save.

    Attributes:
        micro_step: training micro-batches so far; decides when the next rollouts are generated.
        counted_in: what they are counted in.
        num_rollouts: generated so far, on all processes.
        engine: that wrote it: "FSDP", "DEEPSPEED", or "" for whole files, as one process and DDP write them.
        has_rollouts: the checkpoint lies inside a rollout batch, whose rest is saved beside it.
        distilled_fraction: `DistilledFraction.state`.
        correctness: `CorrectnessWatch.state`.
        prompts: `ResumableRepeatSampler.state`; None for an iterable data set.
    """

    micro_step: int
    counted_in: BatchOptions
    num_rollouts: int
    engine: str
    has_rollouts: bool
    distilled_fraction: dict[str, Any]
    correctness: dict[str, Any]
    prompts: dict[str, Any] | None

    def check(self, folder: Path, accelerator: Accelerator, options: BatchOptions) -> None:
        """Raise ValueError where this launch cannot go on from the checkpoint.

        Another engine does not find the optimizer's state, and `Trainer` would begin with a new one; rollouts saved
        under other batch options would have to be shared out anew.
        """
        engine = engine_of(accelerator)
        if self.engine != engine:
            raise ValueError(
                f"{folder} was written under {self.engine or 'one process or DDP'} and cannot be resumed under "
                f"{engine or 'one process or DDP'}, which does not read its optimizer's state. Launch as before, "
                "or start a new run from the checkpoint's model."
            )
        problem = resume_problem(self.counted_in, options, has_rollouts=self.has_rollouts)
        if problem:
            raise ValueError(f"{folder} {problem}")


def engine_of(accelerator: Accelerator) -> str:
    """Return the engine that writes checkpoints in its own way; empty where `Trainer` writes whole files."""
    kind = accelerator.distributed_type
    return kind.value if kind in (DistributedType.FSDP, DistributedType.DEEPSPEED) else ""


class SavedRollouts(NamedTuple):
    """This process's rollouts that are still to be trained on.

    Attributes:
        batches: TRL's micro-batches.
        head: weight and bias that their teacher's hidden states are projected with; None: the present teacher's.
    """

    batches: list[dict[str, Any]]
    head: tuple[Tensor, Tensor | None] | None


def save_state(folder: Path, state: RunState) -> None:
    """Write the counters to `STATE_FILE`."""
    (folder / STATE_FILE).write_text(json.dumps(asdict(state), indent=2) + "\n", encoding="utf-8")


def load_state(folder: Path) -> RunState:
    """Read the counters.

    Raises:
        FileNotFoundError: the checkpoint was not written by SRPOTrainer.
        ValueError: it was written by another version.
    """
    path = folder / STATE_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: the checkpoint was not written by SRPOTrainer with a method other than 'grpo'. "
            "Resume from one that was, or start a new run from this one by passing it as `model`."
        )
    saved = json.loads(path.read_text(encoding="utf-8"))
    _refuse_other_fields(path, saved, RunState)
    _refuse_other_fields(path, saved["counted_in"], BatchOptions)
    return RunState(**saved | {"counted_in": BatchOptions(**saved["counted_in"])})


def _refuse_other_fields(path: Path, saved: dict[str, Any], kind: type) -> None:
    """Raise ValueError unless the saved fields are those of a dataclass."""
    expected = {field.name for field in fields(kind)}
    missing, unknown = sorted(expected - set(saved)), sorted(set(saved) - expected)
    if missing or unknown:
        raise ValueError(
            f"{path} was written by another version of srpo-trl: without {missing or 'nothing missing'}, with "
            f"{unknown or 'nothing unknown'}. Resume with that version, or start a new run from the checkpoint's model "
            "by passing it as `model`."
        )


def save_rollouts(folder: Path, rank: int, rollouts: SavedRollouts) -> None:
    """Write one process's rollouts."""
    torch.save(tuple(rollouts), folder / _ROLLOUTS_FILE.format(rank=rank))


def load_rollouts(folder: Path, rank: int, device: torch.device) -> SavedRollouts:
    """Read one process's rollouts; plain tensors and lists only, never pickled code."""
    saved = torch.load(folder / _ROLLOUTS_FILE.format(rank=rank), map_location="cpu", weights_only=True)
    return SavedRollouts(*send_to_device(saved, device))


def staging_folder(run_dir: str) -> str:
    """Return the folder inside which checkpoints are written before they take their final name."""
    return os.path.join(run_dir, STAGING_FOLDER)


def unwritable(folder: str) -> str:
    """Return why nothing can be written below a folder, which need not exist yet; empty where it can."""
    path = Path(folder).absolute()
    existing = next(place for place in (path, *path.parents) if place.exists())
    if not existing.is_dir():
        return f"{existing} is a file"
    return "" if os.access(existing, os.W_OK | os.X_OK) else f"{existing} is read-only"


@contextmanager
def explained_failure(run_dir: str, name: str, *, clears: bool) -> Iterator[None]:
    """Say, where the block fails to write a checkpoint, what that means; with `clears`, remove what it has written.

    Raises:
        OSError: in place of the many errors that a full or broken disk shows itself in.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # Python's, torch.save's, and safetensors'
        free = f", where {shutil.disk_usage(run_dir).free} bytes are free" if os.path.isdir(run_dir) else ""
        number, cause = cause_of(error, run_dir)
        if clears:
            with suppress(OSError):
                clear_staging(run_dir)
        reason = f"{cause.reason} ({error})" if cause.reason else str(error)
        explained = OSError(
            f"{name} could not be written into {run_dir}{free}: {reason}\nThe checkpoints before it are "
            f"whole. {cause.what_to_do}, then go on from the last one with resume_from_checkpoint."
        )
        explained.errno = number
        raise explained from error


def restore_replaced(run_dir: str) -> None:
    """Give a checkpoint its name back that a save, killed in the middle of replacing it, had set aside."""
    for replaced in Path(staging_folder(run_dir)).glob(f"*{_REPLACED}"):
        final = Path(run_dir) / replaced.name.removesuffix(_REPLACED)
        if not final.exists():
            replaced.rename(final)


def clear_staging(run_dir: str) -> None:
    """Remove what a killed save left behind, but a checkpoint that it had set aside."""
    restore_replaced(run_dir)
    shutil.rmtree(staging_folder(run_dir), ignore_errors=True)


def publish(run_dir: str, name: str) -> str:
    """Give a staged checkpoint its final name, in one step, and return its path.

    An older checkpoint of the same name is set aside first and removed last.
    """
    staged, final = os.path.join(staging_folder(run_dir), name), os.path.join(run_dir, name)
    replaced = os.path.join(staging_folder(run_dir), name + _REPLACED)
    _sync_to_disk(staged)
    if os.path.exists(final):
        os.rename(final, replaced)
    os.rename(staged, final)
    clear_staging(run_dir)
    return final


def rotate_checkpoints(run_dir: str, limit: int | None, current: int, best: int | None) -> None:
    """Remove the oldest checkpoints beyond `save_total_limit`, by their steps; a clock has no say in it.

    Each leaves its name before its first file goes, so that a run killed meanwhile leaves no half of one. Neither that
    of step `current`, which was just written, nor the best goes.
    """
    folders = dict(checkpoints_in(Path(run_dir)))
    for step in expendable(list(folders), limit, current, best):
        removed = Path(staging_folder(run_dir)) / (folders[step].name + _REMOVED)
        with suppress(OSError):  # as transformers, which passes over what it cannot remove
            removed.parent.mkdir(exist_ok=True)
            folders[step].rename(removed)
            shutil.rmtree(removed, ignore_errors=True)
    clear_staging(run_dir)


def _sync_to_disk(folder: str) -> None:
    """Flush every file of the folder, so that the rename never outlives the contents in a power cut."""
    for root, _folders, files in os.walk(folder):
        for file in files:
            descriptor = os.open(os.path.join(root, file), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
