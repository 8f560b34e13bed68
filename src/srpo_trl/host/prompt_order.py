"""The order of prompts: an uninterrupted run's after a resume, with those resampled whose whole group failed."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Sampler

from srpo_trl.rollout.batch_counter import next_of_epoch
from srpo_trl.seams.trl import RepeatSampler

_UNKNOWN = -1


class ResumableRepeatSampler(RepeatSampler):
    """TRL's sampler, which shuffles anew in every epoch, able to start at a later one and to resample prompts.

    TRL's own starts a resumed run with the first epoch's order, whatever the epoch.

    Every rank draws the same, so `report` must be called identically on all of them. A resampled prompt takes the place
    of one at the end of the epoch, whose length stays.

    Attributes:
        max_resampled: prompts of one rollout batch that may be resampled ones.
    """

    max_resampled = 0
    _drawn: list[list[int]]  # prompts of each rollout batch of this epoch
    _num_resampled: list[int]  # how many of them, the first ones, were resampled
    _num_reported: int  # rollout batches of this epoch whose outcome is known
    _waiting: deque[int]  # prompts to resample
    _replayed: list[list[int]]  # resampled prompts of the rollout batches before a resume inside an epoch
    _num_reported_before: int  # before a resume; _UNKNOWN: in another layout of the data

    @classmethod
    def like(cls, sampler: Sampler[Any]) -> "ResumableRepeatSampler":
        """Return one of the same arguments as TRL's."""
        assert isinstance(sampler, RepeatSampler)
        made = cls(
            sampler.data_source,
            mini_repeat_count=sampler.mini_repeat_count,
            batch_size=sampler.batch_size,
            repeat_count=sampler.repeat_count,
            shuffle=sampler.shuffle,
            seed=sampler.seed,
        )
        made._drawn, made._num_resampled, made._num_reported = [], [], 0
        made._waiting, made._replayed, made._num_reported_before = deque(), [], 0
        return made

    def set_epoch(self, epoch: int) -> None:
        """Let the next pass over the data have the order of this epoch, counted from 0, of an uninterrupted run."""
        if self.shuffle:
            self.generator.manual_seed(self.seed or 0)
            for _ in range(epoch):
                torch.randperm(self.num_samples, generator=self.generator)

    def start_at(self, batch: int) -> None:
        """Let the outcome that is reported first, in the pass over the data that follows, be of this rollout batch.

        Where that is not where the saved pass stopped, those before it are passed over without resampled prompts.
        """
        if batch != self._num_reported_before:
            self._replayed, self._num_reported_before = [[] for _ in range(batch)], batch

    def report(self, has_failed_P: Sequence[bool]) -> None:
        """Take the outcome of the epoch's next rollout batch: failed prompts are resampled, resampled ones are not."""
        prompts, num_resampled = self._drawn[self._num_reported], self._num_resampled[self._num_reported]
        self._num_reported += 1
        for place, (prompt, has_failed) in enumerate(zip(prompts, has_failed_P, strict=True)):
            if self.max_resampled and has_failed and place >= num_resampled:
                self._waiting.append(prompt)

    def state(self, *, is_inside_epoch: bool) -> dict[str, Any]:
        """Return what a resume needs: what was resampled in this epoch, what waits, and how much is known."""
        resampled = [prompts[:count] for prompts, count in zip(self._drawn, self._num_resampled, strict=True)]
        return {
            "resampled": resampled if is_inside_epoch else [],
            "waiting": list(self._waiting),
            "num_reported": self._num_reported if is_inside_epoch else 0,
            "batch_size": self.batch_size,
            "num_prompts": self.num_samples,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take what `state` returned, for the pass over the data that follows.

        Of other data nothing is taken, since row numbers mean other prompts; with rollout batches of another size,
        only what waits.
        """
        is_same_data = state["num_prompts"] == self.num_samples
        is_same_layout = is_same_data and state["batch_size"] == self.batch_size
        self._waiting = deque(state["waiting"] if is_same_data else ())
        self._replayed = [*state["resampled"]] if is_same_layout else []
        self._num_reported_before = state["num_reported"] if is_same_layout else _UNKNOWN

    def __iter__(self) -> Iterator[int]:
        """Yield row numbers as TRL's sampler does: each prompt of a rollout batch G times, the whole so many times."""
        order = (
            torch.randperm(self.num_samples, generator=self.generator).tolist()
            if self.shuffle
            else list(range(self.num_samples))
        )
        self._drawn, self._num_resampled = [], []
        self._num_reported, self._num_reported_before = self._num_reported_before, 0
        for _ in range(self.num_samples // self.batch_size):
            resampled = self._replayed.pop(0) if self._replayed else self._next_resampled()
            first = sum(map(len, self._drawn)) - sum(self._num_resampled)
            prompts = resampled + order[first : first + self.batch_size - len(resampled)]
            self._drawn.append(prompts)
            self._num_resampled.append(len(resampled))
            for _ in range(self.repeat_count):
                for prompt in prompts:
                    yield from [prompt] * self.mini_repeat_count

    def _next_resampled(self) -> list[int]:
        return [self._waiting.popleft() for _ in range(min(len(self._waiting), self.max_resampled))]


@dataclass
class PromptOrder:
    """The order of a run's prompts, which a checkpoint holds.

    Args:
        micro_batches_each: micro-batches of a rollout batch.
        epoch: returns the epochs trained, with a fraction inside one.
        resampled_frac: largest share of a rollout batch's prompts that may be resampled.

    Attributes:
        sampler: of the training rows; None for an iterable data set, and before training.
    """

    micro_batches_each: int
    epoch: Callable[[], float]
    resampled_frac: float = 0.0
    sampler: ResumableRepeatSampler | None = None

    def sampler_like(self, sampler: Sampler[Any]) -> ResumableRepeatSampler:
        """Return a sampler of the same arguments as TRL's, and keep to it."""
        self.sampler = ResumableRepeatSampler.like(sampler)
        self.sampler.max_resampled = int(self.resampled_frac * self.sampler.batch_size)
        return self.sampler

    def begin_epoch(self, epoch: int, num_skipped: int, num_micro_batches: int) -> None:
        """Let the pass over the data that follows have the order of this epoch.

        Args:
            epoch: counted from 0.
            num_skipped: micro-batches of the epoch that a resumed run passes over.
            num_micro_batches: trained on so far in the run.
        """
        if self.sampler is not None:
            self.sampler.set_epoch(epoch)
            self.sampler.start_at(next_of_epoch(num_skipped, num_micro_batches, self.micro_batches_each))

    def report(self, has_failed_P: Sequence[bool]) -> None:
        """Take the outcome of the epoch's next rollout batch."""
        if self.sampler is not None:
            self.sampler.report(has_failed_P)

    def state(self) -> dict[str, Any] | None:
        """Return what a checkpoint must hold; None without a sampler."""
        epoch = self.epoch()
        return None if self.sampler is None else self.sampler.state(is_inside_epoch=epoch != int(epoch))

    def restore(self, state: dict[str, Any] | None) -> None:
        """Take what `state` returned."""
        if self.sampler is not None and state is not None:
            self.sampler.restore(state)
