"""What SRPO adds to a checkpoint: small states in one JSON file, buffered rollouts, and what writes files itself."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, send_to_device

from srpo_trl.host.checkpoints import CheckpointPart
from srpo_trl.rollout.batch_counter import (
    BatchOptions,
    RolloutBatchCounter,
    method_problem,
    resume_note,
    resume_problem,
    resumed_micro_batches,
)

STATE_FILE = "srpo_state.json"
ROLLOUTS_FILE = "srpo_rollouts_rank{rank}.pt"
_OF_COUNTERS = ("micro_step", "counted_in", "num_rollouts", "engine", "has_rollouts")


class Stateful(Protocol):
    """An object whose state can be written as JSON."""

    def state(self) -> Any:
        """Return what a checkpoint must hold."""

    def restore(self, state: Any, /) -> None:
        """Take what `state` returned."""


def engine_of(accelerator: Accelerator) -> str:
    """Return the engine that writes checkpoints in its own way; empty where `Trainer` writes whole files."""
    kind = accelerator.distributed_type
    return kind.value if kind in (DistributedType.FSDP, DistributedType.DEEPSPEED) else ""


@dataclass
class Counters:
    """The counts of a run that TRL does not save, with the options that they are counted in.

    Args:
        counter: of the run; counts on from a checkpoint's.
        options: of this launch.
        step, set_step: TRL's count of micro-batches; decides when the next rollouts are generated.
        engine: `engine_of`.
        saves_rollouts: whether checkpoints hold the buffered rollouts; those of the model alone do not.
        tell: called with a note for the user, which may be empty.
    """

    counter: RolloutBatchCounter
    options: BatchOptions
    step: Callable[[], int]
    set_step: Callable[[int], None]
    engine: str = ""
    saves_rollouts: bool = True
    tell: Callable[[str], None] = lambda note: None

    def is_under_way(self) -> bool:
        """Return whether a rollout batch is still to be trained on; after `restore`, whether its rest was saved."""
        return self.counter.is_under_way(self.step())

    def has_rollouts(self) -> bool:
        """Return whether a checkpoint of now holds rollouts."""
        return self.saves_rollouts and self.is_under_way()

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must hold."""
        return {
            "micro_step": self.step(),
            "counted_in": asdict(self.options),
            "num_rollouts": self.counter.num_rollouts,
            "engine": self.engine,
            "has_rollouts": self.has_rollouts(),
        }

    def check(self, folder: Path, state: dict[str, Any]) -> None:
        """Raise ValueError where this launch cannot resume from the checkpoint in a folder.

        Another engine does not find the optimizer's state, and `Trainer` would begin with a new one; rollouts saved
        under other batch options would have to be shared out anew.
        """
        saved, now = (engine or "one process or DDP" for engine in (state["engine"], self.engine))
        if saved != now:
            raise ValueError(
                f"{folder} was written under {saved} and cannot be resumed under {now}, which does not read its "
                "optimizer's state. Launch as before, or start a new run from the checkpoint's model."
            )
        options = BatchOptions(**state["counted_in"])
        if problem := resume_problem(options, self.options, has_rollouts=state["has_rollouts"]):
            raise ValueError(f"{folder} {problem}")

    def restore(self, state: dict[str, Any]) -> None:
        """Count on where the checkpoint stopped, in today's options."""
        saved, now = BatchOptions(**state["counted_in"]), self.options
        step = resumed_micro_batches(state["micro_step"], saved, now, has_rollouts=state["has_rollouts"])
        self.set_step(step)
        self.counter.resume(step, state["num_rollouts"])
        self.tell(resume_note(saved, now, self.counter.number_of(step)))


