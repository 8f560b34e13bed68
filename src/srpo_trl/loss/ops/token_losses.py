"""Per-token loss terms and their gradient with respect to the logits, in closed form.

For a support with student log-probabilities a_k, let g_k = dD/da_k with the a_k taken as independent. Terms
of g_k that are a multiple of p_k, in brackets, drop out once the a_k are normalized, and may be left out:

    forward KL(q || p)    g_k = -q_k
    reverse KL(p || q)    g_k = p_k (log p_k - log q_k) [+ p_k]
    Jensen-Shannon        g_k = (1 - alpha) p_k (log p_k - log m_k)
    linear mix            g_k = alpha p_k (log p_k - log q_k) [+ alpha p_k] - (1 - alpha) q_k

With a pointwise clip an entry whose share of D is above it has g_k = 0, and the terms in brackets stay at the others.

With p_v over the full vocabulary and G = sum_k g_k, the gradient with respect to the logit z_v is

    full vocabulary       g_v - p_v G
    top K, renormalized   g_v - p_v / (sum_K p) G            in the top K, 0 outside
    top K and tail        g_v - p_v G                        in the top K,
                          p_v (g_tail / p_tail - G)          outside, because
                          d log p_tail / dz_v = [v outside] p_v / p_tail - p_v
    sampled token y       (log p_y - log q_y) ([v = y] - p_v)

So off the support the gradient is one constant of the row times the softmax, as of a cross-entropy, and only the
support's own entries differ: no second matrix of logits is read. Of the teacher a support needs its logits at the
support's tokens and its log-sum-exp, which its own pass has made. A loss a D + b log p(y) has the same form: a times
this gradient, less b in the row constant, and b more at y.

Shapes: R tokens of a block, V vocabulary, K top K, W = 1 + K columns: the sampled token, then the top K.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from srpo_trl.loss.divergence import MIN_TAIL_MASS, mixture_logps, renormalize
from srpo_trl.loss.entropy import entropy
from srpo_trl.loss.ops.interface import DistillationSpec, TokenStatistics


class TokenTerms(NamedTuple):
    """What one block of tokens contributes, before coefficient and ratio; (R,) but for the gradient."""

    token_loss_R: Tensor
    divergence_R: Tensor
    student_logps_R: Tensor
    student_entropy_R: Tensor
    topk_mass_R: Tensor
    grad_logits_RV: Tensor | None


class StudentRows(NamedTuple):
    """The student's distributions as far as a support needs them.

    Attributes:
        ids_RW: the sampled token, then the top K, most probable first; W = 1 where no top K is taken.
        logps_RW: log-probabilities of these.
        probs_RV: softmax, but 0 at the top K, and without its denominator.
        denominator_R: of `probs_RV`.
        tail_R: the mass outside the top K: a sum, as one minus a sum would lose a small tail's digits.
        entropy_R: over the full vocabulary, nats; NaN where a logit is not finite.
    """

    ids_RW: Tensor
    logps_RW: Tensor
    probs_RV: Tensor
    denominator_R: Tensor
    tail_R: Tensor
    entropy_R: Tensor


class SupportTerms(NamedTuple):
    """A support's loss and its gradient with respect to all logits, before coefficient and ratio.

    Attributes:
        token_loss_R, divergence_R: what is summed up and what is reported.
        grad_RK: at the support's tokens, those of `gradient_ids`.
        rest_R: what the probability of every other token is multiplied by to give its gradient.
    """

    token_loss_R: Tensor
    divergence_R: Tensor
    grad_RK: Tensor
    rest_R: Tensor


def vocabulary_rows(spec: DistillationSpec, vocab_size: int) -> int:
    """How many (R, V) matrices a block's loss and gradient take at once at the most, the logits aside."""
    return 5 if spec.needs_whole_teacher(vocab_size) else 2


def support_columns(spec: DistillationSpec, vocab_size: int) -> int:
    """How many columns all (R, K) matrices of a block's loss have together, at the most, in units of the float
    dtype."""
    topk = spec.support_size(vocab_size)
    return 8 if topk is None else 16 * (topk + 1)


def full_losses(
    student_logits_RV: Tensor,
    teacher_logits_RV: Tensor,
    token_ids_R: Tensor,
    spec: DistillationSpec,
) -> TokenTerms:
    """Each token's divergence over the whole vocabulary, what is reported about it, and its gradient.

    Args:
        student_logits_RV: finite, temperature applied, float32 or float64; not overwritten.
        teacher_logits_RV: same shape and dtype; not overwritten.
        token_ids_R: int64, the sampled tokens.
        spec: what is computed, over the full vocabulary.

    Returns:
        Terms in the logits' dtype; logarithms in nats.
    """
    student_logps_RV = torch.log_softmax(student_logits_RV, dim=-1)
    student_logps_R = student_logps_RV.gather(-1, token_ids_R.unsqueeze(-1)).squeeze(-1)
    entropy_R = entropy(student_logps_RV)
    teacher_logps_RV = torch.log_softmax(teacher_logits_RV, dim=-1)
    divergence_R, grad_RV = divergence_and_gradient(student_logps_RV, teacher_logps_RV, spec)
    grad_RV.addcmul_(student_logps_RV.exp_(), grad_RV.sum(-1, keepdim=True), value=-1.0)
    return TokenTerms(
        divergence_R, divergence_R, student_logps_R, entropy_R, torch.ones_like(entropy_R), grad_RV
    )


