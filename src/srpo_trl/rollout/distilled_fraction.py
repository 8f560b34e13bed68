"""The fraction of the rollouts that need a teacher which get one, over a run.

A rollout that gets none is routed as one for which there is nothing to show (m_i = 0): with SRPO a share of 0 is
GRPO.

Shapes: B rollouts of all processes, in order.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

_ACCURACY_RATE = (
    0.1  # of the running mean; a rollout batch of the paper's size has a standard error near 0.03
)
_LOWERED_BY = 0.5


def scheduled_share(step: int, hold_steps: int, decay_steps: int | None) -> float:
    """Return the share at an optimizer step: 1 for `hold_steps`, then linearly to 0 over `decay_steps`.

    share(step) = clip(1 - (step - hold) / decay, 0, 1);   1 without `decay_steps`
    """
    if decay_steps is None:
        return 1.0
    return min(1.0, max(0.0, 1.0 - (step - hold_steps) / decay_steps))


def sample_fraction(num_rollouts: int, share: float, seed: int, step: int) -> Tensor:
    """Return which rollouts are within the share, (B,) bool on the CPU, each with probability `share`.

    It depends on the seed, the optimizer step and the rollout's place alone, so every process draws the same.
    """
    generator = torch.Generator().manual_seed((seed << 32) + step)
    return torch.rand(num_rollouts, generator=generator, dtype=torch.float64) < share


@dataclass
class DistilledFraction:
    """The share in force, from the schedule, the accuracy reached and what a guard has taken away.

    Attributes:
        hold_steps, decay_steps: see `scheduled_share`.
        until_accuracy: the share is 0 once the running mean of the accuracy has reached this; None: never.
        accuracy: running mean of the share of correct rollouts; None before the first rollout batch.
        is_over: `until_accuracy` was reached.
        factor: multiplies the share; a guard lowers it.
    """

    hold_steps: int
    decay_steps: int | None
    until_accuracy: float | None
    accuracy: float | None = None
    is_over: bool = False
    factor: float = 1.0

    def at(self, step: int) -> float:
        """Return the share at an optimizer step, from 0 to 1."""
        return 0.0 if self.is_over else self.factor * scheduled_share(step, self.hold_steps, self.decay_steps)

    def observe(self, accuracy: float) -> None:
        """Take the share of correct rollouts of one rollout batch, of all processes."""
        earlier = accuracy if self.accuracy is None else self.accuracy
        self.accuracy = (1.0 - _ACCURACY_RATE) * earlier + _ACCURACY_RATE * accuracy
        if self.until_accuracy is not None and self.accuracy >= self.until_accuracy:
            self.is_over = True

    def lower(self) -> None:
        """Halve the share for the rest of the run."""
        self.factor *= _LOWERED_BY

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must hold; options are not part of it."""
        return {name: asdict(self)[name] for name in ("accuracy", "is_over", "factor")}

    def restore(self, state: dict[str, Any]) -> None:
        """Take what `state` returned."""
        self.accuracy, self.is_over, self.factor = state["accuracy"], state["is_over"], state["factor"]
