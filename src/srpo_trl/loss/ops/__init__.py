"""The distillation operators: from hidden states and LM heads to the loss, by one of several backends.

A backend is a module with `distillation_loss` and `token_statistics`; callers name it and know nothing else of
it. Shapes: N packed scored tokens, D hidden, V vocabulary.
"""

import functools
import importlib.util
import logging
from types import ModuleType
from typing import Literal, get_args

import torch
from torch import Tensor

from srpo_trl.loss.ops import chunked, reference
from srpo_trl.loss.ops.chunk_size import default_chunk_bytes, statistics_chunk_bytes
from srpo_trl.loss.ops.interface import (
    DistillationResult,
    DistillationSpec,
    Head,
    TokenStatistics,
    check_distillation_inputs,
    check_head,
    check_sides,
    compute_dtype,
)
from srpo_trl.loss.ops.plan import slices
from srpo_trl.loss.ops.teacher_rows import teacher_logps

__all__ = [
    "Backend",
    "DistillationResult",
    "DistillationSpec",
    "Head",
    "TokenStatistics",
    "distillation_loss",
    "hellinger",
    "sampled_logps",
    "token_statistics",
]

Backend = Literal["auto", "reference", "chunked", "triton"]

_LOGPS_BLOCK = 1024  # tokens whose rows of a head are gathered at a time

_logger = logging.getLogger(__name__)


def distillation_loss(
    student_hidden_ND: Tensor,
    student_head: Head,
    teacher_hidden_ND: Tensor,
    teacher_head: Head,
    token_ids_N: Tensor,
    coefficient_N: Tensor,
    old_logps_N: Tensor | None = None,
    teacher_log_sum_exp_N: Tensor | None = None,
    *,
    spec: DistillationSpec,
    backend: Backend = "auto",
    chunk_bytes: int | None = None,
    refuse_nonfinite: bool = True,
) -> DistillationResult:
    """The weighted sum of the tokens' divergences from student to teacher, lower where the two agree.

        loss = sum_n coefficient_n * ratio_n * l_n,   ratio_n = min(exp(clamp(log pi_theta - log pi_old, -20,
        20)), clip)
                                           (SDPO, arXiv:2601.20802; SRPO, arXiv:2604.02288, sec. 3.3, table 3)

    The product with the head, the log-softmax and everything after it is float32 (float64 where any hidden
    state or weight is). Under autocast on a GPU its factors are rounded to bfloat16 or float16, as autocast rounds
    them everywhere, and the product is not. No gradient flows to the teacher, even where both sides share a
    tensor, nor through the ratio, the coefficients or the choice of the top K. Student logits must be finite: others
    make the loss and its gradient NaN.

    Args:
        student_hidden_ND: last hidden states at the positions that predict the sampled tokens. Receives the
            gradient.
        student_head: weight and bias receive the gradient where they require one.
        teacher_hidden_ND: the teacher's at the same tokens; never receives a gradient.
        teacher_head: never receives a gradient. Its vocabulary is the student's, its width may differ.
        token_ids_N: int64, the sampled tokens y_n, from 0 to V - 1.
        coefficient_N: weight over denominator of each token; 0 for tokens that do not count. No gradient.
        old_logps_N: log pi_old(y_n) in nats of the policy that sampled; None: every ratio is 1. No gradient.
        teacher_log_sum_exp_N: from `token_statistics` of these teacher's hidden states with this head and temperature.
            With a top K or the sampled token the loss then costs three products with a head. None: a fourth makes it.
            The full vocabulary needs four and does not read it.
        spec: what is computed per token.
        backend: "reference" holds whole (N, V) matrices; "chunked" never more than `chunk_bytes`; "triton"
            is the same with fused kernels, on a GPU; "auto" takes "triton" where it can, else "chunked", and
            logs its choice once.
        chunk_bytes: bound of the temporary memory of "chunked" and "triton", outputs and gradients aside. One
            token at a time is the least, whatever the bound. None: room for 4,096 tokens, because the head's
            gradient is read and written once per chunk, or for 2,048, 1,024 and so on where that is more than a
            quarter of what is free on the device. The bits of the sums depend on the chunks.
        refuse_nonfinite: raise where the loss is NaN for a logit that is not finite. On a GPU, which the check would
            wait for, nothing is raised.

    Returns:
        `DistillationResult`; N = 0 gives a loss of 0 that still makes (zero) gradients.

    Raises:
        ValueError: shapes do not fit together, `backend` is unknown or cannot run these inputs, or a student logit
            is refused.
    """
    student_hidden_ND, student_head = _round_as_autocast(student_hidden_ND, student_head)
    teacher_hidden_ND, teacher_head = _round_as_autocast(teacher_hidden_ND, teacher_head)
    check_distillation_inputs(
        student_hidden_ND,
        student_head,
        teacher_hidden_ND,
        teacher_head,
        token_ids_N,
        coefficient_N,
        old_logps_N,
        teacher_log_sum_exp_N,
    )
    arguments = (
        student_hidden_ND,
        student_head,
        teacher_hidden_ND.detach(),
        teacher_head.detach(),
        token_ids_N,
        coefficient_N.detach(),
        None if old_logps_N is None else old_logps_N.detach(),
    )
    teacher_log_sum_exp_N = None if teacher_log_sum_exp_N is None else teacher_log_sum_exp_N.detach()
    with _without_autocast(student_hidden_ND):
        dtype = compute_dtype(
            student_hidden_ND, student_head.weight_VD, teacher_hidden_ND, teacher_head.weight_VD
        )
        vocab_size = student_head.weight_VD.shape[0]
        name = _resolve(backend, student_hidden_ND.device, dtype, spec.support_size(vocab_size) or 0)
        log_sum_exp_N = None
        if spec.needs_log_sum_exp(vocab_size):
            log_sum_exp_N = teacher_log_sum_exp_N
            if log_sum_exp_N is None and name != "reference":  # which has whole matrices in its place
                log_sum_exp_N = _statistics(
                    name, *arguments[2:4], spec.temperature, chunk_bytes
                ).log_sum_exp_N
        if name == "reference":
            result = reference.distillation_loss(*arguments, log_sum_exp_N, spec)
        else:
            chunk_bytes = chunk_bytes or default_chunk_bytes(student_hidden_ND, student_head, dtype, spec)
            result = _bounded(name).distillation_loss(*arguments, log_sum_exp_N, spec, chunk_bytes)
    is_finite = result.student_entropy_N.isfinite().all()
    if refuse_nonfinite:
        _refuse_infinite_logits("student", is_finite)
    # A product, because the gradient must be NaN as well, and for all tokens.
    return result._replace(loss=result.loss * torch.where(is_finite, 1.0, torch.nan))


