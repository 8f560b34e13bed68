"""Divergences between student and teacher, and the support they are taken on, from log-probabilities.

Shapes: N packed scored tokens, V vocabulary, K size of a support: the whole vocabulary, a top K, or a top K
and its tail bucket. Formulas: p student, q teacher.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

# The least mass of a tail bucket: with less outside its top K a token's tail is this constant.
MIN_TAIL_MASS = 1e-15

_DTYPES = (torch.float32, torch.float64)


def forward_kl(student_logps_NK: Tensor, teacher_logps_NK: Tensor) -> Tensor:
    """KL(teacher || student) of each token on the given support, in nats.

        D_n = sum_k q_k (log q_k - log p_k)                        (SDPO, arXiv:2601.20802, sec. 3; alpha = 0)

    Args:
        student_logps_NK: finite log-probabilities, float32 or float64. Receives the gradient.
        teacher_logps_NK: same shape and dtype; detached here, never receives one.

    Returns:
        (N,) in the inputs' dtype, >= 0 up to rounding where both sides sum to one.

    Raises:
        ValueError: the shapes differ, or a dtype is narrower than float32.
    """
    _check_pair(student_logps_NK, teacher_logps_NK)
    return _relative_entropy(teacher_logps_NK.detach(), student_logps_NK)


def reverse_kl(student_logps_NK: Tensor, teacher_logps_NK: Tensor) -> Tensor:
    """KL(student || teacher) of each token on the given support, in nats.

        D_n = sum_k p_k (log p_k - log q_k)                        (SDPO, arXiv:2601.20802, sec. 3; alpha = 1)

    Args:
        student_logps_NK: finite log-probabilities, float32 or float64. Receives the gradient.
        teacher_logps_NK: same shape and dtype; detached here, never receives one.

    Returns:
        (N,) in the inputs' dtype, >= 0 up to rounding where both sides sum to one.

    Raises:
        ValueError: the shapes differ, or a dtype is narrower than float32.
    """
    _check_pair(student_logps_NK, teacher_logps_NK)
    return _relative_entropy(student_logps_NK, teacher_logps_NK.detach())


def generalized_jensen_shannon(student_logps_NK: Tensor, teacher_logps_NK: Tensor, alpha: float) -> Tensor:
    """Generalized Jensen-Shannon divergence of each token on the given support, in nats.

        m = (1 - alpha) p + alpha q,   D_n = alpha KL(q || m) + (1 - alpha) KL(p || m)
                                                                      (SDPO, arXiv:2601.20802; SRPO, table 3)

    Args:
        student_logps_NK: finite log-probabilities, float32 or float64. Receives the gradient.
        teacher_logps_NK: same shape and dtype; detached here, never receives one.
        alpha: the teacher's share of the mixture, strictly between 0 and 1. D tends to 0 at both ends.

    Returns:
        (N,) in the inputs' dtype, from 0 to log 2 up to rounding where both sides sum to one.

    Raises:
        ValueError: alpha is not strictly between 0 and 1, the shapes differ, or a dtype is narrower than
            float32.
    """
    _check_pair(student_logps_NK, teacher_logps_NK)
    if not 0.0 < alpha < 1.0:
        raise ValueError(
            f"alpha is {alpha}, but the Jensen-Shannon form needs 0 < alpha < 1: it is 0 at both ends. "
            "Use forward_kl for 0 and reverse_kl for 1, or divergence, which chooses."
        )
    mixture_logps_NK = mixture_logps(student_logps_NK, teacher_logps_NK, alpha)
    teacher_term_N = _relative_entropy(teacher_logps_NK.detach(), mixture_logps_NK)
    return alpha * teacher_term_N + (1.0 - alpha) * _relative_entropy(student_logps_NK, mixture_logps_NK)


def mixture_logps(student_logps_NK: Tensor, teacher_logps_NK: Tensor, alpha: float) -> Tensor:
    """Log-probabilities of the mixture m = (1 - alpha) p + alpha q.

    Args:
        student_logps_NK: finite log-probabilities. Receives the gradient.
        teacher_logps_NK: same shape and dtype; detached here, never receives one.
        alpha: the teacher's share, strictly between 0 and 1.

    Returns:
        (N, K) in the inputs' dtype.
    """
    student_part_NK = student_logps_NK + math.log1p(-alpha)
    return torch.logaddexp(student_part_NK, teacher_logps_NK.detach() + math.log(alpha))


def divergence(
    student_logps_NK: Tensor,
    teacher_logps_NK: Tensor,
    alpha: float,
    is_linear: bool = False,
    pointwise_clip: float | None = None,
) -> Tensor:
    """The divergence that `alpha` names, of each token on the given support, in nats.

        alpha = 0: KL(q || p);   alpha = 1: KL(p || q);   between: generalized Jensen-Shannon
                                                                      (SDPO, arXiv:2601.20802; SRPO, table 3)
        is_linear: alpha KL(p || q) + (1 - alpha) KL(q || p)                                    (arXiv:2605.16826)
        pointwise_clip: sum_k min(D_k, clip), D_k the summand of entry k                 (TRACE, arXiv:2605.10194)

    Args:
        student_logps_NK: finite log-probabilities, float32 or float64. Receives the gradient; an entry above the
            clip has none.
        teacher_logps_NK: same shape and dtype; detached here, never receives one.
        alpha: from 0 to 1. The two ends are the KLs by convention, not the limits of the form between them.
        is_linear: the mix of the two KLs between the ends.
        pointwise_clip: cap of each entry's summand, above 0; None: off.

    Returns:
        (N,) in the inputs' dtype, >= 0 up to rounding where both sides sum to one and nothing is clipped.

    Raises:
        ValueError: alpha is outside [0, 1], the shapes differ, or a dtype is narrower than float32.
    """
    ends: dict[float, Callable[[Tensor, Tensor], Tensor]] = {0.0: forward_kl, 1.0: reverse_kl}
    if pointwise_clip is None and alpha in ends:
        return ends[alpha](student_logps_NK, teacher_logps_NK)
    if pointwise_clip is None and not is_linear:
        return generalized_jensen_shannon(student_logps_NK, teacher_logps_NK, alpha)
    share_NK = _entry_shares(student_logps_NK, teacher_logps_NK, alpha, is_linear)
    return (share_NK if pointwise_clip is None else share_NK.clamp(max=pointwise_clip)).sum(-1)


def student_topk(student_logps_NV: Tensor, topk: int) -> Tensor:
    """The student's `topk` most probable tokens: the support of both sides. No gradient flows through the choice.

    Args:
        student_logps_NV: log-probabilities over the full vocabulary.
        topk: from 1 to V.

    Returns:
        (N, topk) int64 token ids, most probable first.

    Raises:
        ValueError: topk is below 1.
    """
    if topk < 1:
        raise ValueError(
            f"topk is {topk}, but a support has at least 1 token. Use None for the full vocabulary."
        )
    return student_logps_NV.detach().topk(topk, dim=-1).indices


def topk_and_tail(logps_NV: Tensor, indices_NK: Tensor) -> Tensor:
    """The log-probabilities of the given tokens and, last, that of all other tokens together.

        log_tail = log sum_{v not in K} p_v                                 (SDPO, arXiv:2601.20802: the tail bucket)

    The sum is taken over the tokens outside. Written as log(1 - sum_{k in K} p_k), as the official code and TRL's
    `add_tail_bucket` do, it has no correct digit in float32 once the tail is near 1e-7. A tail of less than
    `MIN_TAIL_MASS` is that constant, through which no gradient flows.

    Args:
        logps_NV: normalized over the full vocabulary, float32 or float64. Receives the gradient.
        indices_NK: int64, different tokens in each row, fewer than V.

    Returns:
        (N, K + 1) in the input's dtype; each row sums to one in probability.

    Raises:
        ValueError: the dtype is narrower than float32.
    """
    _check_dtype(logps_NV)
    outside_NV = logps_NV.scatter(-1, indices_NK, -math.inf)
    log_tail_N1 = outside_NV.logsumexp(-1, keepdim=True).clamp(min=math.log(MIN_TAIL_MASS))
    return torch.cat([logps_NV.gather(-1, indices_NK), log_tail_N1], dim=-1)


def renormalized_topk(logps_NV: Tensor, indices_NK: Tensor) -> Tensor:
    """The log-probabilities of the given tokens, conditional on being one of them.

    Args:
        logps_NV: log-probabilities over the vocabulary. Receives the gradient.
        indices_NK: int64, different tokens in each row.

    Returns:
        (N, K) in the input's dtype; each row sums to one in probability.
    """
    return renormalize(logps_NV.gather(-1, indices_NK))


def renormalize(top_logps_NK: Tensor) -> Tensor:
    """The log-probabilities of the given tokens, conditional on being one of them.

    Args:
        top_logps_NK: log-probabilities of some tokens. Receives the gradient.

    Returns:
        (N, K) in the input's dtype; each row sums to one in probability.
    """
    return top_logps_NK - torch.logsumexp(top_logps_NK, dim=-1, keepdim=True)


def divergence_on_topk(
    student_logps_NV: Tensor,
    teacher_logps_NV: Tensor,
    alpha: float,
    topk: int | None,
    add_tail: bool,
    is_linear: bool = False,
    pointwise_clip: float | None = None,
) -> Tensor:
    """The divergence that `alpha` names, of each token on the student's top K, in nats.

    Args:
        student_logps_NV: normalized over the full vocabulary, float32 or float64. Receives the gradient, but
            not through the choice of the top K.
        teacher_logps_NV: same shape and dtype; detached here, never receives one.
        alpha: as in `divergence`.
        topk: size of the support. None, or V and more: the full vocabulary, whatever `add_tail`.
        add_tail: True: one more bucket with the mass of all other tokens; False: both sides renormalized.
        is_linear: as in `divergence`.
        pointwise_clip: as in `divergence`; the tail is one entry.

    Returns:
        (N,) in the inputs' dtype, >= 0 up to rounding where nothing is clipped.

    Raises:
        ValueError: alpha is outside [0, 1], topk is below 1, the shapes differ, or a dtype is narrower than
            float32.
    """
    if topk is None or topk >= student_logps_NV.shape[-1]:
        return divergence(student_logps_NV, teacher_logps_NV, alpha, is_linear, pointwise_clip)
    _check_pair(student_logps_NV, teacher_logps_NV)
    indices_NK = student_topk(student_logps_NV, topk)
    close = topk_and_tail if add_tail else renormalized_topk
    sides = (close(student_logps_NV, indices_NK), close(teacher_logps_NV.detach(), indices_NK))
    return divergence(*sides, alpha, is_linear, pointwise_clip)


def sampled_token_reverse_kl(student_logp_N: Tensor, teacher_logp_N: Tensor) -> Tensor:
    """A surrogate whose gradient estimates that of KL(student || teacher) from the one sampled token.

        l_n = stop_gradient(log p(y_n) - log q(y_n)) * log p(y_n)          (SDPO, arXiv:2601.20802, sec. 3)

    Its value is no divergence: for y ~ p, only its gradient has the expectation grad KL(p || q).

    Args:
        student_logp_N: log-probability of the sampled token. Receives the gradient, through the second
            factor.
        teacher_logp_N: same shape and dtype; detached here, never receives one.

    Returns:
        (N,) in the inputs' dtype, of either sign.

    Raises:
        ValueError: the shapes differ, or a dtype is narrower than float32.
    """
    _check_pair(student_logp_N, teacher_logp_N)
    return (student_logp_N - teacher_logp_N).detach() * student_logp_N


def _entry_shares(
    student_logps_NK: Tensor, teacher_logps_NK: Tensor, alpha: float, is_linear: bool
) -> Tensor:
    """Each entry's summand of the divergence, of either sign: (N, K)."""
    _check_pair(student_logps_NK, teacher_logps_NK)
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha is {alpha}; it must be from 0 (forward KL) to 1 (reverse KL).")
    teacher_logps_NK = teacher_logps_NK.detach()
    if is_linear or alpha in (0.0, 1.0):
        reverse_NK = _relative_entropy_shares(student_logps_NK, teacher_logps_NK)
        return alpha * reverse_NK + (1.0 - alpha) * _relative_entropy_shares(
            teacher_logps_NK, student_logps_NK
        )
    mixture_NK = mixture_logps(student_logps_NK, teacher_logps_NK, alpha)
    student_term_NK = _relative_entropy_shares(student_logps_NK, mixture_NK)
    return alpha * _relative_entropy_shares(teacher_logps_NK, mixture_NK) + (1.0 - alpha) * student_term_NK


def _relative_entropy(logps_NK: Tensor, reference_logps_NK: Tensor) -> Tensor:
    """KL(first || second) of each token, differentiable in both."""
    return _relative_entropy_shares(logps_NK, reference_logps_NK).sum(-1)


def _relative_entropy_shares(logps_NK: Tensor, reference_logps_NK: Tensor) -> Tensor:
    """Each entry's summand of KL(first || second), differentiable in both."""
    return logps_NK.exp() * (logps_NK - reference_logps_NK)


def _check_pair(student_logps: Tensor, teacher_logps: Tensor) -> None:
    if student_logps.shape != teacher_logps.shape:
        raise ValueError(
            f"student log-probabilities have the shape {tuple(student_logps.shape)} and the teacher's "
            f"{tuple(teacher_logps.shape)}; both must be the same. "
            "Score the same tokens over the same vocabulary."
        )
    _check_dtype(student_logps)
    _check_dtype(teacher_logps)


def _check_dtype(logps: Tensor) -> None:
    if logps.dtype not in _DTYPES:
        raise ValueError(
            f"log-probabilities are {logps.dtype}; float32 or float64 is required. Convert the logits with "
            ".float() before the log-softmax: rounded log-probabilities cannot be repaired."
        )
