"""The teacher on a support: its log-probabilities at a few tokens, and its mass at all others.

With the log-sum-exp that the teacher's own pass has made, W dot products with gathered rows of its head take the place
of a product with all of it. Its tail is then one minus a sum, which in float32 has an absolute error of about 1e-6:
nothing in most divergences, but reverse KL divides by it. Rows whose loss would feel that are few (the teacher's tail
is far smaller than the student's there) and get the whole product.

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


def teacher_logps(
    hidden_RD: Tensor,
    head: Head,
    ids_RW: Tensor,
    log_sum_exp_R: Tensor | None,
    temperature: float,
    dtype: torch.dtype,
) -> Tensor:
    """The teacher's log-probabilities of the given tokens; logits where `log_sum_exp_R` is None.

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
    return logits_RW if log_sum_exp_R is None else logits_RW - log_sum_exp_R.to(dtype).unsqueeze(-1)


def teacher_tail(
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
        top_logps_RK: the teacher's, of the student's top K.
        student_tail_R: the student's mass outside.
        hidden_RD, head, top_ids_RK, log_sum_exp_R: the teacher's, of the same tokens.
        spec: for its alpha and temperature.
        tile_rows: as in `project_`.
        rows_at_a_time: how many (V,) rows of logits may be held.
    """
    tail_R = (1.0 - top_logps_RK.exp().sum(-1)).clamp(min=0.0)
    if not may_sum_tails(spec.alpha):
        return tail_R
    precision = matmul_precision(hidden_RD, head.weight_VD, tail_R.dtype)
    felt_U = _feels_subtraction(student_tail_R, tail_R, spec.alpha).nonzero().squeeze(-1)
    for chosen in slices(0, len(felt_U), rows_at_a_time):
        rows_U = felt_U[chosen]
        logits_UV = tail_R.new_empty((len(rows_U), head.weight_VD.shape[0]))
        project_(logits_UV, hidden_RD[rows_U], head, spec.temperature, precision, tile_rows)
        logits_UV.scatter_(-1, top_ids_RK[rows_U].long(), -torch.inf)
        log_sum_exp_U1 = log_sum_exp_R[rows_U].to(tail_R.dtype).unsqueeze(-1)
        tail_R[rows_U] = logits_UV.sub_(log_sum_exp_U1).exp_().sum(-1)
        del logits_UV  # before the next rows are made
    return tail_R


def may_sum_tails(alpha: float) -> bool:
    """Whether `teacher_tail` may sum up a tail: the mixture that a loss divides by can be far below the student's."""
    return 1.0 - alpha < 1.0 / _MAX_GROWTH


def _feels_subtraction(student_tail_R: Tensor, teacher_tail_R: Tensor, alpha: float) -> Tensor:
    """Which tokens' losses an error of the teacher's tail would reach much enlarged: (R,) bool.

    an error e of q_tail makes one of about e p_tail / m_tail,   m = (1 - alpha) p + alpha q
    """
    mixture_R = (1.0 - alpha) * student_tail_R + alpha * teacher_tail_R
    least = 2 * torch.finfo(student_tail_R.dtype).eps  # of a smaller tail no error is felt
    return (student_tail_R > least) & (student_tail_R > _MAX_GROWTH * mixture_R)
