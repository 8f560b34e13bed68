"""Per-token loss terms and their gradient with respect to the logits, in closed form.

For a support with student log-probabilities a_k, let g_k = dD/da_k with the a_k taken as independent. Terms
of g_k that are a multiple of p_k drop out once the a_k are normalized, and are left out:

    forward KL(q || p)    g_k = -q_k
    reverse KL(p || q)    g_k = p_k (log p_k - log q_k)
    Jensen-Shannon        g_k = (1 - alpha) p_k (log p_k - log m_k)

With p_v over the full vocabulary and G = sum_k g_k, the gradient with respect to the logit z_v is

    full vocabulary       g_v - p_v G
    top K, renormalized   g_v - p_v / (sum_K p) G            in the top K, 0 outside
    top K and tail        g_v - p_v G                        in the top K,
                          p_v (g_tail / p_tail - G)          outside, because
                          d log p_tail / dz_v = [v outside] p_v / p_tail - p_v
    sampled token y       (log p_y - log q_y) ([v = y] - p_v)

Shapes: R tokens of a block, V vocabulary, K size of a support.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from srpo_trl.loss.divergence import MIN_TAIL_MASS, mixture_logps, renormalize
from srpo_trl.loss.entropy import entropy
from srpo_trl.loss.ops.interface import DistillationSpec


class TokenTerms(NamedTuple):
    """What one block of tokens contributes, before coefficient and ratio; (R,) but for the gradient."""

    token_loss_R: Tensor
    divergence_R: Tensor
    student_logps_R: Tensor
    student_entropy_R: Tensor
    topk_mass_R: Tensor
    grad_logits_RV: Tensor | None


def vocabulary_rows(spec: DistillationSpec, vocab_size: int) -> int:
    """How many (R, V) matrices `token_losses` holds at once at the most, its arguments aside."""
    if spec.estimator == "sampled" or spec.support_size(vocab_size) is not None:
        return 3
    return 5


def support_columns(spec: DistillationSpec, vocab_size: int) -> int:
    """How many columns all (R, K) matrices of `token_losses` have together, at the most, in units of the float
    dtype."""
    topk = spec.support_size(vocab_size)
    return 8 if topk is None else 16 * (topk + 1)


def token_losses(
    student_logits_RV: Tensor,
    teacher_logits_RV: Tensor,
    token_ids_R: Tensor,
    spec: DistillationSpec,
    with_gradient: bool,
) -> TokenTerms:
    """Each token's loss, what is reported about it, and the loss's gradient with respect to its logits.

    Args:
        student_logits_RV: finite, temperature applied, float32 or float64; not overwritten.
        teacher_logits_RV: same shape and dtype; not overwritten.
        token_ids_R: int64, the sampled tokens.
        spec: what is computed.
        with_gradient: False leaves `grad_logits_RV` None.

    Returns:
        Terms in the logits' dtype; logarithms in nats.
    """
    sampled_R1 = token_ids_R.unsqueeze(-1)
    student_logps_RV = torch.log_softmax(student_logits_RV, dim=-1)
    student_logps_R = student_logps_RV.gather(-1, sampled_R1).squeeze(-1)
    entropy_R = entropy(student_logps_RV)
    topk_mass_R = torch.ones_like(entropy_R)
    topk = spec.support_size(student_logits_RV.shape[-1])

    if spec.estimator == "sampled":
        grad_logits_RV = student_logps_RV.exp_() if with_gradient else None
        teacher_logps_R = torch.log_softmax(teacher_logits_RV, dim=-1).gather(-1, sampled_R1).squeeze(-1)
        divergence_R = student_logps_R - teacher_logps_R
        token_loss_R = divergence_R * student_logps_R
        if grad_logits_RV is not None:
            grad_logits_RV.mul_(-divergence_R.unsqueeze(-1)).scatter_add_(
                -1, sampled_R1, divergence_R.unsqueeze(-1)
            )
    elif topk is None:
        teacher_logps_RV = torch.log_softmax(teacher_logits_RV, dim=-1)
        divergence_R, grad_logits_RV = divergence_and_gradient(student_logps_RV, teacher_logps_RV, spec.alpha)
        token_loss_R = divergence_R
        grad_logits_RV.addcmul_(student_logps_RV.exp_(), grad_logits_RV.sum(-1, keepdim=True), value=-1.0)
    else:
        student_top_RK, indices_RK = student_logps_RV.topk(topk, dim=-1)
        topk_mass_R = student_top_RK.exp().sum(-1)
        teacher_logps_RV = torch.log_softmax(teacher_logits_RV, dim=-1)
        teacher_top_RK = teacher_logps_RV.gather(-1, indices_RK)
        student_probs_RV = student_logps_RV.exp_()
        if spec.add_tail:
            divergence_R, grad_top_RK, rest_factor_R = _topk_and_tail(
                student_top_RK,
                teacher_top_RK,
                _mass_outside_(student_probs_RV, indices_RK),
                _mass_outside_(teacher_logps_RV.exp_(), indices_RK),
                spec.alpha,
            )
        else:
            divergence_R, grad_top_RK, rest_factor_R = _topk_renormalized(
                student_top_RK, teacher_top_RK, spec.alpha
            )
        token_loss_R = divergence_R
        grad_logits_RV = student_probs_RV if with_gradient else None
        if grad_logits_RV is not None:
            grad_logits_RV.mul_(rest_factor_R.unsqueeze(-1)).scatter_(-1, indices_RK, grad_top_RK)
    return TokenTerms(token_loss_R, divergence_R, student_logps_R, entropy_R, topk_mass_R, grad_logits_RV)


def divergence_and_gradient(
    student_logps_RK: Tensor, teacher_logps_RK: Tensor, alpha: float
) -> tuple[Tensor, Tensor]:
    """The divergence that `alpha` names on the given support, in nats, and g_k of the formulas above.

    Args:
        student_logps_RK: finite; each row sums to one in probability.
        teacher_logps_RK: same shape and dtype; each row sums to one in probability.
        alpha: from 0 to 1, as in `srpo_trl.loss.divergence.divergence`.

    Returns:
        (R,) divergence and (R, K) gradient; four (R, K) matrices are held on the way, the arguments aside.
    """
    if alpha == 0.0:
        teacher_probs_RK = teacher_logps_RK.exp()
        divergence_R = (teacher_logps_RK - student_logps_RK).mul_(teacher_probs_RK).sum(-1)
        return divergence_R, teacher_probs_RK.neg_()
    if alpha == 1.0:
        grad_RK = (student_logps_RK - teacher_logps_RK).mul_(student_logps_RK.exp())
        return grad_RK.sum(-1), grad_RK
    mixture_logps_RK = mixture_logps(student_logps_RK, teacher_logps_RK, alpha)
    grad_RK = (student_logps_RK - mixture_logps_RK).mul_(student_logps_RK.exp()).mul_(1.0 - alpha)
    teacher_term_RK = mixture_logps_RK.neg_().add_(teacher_logps_RK).mul_(teacher_logps_RK.exp())
    return grad_RK.sum(-1) + alpha * teacher_term_RK.sum(-1), grad_RK


def _mass_outside_(probs_RV: Tensor, indices_RK: Tensor) -> Tensor:
    """The mass of all but the given tokens, whose probabilities become 0: a sum, not one minus a sum."""
    return probs_RV.scatter_(-1, indices_RK, 0.0).sum(-1)


def _topk_and_tail(
    student_top_RK: Tensor,
    teacher_top_RK: Tensor,
    student_tail_R: Tensor,
    teacher_tail_R: Tensor,
    alpha: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Divergence, gradient in the top K, and what p_v outside is multiplied by to give its gradient.

    Args:
        student_top_RK, teacher_top_RK: log-probabilities.
        student_tail_R, teacher_tail_R: probabilities of all other tokens together.
        alpha: as in `srpo_trl.loss.divergence.divergence`.
    """
    topk = student_top_RK.shape[-1]
    bounded_tail_R = student_tail_R.clamp(min=MIN_TAIL_MASS)
    divergence_R, grad_RK = divergence_and_gradient(
        _with_tail(student_top_RK, bounded_tail_R),
        _with_tail(teacher_top_RK, teacher_tail_R.clamp(min=MIN_TAIL_MASS)),
        alpha,
    )
    # At its bound the tail is a constant.
    grad_tail_R = grad_RK[:, topk].masked_fill(student_tail_R < MIN_TAIL_MASS, 0.0)
    total_R = grad_RK[:, :topk].sum(-1) + grad_tail_R
    grad_top_RK = grad_RK[:, :topk] - student_top_RK.exp() * total_R.unsqueeze(-1)
    return divergence_R, grad_top_RK, grad_tail_R / bounded_tail_R - total_R


def _with_tail(top_logps_RK: Tensor, tail_R: Tensor) -> Tensor:
    return torch.cat([top_logps_RK, tail_R.log().unsqueeze(-1)], dim=-1)


def _topk_renormalized(
    student_top_RK: Tensor, teacher_top_RK: Tensor, alpha: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Divergence, gradient in the top K, and what p_v outside is multiplied by to give its gradient: zero."""
    student_logps_RK = renormalize(student_top_RK)
    divergence_R, grad_RK = divergence_and_gradient(student_logps_RK, renormalize(teacher_top_RK), alpha)
    grad_top_RK = grad_RK - student_logps_RK.exp() * grad_RK.sum(-1, keepdim=True)
    return divergence_R, grad_top_RK, torch.zeros_like(divergence_R)
