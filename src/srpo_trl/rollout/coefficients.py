"""What multiplies each distilled token's divergence, from a method and the totals of an optimizer step.

Legend: B rows of a micro-batch, T completion positions, N distilled tokens packed row by row.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from srpo_trl.loss.float64 import back_from_float64
from srpo_trl.loss.head import TeacherHead
from srpo_trl.loss.step_totals import WindowTotals, distillation_coefficients, local_totals, window_totals
from srpo_trl.loss.student import TeacherSide
from srpo_trl.loss.token_weights import mean_one_weights
from srpo_trl.methods.record import Method, Tokens
from srpo_trl.rollout.batch import RoutedBatch


def step_totals(
    micro_batches: Sequence[RoutedBatch],
    method: Method,
    step: int,
    sum_over_processes: Callable[[Tensor], Tensor],
) -> WindowTotals:
    """Return the totals of the optimizer step after `step` others; one reduction over all processes."""
    local = [
        local_totals(routed.routed_BT, routed.distilled_BT, sum_of_weights(method, routed.tokens(step)))
        for routed in micro_batches
    ]
    return window_totals(local, sum_over_processes)


def sum_of_weights(method: Method, tokens: Tokens) -> Tensor:
    """Return the sum of w~ over the scorers that distil, (B, T) float64."""
    nothing_BT = torch.zeros_like(tokens.mask_BT, dtype=torch.float64)
    first, *others = method.raw_weights(tokens) or (nothing_BT,)
    return sum(others, start=first)


def token_weights(routed: RoutedBatch, method: Method, step: int, totals: WindowTotals) -> tuple[Tensor, ...]:
    """Return w of each token for each scorer that distils, (B, T): mean 1 over the step, or as the method has it."""
    weights, entropy_BT = method.raw_weights(routed.tokens(step)), routed.teacher_entropy_BT
    if not method.mean_one:
        return tuple(raw_BT.to(entropy_BT) for raw_BT in weights)
    mean, dtype = totals.mean_unnormalized_weight, entropy_BT.dtype
    return tuple(
        back_from_float64(mean_one_weights(raw_BT, mean, dtype), entropy_BT.device) for raw_BT in weights
    )


def joint_weight(routed: RoutedBatch, method: Method, step: int, totals: WindowTotals) -> Tensor:
    """Return the sum of w over the scorers that distil, (B, T)."""
    weights = token_weights(routed, method, step, totals)
    return sum(weights, start=torch.zeros_like(routed.teacher_entropy_BT))


def teacher_sides(
    routed: RoutedBatch,
    method: Method,
    step: int,
    totals: WindowTotals,
    num_processes: int,
    head_of: Callable[[str], TeacherHead],
) -> list[TeacherSide]:
    """Return each scorer's side of a micro-batch's distilled tokens.

    The coefficients are strength x w x the sampler's ratio, over the tokens of the step that one process trains.
    """
    strength, distilled_BT = method.strength(step), routed.distilled_BT
    weights = token_weights(routed, method, step, totals)
    return [
        TeacherSide(
            torch.cat(list(scores.hidden)).to(distilled_BT.device, non_blocking=distilled_BT.is_cuda),
            head_of(name),
            distillation_coefficients(
                weight_BT[distilled_BT], routed.sampler_ratio_N, totals, strength, num_processes
            ),
            None if scores.log_sum_exp_BT is None else scores.log_sum_exp_BT[distilled_BT],
        )
        for (name, scores), weight_BT in zip(routed.distilling.items(), weights, strict=True)
    ]