def token_statistics(
    hidden_ND: Tensor,
    head: Head,
    temperature: float,
    *,
    backend: Backend = "auto",
    chunk_bytes: int | None = None,
    refuse_nonfinite: bool = True,
) -> TokenStatistics:
    """Entropy and log-sum-exp of each token's logits over the whole vocabulary, in nats, from one product.

        log_sum_exp_n = log sum_v exp(z_v),   H_n = - sum_v q_v log q_v,   q = softmax(z),   z = logits / temperature
                                                                              (SRPO, arXiv:2604.02288, sec. 3.2)

    Args:
        hidden_ND: last hidden states; never receives a gradient.
        head: never receives a gradient.
        temperature: above 0.
        backend: as in `distillation_loss`.
        chunk_bytes: as in `distillation_loss`; None: 256 MiB, on a GPU 512 MiB.
        refuse_nonfinite: as in `distillation_loss`.

    Returns:
        `TokenStatistics` in float32 (float64 where hidden states or weight are), no gradient. The entropy is from 0 to
        log V, and NaN where a logit is not finite.

    Raises:
        ValueError: the head does not fit the hidden states, temperature is not above 0, `backend` is unknown
            or cannot run these inputs, or a logit is refused.
    """
    check_head("teacher", hidden_ND, head)
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be above 0. Pass the sampling temperature.")
    hidden_ND, head = _round_as_autocast(hidden_ND, head)
    with _without_autocast(hidden_ND):
        name = _resolve(backend, hidden_ND.device, compute_dtype(hidden_ND, head.weight_VD), 0)
        statistics = _statistics(name, hidden_ND, head, temperature, chunk_bytes)
    if refuse_nonfinite:
        _refuse_infinite_logits("teacher", statistics.entropy_N.isfinite().all())
    return statistics


