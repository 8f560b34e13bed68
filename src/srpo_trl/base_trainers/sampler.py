"""The order of prompts: that of an uninterrupted run after a resume, and again those whose group failed as a whole."""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler

from srpo_trl.trl_seams import RepeatSampler


class ResumableRepeatSampler(RepeatSampler):
    """TRL's sampler, which shuffles anew in every epoch, able to start at a later one and to draw prompts again.

    TRL's own starts a resumed run with the first epoch's order, whatever the epoch.

    Every process draws the same, so `report` must be called alike on all of them. A prompt that is drawn again takes
    the place of one at the end of the epoch, whose length stays.

    Attributes:
        max_again: prompts of one rollout batch that may be repeated ones.
    """

    max_again = 0
    _drawn: list[list[int]]  # prompts of each rollout batch of this epoch
    _num_again: list[int]  # how many of them, the first ones, were drawn again
    _num_reported: int  # rollout batches of this epoch whose outcome is known
    _waiting: deque[int]  # prompts to draw again
    _replayed: list[list[int]]  # repeated prompts of the rollout batches before a resume inside an epoch
    _num_reported_before: int

    @classmethod
    def like(cls, sampler: Sampler) -> "ResumableRepeatSampler":
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
        made._drawn, made._num_again, made._num_reported = [], [], 0
        made._waiting, made._replayed, made._num_reported_before = deque(), [], 0
        return made

    def set_epoch(self, epoch: int) -> None:
        """Let the next pass over the data have the order of this epoch, counted from 0, of an uninterrupted run."""
        if self.shuffle:
            self.generator.manual_seed(self.seed or 0)
            for _ in range(epoch):
                torch.randperm(self.num_samples, generator=self.generator)

    def report(self, has_failed_P: Sequence[bool]) -> None:
        """Take the outcome of the epoch's next rollout batch: failed prompts come once more, repeated ones do not."""
        prompts, num_again = self._drawn[self._num_reported], self._num_again[self._num_reported]
        self._num_reported += 1
        for place, (prompt, has_failed) in enumerate(zip(prompts, has_failed_P, strict=True)):
            if self.max_again and has_failed and place >= num_again:
                self._waiting.append(prompt)

    def state(self, *, is_inside_epoch: bool) -> dict[str, Any]:
        """Return what a resume needs: what was repeated in this epoch, what waits, and how much is known."""
        waiting = list(self._waiting)
        if not is_inside_epoch:
            return {"again": [], "waiting": waiting, "num_reported": 0}
        again = [prompts[:count] for prompts, count in zip(self._drawn, self._num_again, strict=True)]
        return {"again": again, "waiting": waiting, "num_reported": self._num_reported}

    def restore(self, state: dict[str, Any]) -> None:
        """Take what `state` returned, for the pass over the data that follows."""
        self._replayed, self._waiting = [*state["again"]], deque(state["waiting"])
        self._num_reported_before = state["num_reported"]

    def __iter__(self) -> Iterator[int]:
        """Yield row numbers as TRL's sampler does: each prompt of a rollout batch G times, the whole so many times."""
        order = (
            torch.randperm(self.num_samples, generator=self.generator).tolist()
            if self.shuffle
            else list(range(self.num_samples))
        )
        self._drawn, self._num_again = [], []
        self._num_reported, self._num_reported_before = self._num_reported_before, 0
        for _ in range(self.num_samples // self.batch_size):
            again = self._replayed.pop(0) if self._replayed else self._next_again()
            first = sum(map(len, self._drawn)) - sum(self._num_again)
            prompts = again + order[first : first + self.batch_size - len(again)]
            self._drawn.append(prompts)
            self._num_again.append(len(again))
            for _ in range(self.repeat_count):
                for prompt in prompts:
                    yield from [prompt] * self.mini_repeat_count

    def _next_again(self) -> list[int]:
        return [self._waiting.popleft() for _ in range(min(len(self._waiting), self.max_again))]
