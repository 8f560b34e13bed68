"""The teacher on a support: its log-probabilities at a few tokens, and its mass at all others.

With the log-sum-exp that the teacher's own pass has made, W dot products with gathered rows of its head take the place
of a product with all of it. Its tail is then one minus a sum, which in float32 has an absolute error of some eps times
the log-sum-exp: nothing in most divergences, but reverse KL divides by it. Rows whose loss would feel that are few (the
teacher's tail is far smaller than the student's there) and get the whole product. Where neither side's tail is larger
than that error, as on tokens that both are sure of, the teacher's is taken to be the student's: what the noise of one
minus a sum would leave of it is no divergence, but never below 0, and so a bias.

Shapes: R tokens of a block, U of them, D hidden, V vocabulary, K top K, W = 1 + K columns: the sampled token, then the
top K.
"""

import torch
from torch import Tensor

from srpo_trl.loss.ops.interface import DistillationSpec, Head
from srpo_trl.loss.ops.plan import slices
from srpo_trl.loss.ops.projection import finish_, matmul_precision, project_

# How much an error of the teacher's tail may grow in a loss before the tail is summed up.
_MAX_GROWTH = 4.0
# Errors of exp(logit - log-sum-exp), in units of eps (1 + |log-sum-exp|): of two products that add up in another order.
_PRODUCT_ERROR = 16.0
_LARGEST_ERROR = 1e-4  # of logits in the hundreds and more: a tail above it is taken as it is


def teacher_logps(
    hidden_RD: Tensor,
    head: Head,
    ids_RW: Tensor,
    log_sum_exp_R: Tensor | None,
    temperature: float,
    dtype: torch.dtype,
) -> Tensor:
    """The teacher's log-probabilities of the given tokens; where `log_sum_exp_R` is None, logits with 0 as the largest.

    Args:
        hidden_RD: any float dtype.
        head: any float dtype; its rows of these tokens are gathered and upcast.
        ids_RW: int64.
        log_sum_exp_R: of all finished logits of these hidden states with this head; or None.
        temperature: above 0.
        dtype: float32 or float64, of the computation.

    Returns:
        (R, W) of `dtype`, nats.
    """
    gathered_RWD = head.weight_VD[ids_RW].to(dtype)
    logits_RW = torch.bmm(gathered_RWD, hidden_RD.to(dtype).unsqueeze(-1)).squeeze(-1)
    bias_RW = None if head.bias_V is None else head.bias_V[ids_RW]
    finish_(logits_RW, head, bias_RW, temperature)
    level_R = logits_RW.amax(-1) if log_sum_exp_R is None else log_sum_exp_R.to(dtype)
    return logits_RW - level_R.unsqueeze(-1)


def teacher_tail_(
    top_logps_RK: Tensor,
    student_tail_R: Tensor,
    hidden_RD: Tensor,
    head: Head,
    top_ids_RK: Tensor,
    log_sum_exp_R: Tensor,
    spec: DistillationSpec,
    tile_rows: int,
    rows_at_a_time: int,
) -> Tensor:
    """The teacher's mass outside the top K: (R,), from 0 on; one minus a sum where the loss does not feel it.

    Args:
        top_logps_RK: the teacher's, of the student's top K; normalized in place, so that both sum to 1.
        student_tail_R: the student's mass outside.
        hidden_RD, head, top_ids_RK, log_sum_exp_R: the teacher's, of the same tokens.
        spec: for its divergence and temperature.
        tile_rows: as in `project_`.
        rows_at_a_time: how many (V,) rows of logits may be held.
    """
    top_R = top_logps_RK.exp().sum(-1)
    tail_R = (1.0 - top_R).clamp(min=0.0)
    error_R = _PRODUCT_ERROR * torch.finfo(tail_R.dtype).eps * (1.0 + log_sum_exp_R.abs()).to(tail_R.dtype)
    error_R.clamp_(max=_LARGEST_ERROR)
    is_noise_R = (tail_R <= error_R) & (student_tail_R <= error_R)
    if may_sum_tails(spec):
        is_felt_R = _feels_subtraction(student_tail_R, tail_R, spec)
        is_noise_R &= ~is_felt_R
        sides = (hidden_RD, head, top_ids_RK, log_sum_exp_R, spec.temperature)
        _sum_tails_(tail_R, is_felt_R, *sides, tile_rows, rows_at_a_time)
    tail_R = torch.where(is_noise_R, student_tail_R.to(tail_R.dtype), tail_R)
    top_logps_RK.sub_((top_R + tail_R).log_().unsqueeze(-1))
    return tail_R


def _sum_tails_(
    tail_R: Tensor,
    is_felt_R: Tensor,
    hidden_RD: Tensor,
    head: Head,
    top_ids_RK: Tensor,
    log_sum_exp_R: Tensor,
    temperature: float,
    tile_rows: int,
    rows_at_a_time: int,
) -> None:
    """Sum the tails of some tokens up, from whole products."""
    precision = matmul_precision(hidden_RD, head.weight_VD, tail_R.dtype)
    felt_U = is_felt_R.nonzero().squeeze(-1)
    for chosen in slices(0, len(felt_U), rows_at_a_time):
        rows_U = felt_U[chosen]
        logits_UV = tail_R.new_empty((len(rows_U), head.weight_VD.shape[0]))
        project_(logits_UV, hidden_RD[rows_U], head, temperature, precision, tile_rows)
        logits_UV.scatter_(-1, top_ids_RK[rows_U].long(), -torch.inf)
        log_sum_exp_U1 = log_sum_exp_R[rows_U].to(tail_R.dtype).unsqueeze(-1)
        tail_R[rows_U] = logits_UV.sub_(log_sum_exp_U1).exp_().sum(-1)
        del logits_UV  # before the next rows are made


def may_sum_tails(spec: DistillationSpec) -> bool:
    """Whether `teacher_tail_` may sum up a tail: what a loss divides by can be far below the student's."""
    return spec.alpha > 0.0 if spec.is_linear else 1.0 - spec.alpha < 1.0 / _MAX_GROWTH


def _feels_subtraction(student_tail_R: Tensor, teacher_tail_R: Tensor, spec: DistillationSpec) -> Tensor:
    """Which tokens' losses an error of the teacher's tail would reach much enlarged: (R,) bool.

    an error e of q_tail makes one of about e p_tail / m_tail,   m = (1 - alpha) p + alpha q, or with `is_linear`
                                                                 m = q / alpha
    """
    divisor_R = (1.0 - spec.alpha) * student_tail_R + spec.alpha * teacher_tail_R
    if spec.is_linear:
        divisor_R = teacher_tail_R / spec.alpha
    least = 2 * torch.finfo(student_tail_R.dtype).eps  # of a smaller tail no error is felt
    return (student_tail_R > least) & (student_tail_R > _MAX_GROWTH * divisor_R)
