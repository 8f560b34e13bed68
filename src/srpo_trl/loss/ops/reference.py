"""The distillation operators in their plainest form: whole (N, V) matrices and autograd.

Shapes: N packed scored tokens, D hidden, V vocabulary.
"""

import torch
from torch import Tensor

from srpo_trl.loss.divergence import divergence_on_topk, sampled_token_reverse_kl, student_topk
from srpo_trl.loss.entropy import entropy
from srpo_trl.loss.importance import importance_ratio
from srpo_trl.loss.ops.interface import DistillationResult, DistillationSpec, Head, compute_dtype


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
    logits_NV = hidden_ND.to(dtype) @ head.weight_VD.to(dtype).T
    if head.bias_V is not None:
        logits_NV = logits_NV + head.bias_V.to(dtype)
    logits_NV = logits_NV * head.logit_scale
    if head.softcap is not None:
        logits_NV = head.softcap * torch.tanh(logits_NV / head.softcap)
    return torch.log_softmax(logits_NV / temperature, dim=-1)


def distillation_loss(
    student_hidden_ND: Tensor,
    student_head: Head,
    teacher_hidden_ND: Tensor,
    teacher_head: Head,
    token_ids_N: Tensor,
    coefficient_N: Tensor,
    old_logps_N: Tensor | None,
    spec: DistillationSpec,
) -> DistillationResult:
    """See `srpo_trl.loss.ops.distillation_loss`."""
    dtype = compute_dtype(
        student_hidden_ND, student_head.weight_VD, teacher_hidden_ND, teacher_head.weight_VD
    )
    student_logps_NV = log_probabilities(student_hidden_ND, student_head, spec.temperature, dtype)
    with torch.no_grad():
        teacher_logps_NV = log_probabilities(teacher_hidden_ND, teacher_head, spec.temperature, dtype)
    sampled_N1 = token_ids_N.unsqueeze(-1)
    student_logps_N = student_logps_NV.gather(-1, sampled_N1).squeeze(-1)
    teacher_logps_N = teacher_logps_NV.gather(-1, sampled_N1).squeeze(-1)

    if spec.estimator == "sampled":
        token_loss_N = sampled_token_reverse_kl(student_logps_N, teacher_logps_N)
        divergence_N = student_logps_N - teacher_logps_N
    else:
        token_loss_N = divergence_on_topk(
            student_logps_NV, teacher_logps_NV, spec.alpha, spec.topk, spec.add_tail
        )
        divergence_N = token_loss_N

    topk_mass_N = torch.ones_like(student_logps_N)
    topk = spec.support_size(student_logps_NV.shape[-1])
    if topk is not None:
        indices_NK = student_topk(student_logps_NV, topk)
        topk_mass_N = student_logps_NV.gather(-1, indices_NK).exp().sum(-1)
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


def teacher_entropy(hidden_ND: Tensor, head: Head, temperature: float) -> Tensor:
    """See `srpo_trl.loss.ops.teacher_entropy`."""
    with torch.no_grad():
        dtype = compute_dtype(hidden_ND, head.weight_VD)
        return entropy(log_probabilities(hidden_ND, head, temperature, dtype))
