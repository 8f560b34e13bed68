"""Columns of TRL's completions table that are known only once a rollout has been trained on.

TRL fills the table when rollouts are made and writes it at the next log. The losses of the steps between know each
rollout's divergence; a number that travels with the rollout, the table's column `rollout`, brings the two together.

Legend: B rows of a micro-batch, T completion positions, N packed distilled tokens (row by row).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from srpo_trl.loss.float64 import beside_float64, float64_device

NUMBER_COLUMN = "rollout"
MEAN_COLUMNS = ("divergence", "teacher_entropy")


class RolloutMeans:
    """Means over the distilled tokens of each rollout of the last rollout batch; nothing waits for the device.

    Args:
        num_rollouts: of a rollout batch, on all processes.
        device: of the losses.
    """

    def __init__(self, num_rollouts: int, device: torch.device) -> None:
        # One more rollout than there are takes the tokens of earlier rollout batches.
        self._sums_3R = torch.zeros(3, num_rollouts + 1, dtype=torch.float64, device=float64_device(device))
        self._first = 0

    def begin(self, first: int) -> None:
        """Forget the rollouts so far: those of the new rollout batch are numbered from `first` on."""
        self._sums_3R.zero_()
        self._first = first

    def add(
        self, rollout_B: Tensor, distilled_BT: Tensor, divergence_N: Tensor, teacher_entropy_BT: Tensor
    ) -> None:
        """Add the tokens of a micro-batch.

        Args:
            rollout_B: int64, number of each row.
            distilled_BT: bool, the N tokens.
            divergence_N: nats.
            teacher_entropy_BT: nats; 0 where not distilled.
        """
        rollout_B, distilled_BT, divergence_N, teacher_entropy_BT = beside_float64(
            (rollout_B, distilled_BT, divergence_N, teacher_entropy_BT), rollout_B.device
        )
        last = self._sums_3R.shape[1] - 1
        column_B = rollout_B - self._first
        column_B = torch.where((column_B >= 0) & (column_B < last), column_B, last)
        num_tokens_B = distilled_BT.sum(1)
        column_N = column_B.repeat_interleave(num_tokens_B, output_size=len(divergence_N))
        divergence, entropy, count = self._sums_3R
        divergence.index_add_(0, column_N, divergence_N.double())
        entropy.index_add_(0, column_B, teacher_entropy_BT.double().sum(1))
        count.index_add_(0, column_B, num_tokens_B.double())

    def columns(
        self, rollouts: Sequence[int | None], sum_over_processes: Callable[[Tensor], Tensor]
    ) -> dict[str, list[float | None]]:
        """Return the columns of a table with these rollouts; None where one has not been distilled, or not yet.

        Args:
            rollouts: number of each row of the table; None where it was not made for training.
            sum_over_processes: adds a tensor over all processes; called exactly once.
        """
        divergences, entropies, counts = sum_over_processes(self._sums_3R)[:, :-1].tolist()
        means: dict[int | None, tuple[float, float]] = {
            self._first + column: (divergences[column] / count, entropies[column] / count)
            for column, count in enumerate(counts)
            if count
        }
        pairs = [means.get(rollout, (None, None)) for rollout in rollouts]
        return {name: [pair[i] for pair in pairs] for i, name in enumerate(MEAN_COLUMNS)}
