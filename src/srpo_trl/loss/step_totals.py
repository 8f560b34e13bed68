"""Counts and sums that both branches divide by, exact over one optimizer step (SRPO, sections 3.2 and 3.3).

The window is every micro-batch of the step on every process. Dividing a micro-batch by its own counts instead is
wrong whenever micro-batches differ in length.

Shapes: B rows of a micro-batch, T completion positions, N its distilled tokens packed row by row.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from srpo_trl.loss.float64 import back_from_float64, sum_in_float64


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


def local_totals(routed_BT: Tensor, distilled_BT: Tensor, raw_weight_BT: Tensor) -> Tensor:
    """Return the counts of one micro-batch of one process, (3,) float64 in the order of `WindowTotals`.

    Args:
        routed_BT: bool, tokens that count in the joint denominator: of every row that is in the loss.
        distilled_BT: bool, tokens of Omega.
        raw_weight_BT: w~, float64; what it holds outside Omega does not count.
    """
    return torch.stack(
        [
            sum_in_float64(routed_BT),
            sum_in_float64(distilled_BT),
            sum_in_float64(raw_weight_BT * distilled_BT.to(raw_weight_BT.device)),
        ]
    )


def window_totals(
    micro_batches: Sequence[Tensor], sum_over_processes: Callable[[Tensor], Tensor]
) -> WindowTotals:
    """Return the totals of an optimizer step.

    Args:
        micro_batches: `local_totals` of all of this process's.
        sum_over_processes: adds a tensor over all processes; called exactly once.
    """
    return WindowTotals(*sum_over_processes(torch.stack(list(micro_batches)).sum(0)).unbind())


def pull_loss(
    pull_BT: Tensor,
    logps_BT: Tensor,
    sampler_ratio_BT: Tensor | None,
    totals: WindowTotals,
    num_processes: int,
) -> Tensor:
    """Return the loss whose gradient is -k grad log pi of each token, outside of any clip.

        L = -sum_it k_it sampler_ratio_it log pi(y_it) / (num_routed_tokens / num_processes)

    Args:
        pull_BT: k, detached; 0 where the policy branch does not train.
        logps_BT: log pi of the student's pass, with its gradient.
        sampler_ratio_BT: pi_old / pi_sampler, broadcastable; None without.
        totals: of the optimizer step.
        num_processes: that average their gradients.
    Returns:
        () in the dtype of the log-probabilities.
    """
    if sampler_ratio_BT is not None:
        pull_BT = pull_BT * sampler_ratio_BT
    denominator = totals.num_routed_tokens.clamp(min=1) / num_processes
    return -(pull_BT * logps_BT).sum() / denominator.to(logps_BT)


def distillation_coefficients(
    weight_N: Tensor,
    sampler_ratio_N: Tensor | None,
    totals: WindowTotals,
    strength: float,
    num_processes: int,
) -> Tensor:
    """Return what multiplies each distilled token's divergence, before the importance clip.

        coefficient_n = strength * w_n * sampler_ratio_n / (num_routed_tokens / num_processes)

    The division by the number of processes undoes the averaging of gradients over processes.

    Args:
        weight_N: w, from `mean_one_weights`.
        sampler_ratio_N: pi_old / pi_sampler of those tokens; None without.
        totals: of the optimizer step.
        strength: of distillation beside the policy loss.
        num_processes: that average their gradients.
    Returns:
        (N,), in the dtype of the weights and ratios.
    """
    if sampler_ratio_N is not None:
        weight_N = weight_N * sampler_ratio_N
    denominator = totals.num_routed_tokens.clamp(min=1) / num_processes
    return strength * weight_N / back_from_float64(denominator, weight_N.device)