class StateFile(CheckpointPart):
    """`STATE_FILE`: the counters, and small states under their names."""

    def __init__(self, counters: Counters, **others: Stateful) -> None:
        self._counters, self._others = counters, others

    def save(self, folder: Path, rank: int, *, writes: bool) -> None:
        """Write the file."""
        if writes:
            state = self._counters.state() | {name: other.state() for name, other in self._others.items()}
            (folder / STATE_FILE).write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")

    def check(self, folder: Path) -> None:
        """Raise where this launch cannot resume from the checkpoint.

        Raises:
            FileNotFoundError: the checkpoint was not written by SRPOTrainer.
            ValueError: it was written by another version, engine or method, or inside a rollout batch under other
                options.
        """
        self._counters.check(folder, self._read(folder))

    def load(self, folder: Path, rank: int, device: torch.device) -> None:
        """Restore every state."""
        state = self._read(folder)
        self._counters.restore(state)
        for name, other in self._others.items():
            other.restore(state[name])

    def _read(self, folder: Path) -> dict[str, Any]:
        path = folder / STATE_FILE
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing: the checkpoint was not written by SRPOTrainer with a method other than 'grpo'. "
                "Resume from one that was, or start a new run from this one by passing it as `model`."
            )
        state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        _refuse_other_fields(path, set(state), {*_OF_COUNTERS, *self._others})
        _refuse_other_fields(path, set(state["counted_in"]), {field.name for field in fields(BatchOptions)})
        return state


@dataclass
class PlainRun(CheckpointPart):
    """Nothing of `GRPOTrainer` itself, whose checkpoints are its own; those of another method are refused.

    Args:
        method: of this launch.
    """

    method: str

    def save(self, folder: Path, rank: int, *, writes: bool) -> None:
        """Add nothing."""

    def check(self, folder: Path) -> None:
        """Raise ValueError where another method wrote the checkpoint."""
        path = folder / STATE_FILE
        if path.is_file():
            saved = json.loads(path.read_text(encoding="utf-8"))["counted_in"]["method"]
            raise ValueError(f"{folder} {method_problem(saved, self.method)}")

    def load(self, folder: Path, rank: int, device: torch.device) -> None:
        """Restore nothing."""


def _refuse_other_fields(path: Path, found: set[str], expected: set[str]) -> None:
    missing, unknown = sorted(expected - found), sorted(found - expected)
    if missing or unknown:
        raise ValueError(
            f"{path} was written by another version of srpo-trl: without {missing or 'nothing missing'}, with "
            f"{unknown or 'nothing unknown'}. Resume with that version, or start a new run from the checkpoint's model "
            "by passing it as `model`."
        )


@dataclass
class BufferedRollouts(CheckpointPart):
    """Each process's rollouts that are still to be trained on; loaded after the counters.

    Args:
        counters: of the run.
        batches, set_batches: TRL's micro-batches of the buffered rollouts, or None.
        past_head: returns weight and bias that their teacher's hidden states are projected with; None: the present
            teacher's.
        restore_head: takes what `past_head` returned; called after the teacher is loaded.
    """

    counters: Counters
    batches: Callable[[], Any]
    set_batches: Callable[[Any], None]
    past_head: Callable[[], Any]
    restore_head: Callable[[Any], None]

    def save(self, folder: Path, rank: int, *, writes: bool) -> None:
        """Write this process's rollouts."""
        if self.counters.has_rollouts():
            batches = self.batches()
            assert batches is not None
            torch.save((batches, self.past_head()), folder / ROLLOUTS_FILE.format(rank=rank))

    def load(self, folder: Path, rank: int, device: torch.device) -> None:
        """Read this process's rollouts; plain tensors and lists only, never pickled code."""
        self.set_batches(None)
        if self.counters.is_under_way():
            path = folder / ROLLOUTS_FILE.format(rank=rank)
            saved = torch.load(path, map_location="cpu", weights_only=True)
            batches, past_head = send_to_device(saved, device)
            self.set_batches(batches)
            self.restore_head(past_head)


class OwnFile(CheckpointPart):
    """A part that writes and reads a file of its own.

    Args:
        save: takes the folder and `writes`; every process calls it.
        load: takes the folder.
    """

    def __init__(self, save: Callable[[Path, bool], None], load: Callable[[Path], None]) -> None:
        self._save, self._load = save, load

    def save(self, folder: Path, rank: int, *, writes: bool) -> None:
        """Write the file."""
        self._save(folder, writes)

    def load(self, folder: Path, rank: int, device: torch.device) -> None:
        """Read the file."""
        self._load(folder)
