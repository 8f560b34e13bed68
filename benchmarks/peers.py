"""What is compared: one distillation loss, by every backend of ours and by the peers installed here.

Shapes: N packed scored tokens, C of them in a chunk, D hidden, V vocabulary.
"""

import importlib
import importlib.util
import os
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor

from benchmarks import earlier
from srpo_trl.loss import ops

QWEN3_VOCABULARY = 151_936
NEAR, FAR = 0.022, 1.0  # see make_case: a divergence of about 1e-3 and of about 0.5 nats
_LOGIT_DEVIATION = 4.0  # entropy of a few nats, as of a language model
FLOOR_TOKENS = {"cuda": 8192, "cpu": 512}  # enough for a product's best rate; more would only need memory

_STATISTICS_BYTES = 2**24  # of the teacher's pass: too few to be a process's peak

TOPK, FULL = "top 100 + tail", "full vocabulary"
SUPPORTS = {TOPK: 100, FULL: None}  # K of each
ANEW = ", teacher's product anew"  # where the log-sum-exp of the teacher's pass is not used


class BenchmarkCase(NamedTuple):
    """Inputs of one distillation loss; the student's receive a gradient."""

    student_hidden_ND: Tensor
    student_weight_VD: Tensor
    teacher_hidden_ND: Tensor
    teacher_weight_VD: Tensor
    token_ids_N: Tensor
    coefficient_N: Tensor
    teacher_log_sum_exp_N: Tensor  # which the teacher's pass leaves, beside its entropies

    @property
    def gradient_bytes(self) -> int:
        """Bytes of both gradients in the dtype of their inputs."""
        return self.student_hidden_ND.nbytes + self.student_weight_VD.nbytes

    @property
    def accumulator_bytes(self) -> int:
        """Bytes of a float32 accumulator of the head's gradient; 0 where the gradient itself is float32."""
        is_wide = self.student_weight_VD.dtype == torch.float32
        return 0 if is_wide else 4 * self.student_weight_VD.numel()


class Size(NamedTuple):
    """Of a case."""

    num_tokens: int
    hidden_size: int
    vocab_size: int
    dtype: torch.dtype

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"N={self.num_tokens:,} D={self.hidden_size:,} V={self.vocab_size:,} {dtype}"


def make_case(size: Size, device: torch.device, distance: float = NEAR, seed: int = 0) -> BenchmarkCase:
    """Return random inputs with peaked distributions, coefficients 1 / N.

    Args:
        size: of the case.
        device: that everything is made on.
        distance: from the student's hidden states to the teacher's, in units of their deviation.
        seed: of all random numbers.
    """
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=size.dtype)

    hidden_ND = normal(size.num_tokens, size.hidden_size)
    teacher_ND = hidden_ND + distance * normal(size.num_tokens, size.hidden_size)
    weight_VD = normal(size.vocab_size, size.hidden_size).mul_(_LOGIT_DEVIATION / size.hidden_size**0.5)
    return BenchmarkCase(
        student_hidden_ND=hidden_ND.clone().requires_grad_(),
        student_weight_VD=weight_VD.clone().requires_grad_(),
        teacher_hidden_ND=teacher_ND,
        teacher_weight_VD=weight_VD,
        token_ids_N=torch.randint(size.vocab_size, (size.num_tokens,), generator=generator, device=device),
        coefficient_N=torch.full((size.num_tokens,), 1 / size.num_tokens, device=device),
        teacher_log_sum_exp_N=ops.token_statistics(
            teacher_ND, ops.Head(weight_VD), 1.0, chunk_bytes=_STATISTICS_BYTES
        ).log_sum_exp_N,
    )


class Losses(NamedTuple):
    """The weighted sum, which makes the gradients, and each token's divergence where the contender gives it."""

    loss: Tensor
    divergence_N: Tensor | None


class Contender(NamedTuple):
    """One way to compute the loss.

    Attributes:
        name: unique.
        support: `TOPK` or `FULL`.
        losses: of a case.
        has_accumulator: whether it sums the head's gradient in float32 where its inputs are narrower.
    """

    name: str
    support: str
    losses: Callable[[BenchmarkCase], Losses]
    has_accumulator: bool = True


def srpo_losses(
    case: BenchmarkCase,
    backend: ops.Backend,
    topk: int | None,
    *,
    carries: bool = True,
    chunk_bytes: int | None = None,
    commit: str | None = None,
) -> Losses:
    """Ours; it carries the teacher's log-sum-exp as training does, or makes the teacher's product anew.

    `commit`: of another commit; one from before anything was carried takes part with `carries=False`.
    """
    own: Any = ops if commit is None else earlier.operators(commit)
    carried = {"teacher_log_sum_exp_N": case.teacher_log_sum_exp_N} if carries else {}
    result = own.distillation_loss(
        case.student_hidden_ND,
        own.Head(case.student_weight_VD),
        case.teacher_hidden_ND,
        own.Head(case.teacher_weight_VD),
        case.token_ids_N,
        case.coefficient_N,
        **carried,
        spec=own.DistillationSpec(alpha=0.5, topk=topk),
        backend=backend,
        chunk_bytes=chunk_bytes,
    )
    return Losses(result.loss, result.divergence_N)


