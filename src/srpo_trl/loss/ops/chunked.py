"""The distillation operators in bounded memory, on any device: gradients are made in the forward, chunk by
chunk.

Every factor of a token's loss is known before the pass, so one sweep over chunks of tokens makes the loss and
the gradients of hidden states and head, and no (N, V) matrix ever exists. The backward only multiplies by its
upstream scalar. A token costs four products with a head: two of logits, two of gradients.

Shapes: N packed scored tokens, C tokens of a chunk, R tokens of a block (chunks are worked through in blocks
where many temporaries are needed), D hidden, V vocabulary.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from srpo_trl.loss.entropy import entropy
from srpo_trl.loss.importance import importance_ratio
from srpo_trl.loss.ops.interface import DistillationResult, DistillationSpec, Head, compute_dtype
from srpo_trl.loss.ops.plan import plan_distillation, plan_entropy, slices
from srpo_trl.loss.ops.projection import (
    add_weight_gradient_,
    hidden_gradient_,
    matmul_precision,
    project_,
    softcap_slope_,
)
from srpo_trl.loss.ops.token_losses import token_losses


class Inputs(NamedTuple):
    """Everything that is no differentiable input."""

    student_logit_scale: float
    student_softcap: float | None
    teacher_hidden_ND: Tensor
    teacher_head: Head
    token_ids_N: Tensor
    coefficient_N: Tensor
    old_logps_N: Tensor | None
    spec: DistillationSpec
    chunk_bytes: int
    needs_hidden: bool
    needs_weight: bool
    needs_bias: bool

    @property
    def needs_gradient(self) -> bool:
        """Whether any gradient is asked for."""
        return self.needs_hidden or self.needs_weight or self.needs_bias


class ChunkedResult(NamedTuple):
    """What one pass over all chunks makes; a gradient that was not asked for is None.

    Attributes:
        statistics_6N: the loss with coefficient and ratio, then the fields of `DistillationResult` in their
            order.
        grad_hidden_ND: of the hidden states.
        grad_weight_VD: of the head's weight.
        grad_bias_V: of the head's bias.
    """

    statistics_6N: Tensor
    grad_hidden_ND: Tensor | None
    grad_weight_VD: Tensor | None
    grad_bias_V: Tensor | None


def distillation_loss(
    student_hidden_ND: Tensor,
    student_head: Head,
    teacher_hidden_ND: Tensor,
    teacher_head: Head,
    token_ids_N: Tensor,
    coefficient_N: Tensor,
    old_logps_N: Tensor | None,
    spec: DistillationSpec,
    chunk_bytes: int,
    sweep: Callable[[Tensor, Tensor, Tensor | None, Inputs], ChunkedResult] | None = None,
) -> DistillationResult:
    """See `srpo_trl.loss.ops.distillation_loss`; `sweep` makes the pass over all chunks in place of this file's."""
    weight_VD, bias_V = student_head.weight_VD, student_head.bias_V
    with_gradient = torch.is_grad_enabled()
    inputs = Inputs(
        student_logit_scale=student_head.logit_scale,
        student_softcap=student_head.softcap,
        teacher_hidden_ND=teacher_hidden_ND,
        teacher_head=teacher_head,
        token_ids_N=token_ids_N,
        coefficient_N=coefficient_N,
        old_logps_N=old_logps_N,
        spec=spec,
        chunk_bytes=chunk_bytes,
        needs_hidden=with_gradient and student_hidden_ND.requires_grad,
        needs_weight=with_gradient and weight_VD.requires_grad,
        needs_bias=with_gradient and bias_V is not None and bias_V.requires_grad,
    )
    loss, statistics_6N = _DistillationLoss.apply(
        student_hidden_ND, weight_VD, bias_V, inputs, sweep or _sweep
    )
    return DistillationResult(loss, *statistics_6N[1:])