def sampled_logps(
    hidden_ND: Tensor, head: Head, token_ids_N: Tensor, log_sum_exp_N: Tensor, temperature: float
) -> Tensor:
    """Log-probability of one given token at each position, in nats: its logit less the log-sum-exp of all.

    Args:
        hidden_ND: last hidden states.
        head: that projects them; its rows of the given tokens alone are read.
        token_ids_N: int64, from 0 to V - 1.
        log_sum_exp_N: from `token_statistics` of these hidden states with this head and temperature.
        temperature: above 0.

    Returns:
        (N,) float32 (float64 where hidden states or weight are), no gradient.
    """
    hidden_ND, head = _round_as_autocast(hidden_ND.detach(), head.detach())
    dtype = compute_dtype(hidden_ND, head.weight_VD)
    with _without_autocast(hidden_ND):
        blocks = [
            teacher_logps(
                hidden_ND[block],
                head,
                token_ids_N[block].unsqueeze(1),
                log_sum_exp_N[block],
                temperature,
                dtype,
            )
            for block in slices(0, len(hidden_ND), _LOGPS_BLOCK)
        ]
    return torch.cat([hidden_ND.new_empty(0, 1, dtype=dtype), *blocks]).squeeze(1)


def hellinger(
    hidden_ND: Tensor,
    head: Head,
    other_hidden_ND: Tensor,
    other_head: Head,
    temperature: float,
    *,
    backend: Backend = "auto",
    chunk_bytes: int | None = None,
    refuse_nonfinite: bool = True,
) -> Tensor:
    """Hellinger distance of two sides at each token, over the whole vocabulary: 0 where they agree, 1 where disjoint.

        H_n = sqrt(1 - sum_v sqrt(p_v q_v)) = sqrt(1/2 sum_v (sqrt(p_v) - sqrt(q_v))^2)         (DGPO, arXiv:2605.03327)

    Args:
        hidden_ND: last hidden states; never receives a gradient.
        head: never receives a gradient.
        other_hidden_ND: the other side's at the same tokens; never receives a gradient.
        other_head: never receives a gradient. Its vocabulary is the head's, its width may differ.
        temperature: above 0.
        backend: as in `distillation_loss`, but there are no kernels: "auto" is "chunked" on a GPU, too.
        chunk_bytes: as in `token_statistics`.
        refuse_nonfinite: as in `distillation_loss`.

    Returns:
        (N,) float32 (float64 where hidden states or weights are), from 0 to 1, no gradient; NaN where a logit is NaN
        or above all numbers.

    Raises:
        ValueError: a head does not fit its hidden states, the sides do not fit together, temperature is not above 0,
            `backend` is unknown or "triton", or a logit is refused.
    """
    check_sides(hidden_ND, head, other_hidden_ND, other_head, "first side", "second side")
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be above 0. Pass the sampling temperature.")
    if backend not in ("auto", "reference", "chunked"):
        raise ValueError(
            f"backend is {backend!r}; the Hellinger distance has 'reference' and 'chunked'. Use 'auto'."
        )
    sides = (*_round_as_autocast(hidden_ND, head), *_round_as_autocast(other_hidden_ND, other_head))
    with _without_autocast(hidden_ND):
        if backend == "reference":
            distance_N = reference.hellinger(*sides, temperature)
        else:
            chunk_bytes = chunk_bytes or statistics_chunk_bytes(hidden_ND.is_cuda)
            distance_N = chunked.hellinger(*sides, temperature, chunk_bytes)
    if refuse_nonfinite:
        _refuse_infinite_logits("first or second side", distance_N.isfinite().all())
    return distance_N


def _statistics(
    name: str, hidden_ND: Tensor, head: Head, temperature: float, chunk_bytes: int | None
) -> TokenStatistics:
    """`token_statistics` by the backend of that name, of inputs that were checked."""
    if name == "reference":
        return reference.token_statistics(hidden_ND, head, temperature)
    chunk_bytes = chunk_bytes or statistics_chunk_bytes(hidden_ND.is_cuda)
    statistics: TokenStatistics = _bounded(name).token_statistics(hidden_ND, head, temperature, chunk_bytes)
    return statistics


