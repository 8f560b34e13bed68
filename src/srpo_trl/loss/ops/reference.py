"""The distillation operators in their plainest form: whole (N, V) matrices and autograd.

Shapes: N packed scored tokens, D hidden, V vocabulary.
"""

import torch
from torch import Tensor

from srpo_trl.loss.divergence import (
    MIN_TAIL_MASS,
    divergence,
    divergence_on_topk,
    sampled_token_reverse_kl,
    student_topk,
    topk_and_tail,
)
from srpo_trl.loss.entropy import entropy
from srpo_trl.loss.importance import importance_ratio
from srpo_trl.loss.ops.interface import (
    DistillationResult,
    DistillationSpec,
    Head,
    TokenStatistics,
    compute_dtype,
)
from srpo_trl.loss.ops.teacher_rows import teacher_logps, teacher_tail_


def log_probabilities(hidden_ND: Tensor, head: Head, temperature: float, dtype: torch.dtype) -> Tensor:
    """Log-probabilities over the vocabulary.

        log_softmax(softcap(logit_scale * (hidden W^T + bias)) / temperature)

    Args:
        hidden_ND: any float dtype; upcast to `dtype` before the product. Receives the gradient.
        head: its weight and bias receive the gradient.
        temperature: above 0.
        dtype: float32 or float64.

    Returns:
        (N, V) of `dtype`, nats.
    """
    return torch.log_softmax(_logits(hidden_ND, head, temperature, dtype), dim=-1)


def _logits(hidden_ND: Tensor, head: Head, temperature: float, dtype: torch.dtype) -> Tensor:
    logits_NV = hidden_ND.to(dtype) @ head.weight_VD.to(dtype).T
    if head.bias_V is not None:
        logits_NV = logits_NV + head.bias_V.to(dtype)
    logits_NV = logits_NV * head.logit_scale
    if head.softcap is not None:
        logits_NV = head.softcap * torch.tanh(logits_NV / head.softcap)
    return logits_NV / temperature


def distillation_loss(
    student_hidden_ND: Tensor,
    student_head: Head,
    teacher_hidden_ND: Tensor,
    teacher_head: Head,
    token_ids_N: Tensor,
    coefficient_N: Tensor,
    old_logps_N: Tensor | None,
    teacher_log_sum_exp_N: Tensor | None,
    spec: DistillationSpec,
) -> DistillationResult:
    """See `srpo_trl.loss.ops.distillation_loss`; without a log-sum-exp, whole matrices of the teacher."""
    dtype = compute_dtype(
        student_hidden_ND, student_head.weight_VD, teacher_hidden_ND, teacher_head.weight_VD
    )
    student_logps_NV = log_probabilities(student_hidden_ND, student_head, spec.temperature, dtype)
    student_logps_N = student_logps_NV.gather(-1, token_ids_N.unsqueeze(-1)).squeeze(-1)
    topk = spec.support_size(student_logps_NV.shape[-1])
    ids_NW = token_ids_N.unsqueeze(-1)
    if topk is not None:
        ids_NW = torch.cat([ids_NW, student_topk(student_logps_NV, topk)], dim=-1)
    with torch.no_grad():
        if teacher_log_sum_exp_N is None:
            teacher_NV = log_probabilities(teacher_hidden_ND, teacher_head, spec.temperature, dtype)
            teacher_NW = teacher_NV.gather(-1, ids_NW)
        else:
            side = (teacher_hidden_ND, teacher_head, ids_NW, teacher_log_sum_exp_N)
            teacher_NW = teacher_logps(*side, spec.temperature, dtype)

    entries = (spec.is_linear, spec.pointwise_clip)
    if spec.estimator == "sampled":
        token_loss_N = sampled_token_reverse_kl(student_logps_N, teacher_NW[:, 0])
        divergence_N = student_logps_N - teacher_NW[:, 0]
    elif teacher_log_sum_exp_N is None:
        token_loss_N = divergence_on_topk(
            *(student_logps_NV, teacher_NV, spec.alpha, spec.topk, spec.add_tail), *entries
        )
        divergence_N = token_loss_N
    else:
        ids_NK, teacher_NK, whole = ids_NW[:, 1:], teacher_NW[:, 1:], teacher_head.weight_VD.shape[0]
        student_NK = topk_and_tail(student_logps_NV, ids_NK)
        sums = (teacher_hidden_ND, teacher_head, ids_NK, teacher_log_sum_exp_N, spec, whole, whole)
        tail_N = teacher_tail_(teacher_NK, student_NK[:, -1].detach().exp(), *sums)
        log_tail_N1 = tail_N.clamp(min=MIN_TAIL_MASS).log().unsqueeze(-1)
        teacher_NK = torch.cat([teacher_NK, log_tail_N1], dim=-1)
        token_loss_N = divergence(student_NK, teacher_NK, spec.alpha, *entries)
        divergence_N = token_loss_N

    topk_mass_N = torch.ones_like(student_logps_N)
    if topk is not None:
        topk_mass_N = student_logps_NV.gather(-1, ids_NW[:, 1:]).exp().sum(-1)
    ratio_N = torch.ones_like(student_logps_N)
    if old_logps_N is not None:
        ratio_N = importance_ratio(student_logps_N, old_logps_N.to(dtype), spec.importance_clip)
    return DistillationResult(
        loss=(coefficient_N.detach().to(dtype) * ratio_N.detach() * token_loss_N).sum(),
        divergence_N=divergence_N.detach(),
        student_logps_N=student_logps_N.detach(),
        student_entropy_N=entropy(student_logps_NV.detach()),
        topk_mass_N=topk_mass_N.detach(),
        importance_ratio_N=ratio_N.detach(),
    )


def hellinger(
    hidden_ND: Tensor, head: Head, other_hidden_ND: Tensor, other_head: Head, temperature: float
) -> Tensor:
    """See `srpo_trl.loss.ops.hellinger`."""
    dtype = compute_dtype(hidden_ND, head.weight_VD, other_hidden_ND, other_head.weight_VD)
    with torch.no_grad():
        roots_NV, other_roots_NV = (
            log_probabilities(*side, temperature, dtype).mul(0.5).exp()
            for side in ((hidden_ND, head), (other_hidden_ND, other_head))
        )
        return (0.5 * (roots_NV - other_roots_NV).square().sum(-1)).sqrt().clamp(max=1.0)


def token_statistics(hidden_ND: Tensor, head: Head, temperature: float) -> TokenStatistics:
    """See `srpo_trl.loss.ops.token_statistics`."""
    with torch.no_grad():
        logits_NV = _logits(hidden_ND, head, temperature, compute_dtype(hidden_ND, head.weight_VD))
        return TokenStatistics(entropy(torch.log_softmax(logits_NV, dim=-1)), logits_NV.logsumexp(-1))