def teacher_entropy(hidden_ND: Tensor, head: Head, temperature: float, chunk_bytes: int) -> Tensor:
    """See `srpo_trl.loss.ops.teacher_entropy`."""
    with torch.no_grad():
        dtype = compute_dtype(hidden_ND, head.weight_VD)
        plan = plan_entropy(hidden_ND, head, dtype, chunk_bytes)
        precision = matmul_precision(hidden_ND, head.weight_VD, dtype)
        entropy_N = hidden_ND.new_empty(hidden_ND.shape[0], dtype=dtype)
        buffer_CV = hidden_ND.new_empty((plan.chunk_tokens, head.weight_VD.shape[0]), dtype=dtype)
        for tokens in slices(0, hidden_ND.shape[0], plan.chunk_tokens):
            logits_CV = buffer_CV[: tokens.stop - tokens.start]
            project_(logits_CV, hidden_ND[tokens], head, temperature, precision, plan.tile_rows)
            for block in slices(tokens.start, tokens.stop, plan.block_tokens):
                local = slice(block.start - tokens.start, block.stop - tokens.start)
                entropy_N[block] = entropy(torch.log_softmax(logits_CV[local], dim=-1))
        return entropy_N


class _DistillationLoss(torch.autograd.Function):
    """The sweep as one differentiable step."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        inputs: Inputs,
        make_sweep: Callable[[Tensor, Tensor, Tensor | None, Inputs], ChunkedResult],
    ) -> tuple[Tensor, Tensor]:
        sweep = make_sweep(hidden_ND, weight_VD, bias_V, inputs)
        ctx.save_for_backward(sweep.grad_hidden_ND, sweep.grad_weight_VD, sweep.grad_bias_V)
        ctx.dtypes = (hidden_ND.dtype, weight_VD.dtype, None if bias_V is None else bias_V.dtype)
        ctx.chunk_bytes = inputs.chunk_bytes
        ctx.mark_non_differentiable(sweep.statistics_6N)
        ctx.set_materialize_grads(False)  # no zeros for the statistics
        return sweep.statistics_6N[0].sum(), sweep.statistics_6N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        gradients = [
            None if saved is None or upstream is None else _scaled(saved, upstream, dtype, ctx.chunk_bytes)
            for saved, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return (*gradients, None, None)


def _sweep(hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, inputs: Inputs) -> ChunkedResult:
    """Loss, statistics and the gradients that `inputs` ask for, chunk by chunk."""
    teacher_head = inputs.teacher_head
    head = Head(weight_VD, bias_V, inputs.student_logit_scale, inputs.student_softcap)
    dtype = compute_dtype(hidden_ND, weight_VD, inputs.teacher_hidden_ND, teacher_head.weight_VD)
    sides = (
        (hidden_ND, head, matmul_precision(hidden_ND, weight_VD, dtype)),
        (
            inputs.teacher_hidden_ND,
            teacher_head,
            matmul_precision(inputs.teacher_hidden_ND, teacher_head.weight_VD, dtype),
        ),
    )
    (num_tokens, _), vocab_size = hidden_ND.shape, weight_VD.shape[0]
    plan = plan_distillation(*sides[0][:2], *sides[1][:2], dtype, inputs.spec, inputs.chunk_bytes)
    # A token's hidden gradient is complete after its chunk, so it may be rounded to bfloat16 then; in float16 small
    # ones would be lost before `backward` has multiplied by its upstream scalar.
    hidden_dtype = torch.bfloat16 if hidden_ND.dtype == torch.bfloat16 else dtype
    sweep = ChunkedResult(
        statistics_6N=hidden_ND.new_empty((6, num_tokens), dtype=dtype),
        grad_hidden_ND=torch.empty_like(hidden_ND, dtype=hidden_dtype) if inputs.needs_hidden else None,
        grad_weight_VD=torch.zeros_like(weight_VD, dtype=dtype) if inputs.needs_weight else None,
        grad_bias_V=hidden_ND.new_zeros(vocab_size, dtype=dtype) if inputs.needs_bias else None,
    )
    buffers_2CV = hidden_ND.new_empty((2, plan.chunk_tokens, vocab_size), dtype=dtype)
    for tokens in slices(0, num_tokens, plan.chunk_tokens):
        logits_2CV = buffers_2CV[:, : tokens.stop - tokens.start]
        for logits_CV, (side_hidden_ND, side_head, precision) in zip(logits_2CV, sides, strict=True):
            project_(
                logits_CV,
                side_hidden_ND[tokens],
                side_head,
                inputs.spec.temperature,
                precision,
                plan.tile_rows,
            )
        for block in slices(tokens.start, tokens.stop, plan.block_tokens):
            local = slice(block.start - tokens.start, block.stop - tokens.start)
            _reduce_block_(logits_2CV[:, local], sweep.statistics_6N[:, block], head, inputs, block)
        if inputs.needs_gradient:
            _accumulate_gradients_(sweep, logits_2CV, hidden_ND, weight_VD, tokens, plan.tile_rows)
    return sweep


def _reduce_block_(
    logits_2RV: Tensor, statistics_6R: Tensor, head: Head, inputs: Inputs, block: slice
) -> None:
    """Fill the block's statistics, and turn the student's logits into the gradient of hidden W^T + bias.

    Args:
        logits_2RV: the student's, overwritten, and the teacher's.
        statistics_6R: the loss with coefficient and ratio, then the fields of `DistillationResult` in their
            order.
        head: the student's.
        inputs: per-token arguments and options.
        block: the block's place among the N tokens.
    """
    spec, (student_RV, teacher_RV) = inputs.spec, logits_2RV
    terms = token_losses(student_RV, teacher_RV, inputs.token_ids_N[block], spec, inputs.needs_gradient)
    ratio_R = torch.ones_like(terms.student_logps_R)
    if inputs.old_logps_N is not None:
        old_logps_R = inputs.old_logps_N[block].to(student_RV.dtype)
        ratio_R = importance_ratio(terms.student_logps_R, old_logps_R, spec.importance_clip)
    factor_R = inputs.coefficient_N[block].to(student_RV.dtype) * ratio_R
    statistics = (
        factor_R * terms.token_loss_R,
        terms.divergence_R,
        terms.student_logps_R,
        terms.student_entropy_R,
        terms.topk_mass_R,
        ratio_R,
    )
    for row_R, value_R in zip(statistics_6R, statistics, strict=True):
        row_R.copy_(value_R)
    if terms.grad_logits_RV is None:
        return
    terms.grad_logits_RV.mul_((factor_R * (head.logit_scale / spec.temperature)).unsqueeze(-1))
    if head.softcap is None:
        student_RV.copy_(terms.grad_logits_RV)
    else:
        softcap_slope_(student_RV, head.softcap, spec.temperature)
        student_RV.mul_(terms.grad_logits_RV)


def _accumulate_gradients_(
    sweep: ChunkedResult,
    logits_2CV: Tensor,
    hidden_ND: Tensor,
    weight_VD: Tensor,
    tokens: slice,
    tile_rows: int,
) -> None:
    """Add the chunk's share to the sweep's gradients; `logits_2CV[0]` is the gradient of hidden W^T +
    bias."""
    grad_product_CV, teacher_CV = logits_2CV
    precision = matmul_precision(hidden_ND, weight_VD, logits_2CV.dtype)
    if sweep.grad_bias_V is not None:
        sweep.grad_bias_V.add_(grad_product_CV.sum(0))
    if precision == "mixed":
        # The teacher's logits are done with: their memory takes the gradient in the dtype of the products.
        rounded_CV = teacher_CV.view(weight_VD.dtype)[:, : weight_VD.shape[0]]
        grad_product_CV = rounded_CV.copy_(grad_product_CV)
    if sweep.grad_hidden_ND is not None:
        kept_CD = sweep.grad_hidden_ND[tokens]
        made_CD = (
            torch.empty_like(kept_CD, dtype=logits_2CV.dtype)
            if kept_CD.dtype != logits_2CV.dtype
            else kept_CD
        )
        hidden_gradient_(made_CD, grad_product_CV, weight_VD, precision, tile_rows)
        kept_CD.copy_(made_CD)
        del made_CD  # before the next temporary is made
    if sweep.grad_weight_VD is not None:
        add_weight_gradient_(sweep.grad_weight_VD, grad_product_CV, hidden_ND[tokens], precision)


def _scaled(gradient: Tensor, upstream: Tensor, dtype: torch.dtype, chunk_bytes: int) -> Tensor:
    """`upstream * gradient` in `dtype`, without a second whole matrix in the gradient's own dtype."""
    if gradient.dtype == dtype:
        return gradient * upstream
    scaled = torch.empty_like(gradient, dtype=dtype)
    row_bytes = max(1, gradient[:1].numel()) * gradient.element_size()
    for rows in slices(0, gradient.shape[0], max(1, chunk_bytes // row_bytes)):
        scaled[rows] = gradient[rows] * upstream
    return scaled