def _refuse_infinite_logits(side: str, is_finite: Tensor) -> None:
    """An entropy over the whole vocabulary is NaN where any logit is infinite or NaN; only a CPU need not wait."""
    if not is_finite.is_cuda and not is_finite:
        raise ValueError(
            f"the {side}'s logits hold an infinite value or NaN; finite ones are required. A vocabulary padded with "
            "-inf needs a large negative number there instead; otherwise its weights have diverged."
        )


def _resolve(backend: Backend, device: torch.device, dtype: torch.dtype, topk: int) -> str:
    """The backend to run: the given one, or the one that "auto" means for such inputs."""
    if backend not in get_args(Backend):
        raise ValueError(f"backend is {backend!r}; it must be one of {get_args(Backend)}.")
    if backend in ("reference", "chunked"):
        return backend
    if backend == "auto" and device.type != "cuda":
        _announce("chunked", f"the tensors are on {device.type}")
        return "chunked"
    obstacle = _obstacle_to_triton(device, dtype, topk)
    if backend == "triton":
        if obstacle is not None:
            raise ValueError(f"backend is 'triton', but {obstacle}.")
        return "triton"
    if obstacle is None:
        obstacle = _disagreement_of_triton(device)
    name = "triton" if obstacle is None else "chunked"
    _announce(name, obstacle or "the tensors are on a GPU, where the kernels agree with the reference")
    return name


def _obstacle_to_triton(device: torch.device, dtype: torch.dtype, topk: int) -> str | None:
    """Why the Triton kernels cannot run such inputs and what to do; None where they can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed. Install triton, or use 'auto', which does without"
    from srpo_trl.loss.ops import fused

    if device.type != "cuda" and not fused.interpreted():
        return (
            f"the tensors are on {device.type}, where Triton kernels run in its interpreter only. Move them to "
            "a GPU, use 'auto', or for a test set TRITON_INTERPRET=1 before Triton is first imported"
        )
    if dtype != torch.float32:
        return f"its kernels compute in float32, and {dtype} is asked for. Use 'chunked', or narrower inputs"
    if topk > fused.MAX_TOPK:
        return (
            f"its kernels take a top K of at most {fused.MAX_TOPK}, and {topk} is asked for. Use 'chunked', a "
            "smaller top K, or the full vocabulary"
        )
    return None


@functools.cache
def _disagreement_of_triton(device: torch.device) -> str | None:
    """What the Triton kernels get wrong on this device, found on a small problem once per process; None: nothing."""
    from srpo_trl.loss.ops import self_test

    return self_test.disagreement(device)


def _bounded(name: str) -> ModuleType:
    """The module of a backend with bounded memory; Triton's is imported where it is used only."""
    if name == "triton":
        from srpo_trl.loss.ops import fused

        return fused
    return chunked


@functools.cache
def _announce(name: str, reason: str) -> None:
    """Log what "auto" chose, once for each reason; losing the kernels on a GPU is worth a warning."""
    level = logging.WARNING if name == "chunked" and torch.cuda.is_available() else logging.INFO
    _logger.log(level, "backend 'auto' of the distillation loss is %r: %s.", name, reason)


def _round_as_autocast(hidden_ND: Tensor, head: Head) -> tuple[Tensor, Head]:
    """Under autocast on a GPU both factors of the head's product in its dtype, else as they are."""
    device_type = hidden_ND.device.type
    is_rounded = device_type != "cpu" and torch.is_autocast_enabled(device_type)
    if not is_rounded or hidden_ND.dtype == torch.float64:
        return hidden_ND, head
    dtype = torch.get_autocast_dtype(device_type)
    return hidden_ND.to(dtype), head._replace(weight_VD=head.weight_VD.to(dtype))


def _without_autocast(tensor: Tensor) -> torch.autocast:
    """Autocast would round the product with the head."""
    return torch.autocast(device_type=tensor.device.type, enabled=False)