def row_statistics_(logits_RV: Tensor) -> TokenStatistics:
    """Entropy and log-sum-exp of each row of finished logits, which are overwritten; both sums have terms >= 0."""
    largest_R1 = logits_RV.amax(-1, keepdim=True)
    probs_RV = logits_RV.sub_(largest_R1).exp()
    denominator_R = probs_RV.sum(-1)
    log_denominator_R = denominator_R.log()
    entropy_R = log_denominator_R - probs_RV.mul_(logits_RV).sum(-1) / denominator_R
    return TokenStatistics(entropy_R, largest_R1.squeeze(-1) + log_denominator_R)


def root_probs_(logits_RV: Tensor) -> Tensor:
    """Square roots of each row's softmax, which take the place of the logits: unit vectors."""
    roots_RV = logits_RV.sub_(logits_RV.amax(-1, keepdim=True)).mul_(0.5).exp_()
    return roots_RV.div_(roots_RV.square().sum(-1, keepdim=True).sqrt_())


def student_rows(logits_RV: Tensor, token_ids_R: Tensor, topk: int | None) -> StudentRows:
    """Reduce the student's logits to what a support needs, in one sweep.

    Args:
        logits_RV: temperature applied, float32 or float64; not overwritten.
        token_ids_R: int64, the sampled tokens.
        topk: K, below V; None: the sampled token alone.

    Returns:
        Rows in the logits' dtype.
    """
    ids_RW = token_ids_R.unsqueeze(-1)
    if topk is not None:
        ids_RW = torch.cat([ids_RW, logits_RV.topk(topk, dim=-1).indices], dim=-1)
    logits_RW = logits_RV.gather(-1, ids_RW)
    largest_R1 = logits_RV.amax(-1, keepdim=True) if topk is None else logits_RW[:, 1:2]
    shifted_RV = logits_RV - largest_R1
    probs_RV = shifted_RV.exp()
    moment_R = shifted_RV.mul_(probs_RV).sum(-1)
    del shifted_RV
    tail_R = torch.zeros_like(moment_R)
    if topk is None:
        denominator_R = probs_RV.sum(-1)
    else:
        tail_R = probs_RV.scatter_(-1, ids_RW[:, 1:], 0.0).sum(-1)
        denominator_R = tail_R + (logits_RW[:, 1:] - largest_R1).exp().sum(-1)
        tail_R = tail_R / denominator_R
    log_denominator_R = denominator_R.log()
    return StudentRows(
        ids_RW=ids_RW,
        logps_RW=logits_RW - largest_R1 - log_denominator_R.unsqueeze(-1),
        probs_RV=probs_RV,
        denominator_R=denominator_R,
        tail_R=tail_R,
        entropy_R=log_denominator_R - moment_R / denominator_R,
    )


def gradient_ids(rows: StudentRows) -> Tensor:
    """The support's own tokens: the top K, or where none is taken the sampled one."""
    return rows.ids_RW if rows.ids_RW.shape[1] == 1 else rows.ids_RW[:, 1:]


def support_terms(
    student_logps_RW: Tensor,
    teacher_logps_RW: Tensor,
    student_tail_R: Tensor,
    teacher_tail_R: Tensor,
    spec: DistillationSpec,
) -> SupportTerms:
    """Each token's loss on its support, and the gradient that it has.

    Args:
        student_logps_RW: of the sampled token, then the top K; of the sampled one alone with "sampled".
        teacher_logps_RW: the teacher's of the same tokens; without a tail any constant may be added to a row's.
        student_tail_R, teacher_tail_R: each side's mass outside the top K; read with a tail only.
        spec: what is computed; not the full vocabulary.
    """
    if spec.estimator == "sampled":
        divergence_R1 = student_logps_RW - teacher_logps_RW
        divergence_R = divergence_R1.squeeze(-1)
        token_loss_R = (divergence_R1 * student_logps_RW).squeeze(-1)
        return SupportTerms(
            token_loss_R, divergence_R, divergence_R1 * -student_logps_RW.expm1(), -divergence_R
        )
    student_RK, teacher_RK = student_logps_RW[:, 1:], teacher_logps_RW[:, 1:]
    if not spec.add_tail:
        return _topk_renormalized(student_RK, teacher_RK, spec)
    return _topk_and_tail(student_RK, teacher_RK, student_tail_R, teacher_tail_R, spec)


