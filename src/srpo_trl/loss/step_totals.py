"""Counts and sums that both branches divide by, exact over one optimizer step (SRPO, sections 3.2 and 3.3).

The window is every micro-batch of the step on every process. Dividing a micro-batch by its own counts instead is
wrong whenever micro-batches differ in length.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from srpo_trl.loss.token_weights import entropy_weights, raw_entropy_weights
from srpo_trl.rollout.batch import RoutedBatch


class WindowTotals(NamedTuple):
    """Totals of one optimizer step, () float64 each."""

    num_routed_tokens: Tensor
    num_distilled_tokens: Tensor
    sum_raw_weights: Tensor

    @property
    def mean_unnormalized_weight(self) -> Tensor:
        """Mean of w~ over Omega; 1 where Omega is empty."""
        count = self.num_distilled_tokens
        return torch.where(count > 0, self.sum_raw_weights / count.clamp(min=1), torch.ones_like(count))


def window_totals(
    micro_batches: Sequence[RoutedBatch], beta: float, sum_over_processes: Callable[[Tensor], Tensor]
) -> WindowTotals:
    """Return the totals of an optimizer step.

    Args:
        micro_batches: all of this process's.
        beta: sharpness of the entropy weights.
        sum_over_processes: adds a tensor over all processes; called exactly once.
    """
    local = torch.stack([_local_totals(batch, beta) for batch in micro_batches]).sum(0)
    return WindowTotals(*sum_over_processes(local).unbind())


def _local_totals(batch: RoutedBatch, beta: float) -> Tensor:
    distilled_BT = batch.distilled_BT
    raw_weights_BT = raw_entropy_weights(batch.teacher_entropy_BT, beta) * distilled_BT
    return torch.stack(
        [
            batch.routed_BT.sum(dtype=torch.float64),
            distilled_BT.sum(dtype=torch.float64),
            raw_weights_BT.sum(dtype=torch.float64),
        ]
    )


def distillation_coefficients(
    batch: RoutedBatch, totals: WindowTotals, beta: float, branch_weight: float, num_processes: int
) -> Tensor:
    """Return what multiplies each distilled token's divergence, before the importance clip.

        coefficient_it = branch_weight * w_it * sampler_ratio_it / (num_routed_tokens / num_processes)

    The division by the number of processes undoes the averaging of gradients over processes.

    Args:
        batch: this micro-batch.
        totals: of the optimizer step.
        beta: sharpness of the entropy weights.
        branch_weight: 1, or `1 - lambda` of the advantage mix.
        num_processes: that average their gradients.
    Returns:
        (N,) float64, packed row by row.
    """
    distilled_BT = batch.distilled_BT
    weights_BT = entropy_weights(batch.teacher_entropy_BT, beta, totals.mean_unnormalized_weight)
    if batch.sampler_ratio_BT is not None:
        weights_BT = weights_BT * batch.sampler_ratio_BT
    denominator = totals.num_routed_tokens.clamp(min=1) / num_processes
    return branch_weight * weights_BT[distilled_BT] / denominator