def _trl_chunked(case: BenchmarkCase, function: Any) -> Losses:
    divergence_N, _ = function.apply(
        case.student_hidden_ND,
        case.student_weight_VD,
        None,
        case.teacher_hidden_ND,
        case.teacher_weight_VD,
        None,
        0.5,
    )
    return Losses((case.coefficient_N * divergence_N).sum(), divergence_N.detach())


def _liger_fused(case: BenchmarkCase, function: Any, accumulator: torch.dtype | None) -> Losses:
    inputs = case[:4]
    return Losses(function.apply(*inputs, None, 0.5, -100, 1.0, accumulator), None)


def _liger_chunked(case: BenchmarkCase, function: Any) -> Losses:
    weights_hard_soft, beta, ignored, temperature, compiled = (0.0, 1.0), 0.5, -100, 1.0, False
    labels_and_biases = (case.token_ids_N, None, None)
    options = (*weights_hard_soft, beta, ignored, temperature, compiled)
    return Losses(function.apply(*case[:4], *labels_and_biases, *options), None)


def _peer(module: str, name: str) -> Any:
    """Something of another package that is only measured; None where the installed version has no such thing."""
    try:
        return getattr(importlib.import_module(module), name, None)
    except ImportError:
        return None


def contenders(device: torch.device) -> list[Contender]:
    """Return ours, one of each backend that runs on `device`, the dense form, and the peers installed here."""
    on_gpu = device.type == "cuda"
    has_kernels = importlib.util.find_spec("triton") is not None
    has_kernels &= on_gpu or os.environ.get("TRITON_INTERPRET") == "1"
    fused = [
        b for b in get_args(ops.Backend) if b not in ("auto", "reference") and (has_kernels or b != "triton")
    ]
    found = [
        Contender(f"srpo_trl {backend}", support, partial(srpo_losses, backend=backend, topk=topk))
        for support, topk in SUPPORTS.items()
        for backend in fused
    ]
    found += [
        Contender(
            f"srpo_trl {backend}{ANEW}", TOPK, partial(srpo_losses, backend=backend, topk=100, carries=False)
        )
        for backend in fused
    ]
    dense = partial(srpo_losses, backend="reference", topk=100)
    found.append(Contender("dense, float32 logits (srpo_trl reference)", TOPK, dense))
    if chunked := _peer("trl.kernels.chunked_divergence", "ChunkedDivergenceFunction"):
        found.append(Contender("TRL chunked_divergence", FULL, partial(_trl_chunked, function=chunked)))
    if on_gpu:
        if liger := _peer("liger_kernel.ops.fused_linear_jsd", "LigerFusedLinearJSDFunction"):
            name = "Liger fused linear JSD"
            plain = partial(_liger_fused, function=liger, accumulator=None)
            wide = partial(_liger_fused, function=liger, accumulator=torch.float32)
            found += [
                Contender(name, FULL, plain, has_accumulator=False),
                Contender(f"{name}, float32 accumulator", FULL, wide),
            ]
    elif liger := _peer("liger_kernel.chunked_loss.jsd_loss", "LigerFusedLinearJSDFunction"):
        plain = partial(_liger_chunked, function=liger)
        found.append(Contender("Liger chunked JSD (torch)", FULL, plain, has_accumulator=False))
    return found


def loss_and_gradients(contender: Contender, case: BenchmarkCase) -> None:
    """Run the contender once, backward included, and drop what it made."""
    try:
        contender.losses(case).loss.backward()
    finally:
        case.student_hidden_ND.grad = case.student_weight_VD.grad = None


def floor_products(support: str) -> int:
    """Return how many products with a head every loss of this support must make.

    Logits and two gradients of the student; over the full vocabulary the teacher's logits as well, which a support
    needs at a few tokens only.
    """
    return 4 if support == FULL else 3


def head_products(case: BenchmarkCase, number: int) -> Callable[[], None]:
    """Return what makes the three products of the student, or all four, on the first C tokens: the floor, by N / C."""
    rows = slice(0, FLOOR_TOKENS.get(case.student_hidden_ND.device.type, 512))
    hidden_CD, weight_VD = case.student_hidden_ND.detach()[rows], case.student_weight_VD.detach()
    teacher_CD, teacher_VD = case.teacher_hidden_ND[rows], case.teacher_weight_VD

    def products() -> None:
        logits_CV = hidden_CD @ weight_VD.T
        if number == 4:
            teacher_CD @ teacher_VD.T
        logits_CV @ weight_VD
        logits_CV.T @ hidden_CD

    return products