def divergence_and_gradient(
    student_logps_RK: Tensor, teacher_logps_RK: Tensor, spec: DistillationSpec
) -> tuple[Tensor, Tensor]:
    """The divergence that `spec` names on the given support, in nats, and g_k of the formulas above.

    Args:
        student_logps_RK: finite; each row sums to one in probability.
        teacher_logps_RK: same shape and dtype; each row sums to one in probability.
        spec: for its alpha, its mix and its clip.

    Returns:
        (R,) divergence and (R, K) gradient; four (R, K) matrices are held on the way, the arguments aside.
    """
    alpha, clip = spec.alpha, spec.pointwise_clip
    if alpha == 0.0:
        teacher_probs_RK = teacher_logps_RK.exp()
        share_RK = (teacher_logps_RK - student_logps_RK).mul_(teacher_probs_RK)
        return _clipped_(share_RK, teacher_probs_RK.neg_(), clip)
    if alpha == 1.0:
        student_probs_RK = student_logps_RK.exp()
        share_RK = (student_logps_RK - teacher_logps_RK).mul_(student_probs_RK)
        return _clipped_(share_RK, share_RK if clip is None else student_probs_RK.add_(share_RK), clip)
    if spec.is_linear:
        student_part_RK = student_logps_RK.exp().mul_(alpha)
        grad_RK = teacher_logps_RK.exp().mul_(alpha - 1.0).add_(student_part_RK)
        gap_RK = student_logps_RK - teacher_logps_RK
        student_part_RK.mul_(gap_RK)
        share_RK = gap_RK.mul_(grad_RK)
        grad_RK.add_(student_part_RK)
        del student_part_RK  # before the clip's mask is made
        return _clipped_(share_RK, grad_RK, clip)
    mixture_logps_RK = mixture_logps(student_logps_RK, teacher_logps_RK, alpha)
    grad_RK = (student_logps_RK - mixture_logps_RK).mul_(student_logps_RK.exp()).mul_(1.0 - alpha)
    teacher_term_RK = mixture_logps_RK.neg_().add_(teacher_logps_RK).mul_(teacher_logps_RK.exp())
    if clip is None:
        return grad_RK.sum(-1) + alpha * teacher_term_RK.sum(-1), grad_RK
    return _clipped_(teacher_term_RK.mul_(alpha).add_(grad_RK), grad_RK, clip)


def _clipped_(share_RK: Tensor, grad_RK: Tensor, clip: float | None) -> tuple[Tensor, Tensor]:
    """The shares' sum (R,), each share at most `clip`, and the gradient of those that are; both are overwritten."""
    if clip is not None:
        grad_RK.masked_fill_(share_RK > clip, 0.0)
        share_RK.clamp_(max=clip)
    return share_RK.sum(-1), grad_RK


def _topk_and_tail(
    student_top_RK: Tensor,
    teacher_top_RK: Tensor,
    student_tail_R: Tensor,
    teacher_tail_R: Tensor,
    spec: DistillationSpec,
) -> SupportTerms:
    topk = student_top_RK.shape[-1]
    bounded_tail_R = student_tail_R.clamp(min=MIN_TAIL_MASS)
    divergence_R, grad_RK = divergence_and_gradient(
        _with_tail(student_top_RK, bounded_tail_R),
        _with_tail(teacher_top_RK, teacher_tail_R.clamp(min=MIN_TAIL_MASS)),
        spec,
    )
    # At its bound the tail is a constant.
    grad_tail_R = grad_RK[:, topk].masked_fill(student_tail_R < MIN_TAIL_MASS, 0.0)
    total_R = grad_RK[:, :topk].sum(-1) + grad_tail_R
    grad_top_RK = grad_RK[:, :topk] - student_top_RK.exp() * total_R.unsqueeze(-1)
    return SupportTerms(divergence_R, divergence_R, grad_top_RK, grad_tail_R / bounded_tail_R - total_R)


def _with_tail(top_logps_RK: Tensor, tail_R: Tensor) -> Tensor:
    return torch.cat([top_logps_RK, tail_R.log().unsqueeze(-1)], dim=-1)


def _topk_renormalized(
    student_top_RK: Tensor, teacher_top_RK: Tensor, spec: DistillationSpec
) -> SupportTerms:
    student_logps_RK = renormalize(student_top_RK)
    divergence_R, grad_RK = divergence_and_gradient(student_logps_RK, renormalize(teacher_top_RK), spec)
    grad_top_RK = grad_RK - student_logps_RK.exp() * grad_RK.sum(-1, keepdim=True)
    return SupportTerms(divergence_R, divergence_R, grad_top_RK, torch.zeros_like(divergence_R))
