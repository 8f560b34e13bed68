"""What multiplies each distilled token's divergence, from a method and the totals of an optimizer step.

Legend: B rows of a micro-batch, T completion positions, N distilled tokens packed row by row.
"""

from collections.abc import Callable, Sequence

from torch import Tensor

from srpo_trl.loss.step_totals import WindowTotals, distillation_coefficients, local_totals, window_totals
from srpo_trl.loss.token_weights import mean_one_weights
from srpo_trl.methods.record import Method
from srpo_trl.rollout.batch import RoutedBatch


def step_totals(
    micro_batches: Sequence[RoutedBatch],
    method: Method,
    step: int,
    sum_over_processes: Callable[[Tensor], Tensor],
) -> WindowTotals:
    """Return the totals of the optimizer step after `step` others; one reduction over all processes."""
    local = [
        local_totals(routed.routed_BT, routed.distilled_BT, method.raw_weights(routed.tokens(step)))
        for routed in micro_batches
    ]
    return window_totals(local, sum_over_processes)


def token_weights(routed: RoutedBatch, method: Method, step: int, totals: WindowTotals) -> Tensor:
    """Return w of each token, (B, T): mean 1 over the distilled tokens of the step, or as the method has it."""
    raw_weight_BT = method.raw_weights(routed.tokens(step))
    if not method.mean_one:
        return raw_weight_BT.to(routed.teacher_entropy_BT.dtype)
    return mean_one_weights(raw_weight_BT, totals.mean_unnormalized_weight, routed.teacher_entropy_BT.dtype)


def coefficients(
    routed: RoutedBatch, method: Method, step: int, totals: WindowTotals, num_processes: int
) -> Tensor:
    """Return strength x w x the sampler's ratio, over the tokens of the step that one process trains, (N,)."""
    weight_N = token_weights(routed, method, step, totals)[routed.distilled_BT]
    strength = method.strength(step)
    return distillation_coefficients(weight_N, routed.sampler_ratio_N, totals, strength, num_processes)
