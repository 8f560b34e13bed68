"""Rollout batches, counted in micro-batches, and what becomes of the count in a run resumed with other options.

TRL counts micro-batches over the whole run and generates before each whose number is a multiple of
`steps_per_generation * num_iterations`. An optimizer step takes `gradient_accumulation_steps` of them, so it can end
inside a rollout batch, or end several.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

_OF_ROLLOUTS_IN_USE = (  # saved rollouts are laid out by them
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "steps_per_generation",
    "num_iterations",
    "num_processes",
)


@dataclass(frozen=True)
class BatchOptions:
    """What micro-batches, rollout batches and the position in the data are counted in, named as the options.

    Attributes:
        method: with its options and router, where these are given; a run has one.
        num_prompts: rows of the training data; None for a stream.
    """

    method: str
    per_device_train_batch_size: int
    gradient_accumulation_steps: int
    steps_per_generation: int
    num_iterations: int
    num_generations: int
    num_processes: int
    num_prompts: int | None

    @classmethod
    def of(cls, args: Any, num_generations: int, num_processes: int, train_dataset: Any) -> "BatchOptions":
        """Return those of an `SRPOConfig`; G, processes and rows are what TRL, the launch and the data have."""
        return cls(
            args.method_name,
            args.per_device_train_batch_size,
            args.gradient_accumulation_steps,
            args.steps_per_generation,
            args.num_iterations,
            num_generations,
            num_processes,
            len(train_dataset) if hasattr(train_dataset, "__len__") else None,
        )

    @property
    def micro_batches_per_rollout_batch(self) -> int:
        """How many micro-batches in a row are slices of one rollout batch; slices repeat with `num_iterations`."""
        return self.steps_per_generation * self.num_iterations

    def differing(self, other: "BatchOptions", names: Sequence[str] | None = None) -> tuple[str, str]:
        """Return the differing options, of `names` where given, as "name=value, ..." of each of the two."""
        own, others = asdict(self), asdict(other)
        different = [name for name in names or own if own[name] != others[name]]
        return _written(own, different), _written(others, different)


def _written(options: dict[str, Any], names: Sequence[str]) -> str:
    return ", ".join(f"{name}={options[name]!r}" for name in names)


class RolloutBatchCounter:
    """The rollout batches of a run, by the number of micro-batches trained on.

    Args:
        micro_batches_each: micro-batches of a rollout batch, `BatchOptions.micro_batches_per_rollout_batch`.

    Attributes:
        num_rollouts: generated so far, on all processes; gives each rollout of a run a number of its own.
        num_steps: optimizer steps counted here, those of all calls of `train`, since the last resume.
    """

    def __init__(self, micro_batches_each: int) -> None:
        self._micro_batches_each = micro_batches_each
        self._num_taken = self.num_rollouts = self.num_steps = 0

    def resume(self, num_micro_batches: int, num_rollouts: int) -> None:
        """Count on from a checkpoint, after so many micro-batches and rollouts."""
        self._num_taken = num_micro_batches // self._micro_batches_each
        self.num_rollouts, self.num_steps = num_rollouts, 0

    def number_of(self, micro_batch: int) -> int:
        """Return the number, from 0, of the rollout batch that a micro-batch, counted from 0, belongs to."""
        return micro_batch // self._micro_batches_each

    def is_under_way(self, num_micro_batches: int) -> bool:
        """Return whether, after so many micro-batches, a rollout batch is still to be trained on."""
        return num_micro_batches % self._micro_batches_each != 0

    def take_complete(self, num_micro_batches: int) -> int:
        """Return how many rollout batches an optimizer step has completed, after so many micro-batches."""
        self.num_steps += 1
        num_complete = num_micro_batches // self._micro_batches_each
        num_new, self._num_taken = num_complete - self._num_taken, num_complete
        return num_new

    def take_rollouts(self, number: int) -> int:
        """Count newly generated rollouts of all processes, and return the number of the first one."""
        first, self.num_rollouts = self.num_rollouts, self.num_rollouts + number
        return first


def resume_problem(saved: BatchOptions, now: BatchOptions, *, has_rollouts: bool) -> str:
    """Return why a run cannot resume under other options; empty where it can.

    Args:
        saved: that the checkpoint was counted in.
        now: of this launch.
        has_rollouts: the checkpoint holds the rest of a rollout batch.
    """
    if saved.method != now.method:
        return method_problem(saved.method, now.method)
    before, after = saved.differing(now, _OF_ROLLOUTS_IN_USE)
    if not has_rollouts or not before:
        return ""
    return (
        f"lies inside a rollout batch, whose rest was saved under {before}, and cannot be resumed under {after}. "
        "Resume with the options as they were, or from a checkpoint at the end of a rollout batch."
    )


def method_problem(saved: str, now: str) -> str:
    """Return why a run cannot resume with another method; names are those of `SRPOConfig.method_name`."""
    return (
        f"was trained with method={saved!r} and cannot be resumed with method={now!r}. Resume with method, "
        "method_options and routing as they were, or start a new run from the checkpoint's model."
    )


def resume_note(saved: BatchOptions, now: BatchOptions, num_complete: int) -> str:
    """Return the warning for a run that resumes under other options; empty where they are the same."""
    before, after = saved.differing(now)
    return before and (
        f"The checkpoint was written under {before}; the run resumes under {after}, after {num_complete} rollout "
        "batches. The learning rate's schedule and the position in the data follow from the optimizer steps."
    )


def resumed_micro_batches(
    num_micro_batches: int, saved: BatchOptions, now: BatchOptions, *, has_rollouts: bool
) -> int:
    """Return TRL's count of micro-batches for a resumed run: as many complete rollout batches, in today's options.

    A rollout batch whose rest was not saved is started over.

    Args:
        num_micro_batches: trained on when the checkpoint was written.
        saved: that they were counted in.
        now: of this launch.
        has_rollouts: the checkpoint holds the rest of a rollout batch, so the options of the count are the same.
    """
    if has_rollouts:
        return num_micro_batches
    num_complete = num_micro_batches // saved.micro_batches_per_rollout_batch
    return num_complete * now.micro_batches_per_rollout_batch


def next_of_epoch(num_skipped: int, num_micro_batches: int, micro_batches_each: int) -> int:
    """Return which rollout batch of the epoch's data, from 0, will be the next that is generated from.

    Args:
        num_skipped: micro-batches of the epoch that a resumed run passes over.
        num_micro_batches: trained on so far in the run; decides when TRL generates.
        micro_batches_each: micro-batches of a rollout batch.
    """
    until_next_generation = -num_micro_batches % micro_batches_each
    return (num_skipped + until_next_generation) // micro_batches_each
