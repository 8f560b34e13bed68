"""The distillation operators: from hidden states and LM heads to the loss, by one of several backends.

A backend is a module with `distillation_loss` and `teacher_entropy`; callers name it and know nothing else of
it. Shapes: N packed scored tokens, D hidden, V vocabulary.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from srpo_trl.ops import chunked, reference
from srpo_trl.ops.interface import (
    DistillationResult,
    DistillationSpec,
    Head,
    check_distillation_inputs,
    check_head,
)

__all__ = [
    "Backend",
    "DistillationResult",
    "DistillationSpec",
    "Head",
    "distillation_loss",
    "teacher_entropy",
]

Backend = Literal["auto", "reference", "chunked"]


def distillation_loss(
    student_hidden_ND: Tensor,
    student_head: Head,
    teacher_hidden_ND: Tensor,
    teacher_head: Head,
    token_ids_N: Tensor,
    coefficient_N: Tensor,
    old_logps_N: Tensor | None = None,
    *,
    spec: DistillationSpec,
    backend: Backend = "auto",
    chunk_bytes: int = 256 * 2**20,
) -> DistillationResult:
    """The weighted sum of the tokens' divergences from student to teacher, lower where the two agree.

        loss = sum_n coefficient_n * ratio_n * l_n,   ratio_n = min(exp(clamp(log pi_theta - log pi_old, -20,
        20)), clip)
                                           (SDPO, arXiv:2601.20802; SRPO, arXiv:2604.02288, sec. 3.3, table 3)

    The product with the head, the log-softmax and everything after it is float32 (float64 where any hidden
    state or weight is). No gradient flows to the teacher, even where both sides share a tensor, nor through
    the ratio, the coefficients or the choice of the top K. Logits must be finite; this is not checked, as it
    would wait for the device.

    Args:
        student_hidden_ND: last hidden states at the positions that predict the sampled tokens. Receives the
            gradient.
        student_head: weight and bias receive the gradient where they require one.
        teacher_hidden_ND: the teacher's at the same tokens; never receives a gradient.
        teacher_head: never receives a gradient. Its vocabulary is the student's, its width may differ.
        token_ids_N: int64, the sampled tokens y_n, from 0 to V - 1.
        coefficient_N: weight over denominator of each token; 0 for tokens that do not count. No gradient.
        old_logps_N: log pi_old(y_n) in nats of the policy that sampled; None: every ratio is 1. No gradient.
        spec: what is computed per token.
        backend: "reference" holds whole (N, V) matrices; "chunked" never more than `chunk_bytes`; "auto"
            chooses.
        chunk_bytes: bound of the temporary memory of "chunked", outputs and gradients aside. One token at a
            time is the least, whatever the bound.

    Returns:
        `DistillationResult`; N = 0 gives a loss of 0 that still makes (zero) gradients.

    Raises:
        ValueError: shapes do not fit together, or `backend` is unknown.
    """
    check_distillation_inputs(
        student_hidden_ND,
        student_head,
        teacher_hidden_ND,
        teacher_head,
        token_ids_N,
        coefficient_N,
        old_logps_N,
    )
    arguments = (
        student_hidden_ND,
        student_head,
        teacher_hidden_ND.detach(),
        _detach_head(teacher_head),
        token_ids_N,
        coefficient_N.detach(),
        None if old_logps_N is None else old_logps_N.detach(),
        spec,
    )
    with _without_autocast(student_hidden_ND):
        if _resolve(backend) == "reference":
            return reference.distillation_loss(*arguments)
        return chunked.distillation_loss(*arguments, chunk_bytes)


def teacher_entropy(
    hidden_ND: Tensor,
    head: Head,
    temperature: float,
    *,
    backend: Backend = "auto",
    chunk_bytes: int = 256 * 2**20,
) -> Tensor:
    """Entropy of each token's distribution over the whole vocabulary, in nats.

        H_n = - sum_v q_v log q_v,   q = softmax(logits / temperature)      (SRPO, arXiv:2604.02288, sec. 3.2)

    Args:
        hidden_ND: last hidden states; never receives a gradient.
        head: never receives a gradient.
        temperature: above 0.
        backend: as in `distillation_loss`.
        chunk_bytes: as in `distillation_loss`.

    Returns:
        (N,) float32 (float64 where hidden states or weight are), from 0 to log V, no gradient.

    Raises:
        ValueError: the head does not fit the hidden states, temperature is not above 0, or `backend` is
            unknown.
    """
    check_head("teacher", hidden_ND, head)
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be above 0. Pass the sampling temperature.")
    with _without_autocast(hidden_ND):
        if _resolve(backend) == "reference":
            return reference.teacher_entropy(hidden_ND, head, temperature)
        return chunked.teacher_entropy(hidden_ND, head, temperature, chunk_bytes)


def _resolve(backend: Backend) -> Literal["reference", "chunked"]:
    if backend not in get_args(Backend):
        raise ValueError(f"backend is {backend!r}; it must be one of {get_args(Backend)}.")
    return "chunked" if backend == "auto" else backend


def _detach_head(head: Head) -> Head:
    bias_V = None if head.bias_V is None else head.bias_V.detach()
    return head._replace(weight_VD=head.weight_VD.detach(), bias_V=bias_V)


def _without_autocast(tensor: Tensor) -> torch.autocast:
    """Autocast would round the product with the head to bfloat16."""
    return torch.autocast(device_type=tensor.device.type, enabled=False)
