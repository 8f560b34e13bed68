"""The order of prompts, so that a resumed run meets the prompts that it would have met."""

import torch
from torch.utils.data import Sampler

from srpo_trl.trl_seams import RepeatSampler


class ResumableRepeatSampler(RepeatSampler):
    """TRL's sampler, which shuffles anew in every epoch, able to start at a later one.

    TRL's own starts a resumed run with the first epoch's order, whatever the epoch.
    """

    @classmethod
    def like(cls, sampler: Sampler) -> "ResumableRepeatSampler":
        """Return one of the same arguments as TRL's."""
        assert isinstance(sampler, RepeatSampler)
        return cls(
            sampler.data_source,
            mini_repeat_count=sampler.mini_repeat_count,
            batch_size=sampler.batch_size,
            repeat_count=sampler.repeat_count,
            shuffle=sampler.shuffle,
            seed=sampler.seed,
        )

    def set_epoch(self, epoch: int) -> None:
        """Let the next pass over the data have the order of this epoch, counted from 0, of an uninterrupted run."""
        if self.shuffle:
            self.generator.manual_seed(self.seed or 0)
            for _ in range(epoch):
                torch.randperm(self.num_samples, generator=self.generator)
