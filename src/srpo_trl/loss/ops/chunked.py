"""The distillation operators in bounded memory, on any device: gradients are made in the forward, chunk by
chunk.

Every factor of a token's loss is known before the pass, so one sweep over chunks of tokens makes the loss and
the gradients of hidden states and head, and no (N, V) matrix ever exists. The backward only multiplies by its
upstream scalar. A token costs three products with a head, the student's logits and two gradients, and of the
teacher's head a gathered row for each token of its support; with the full vocabulary a fourth, the teacher's logits.

Shapes: N packed scored tokens, C tokens of a chunk, R tokens of a block (chunks are worked through in blocks
where many temporaries are needed), D hidden, V vocabulary.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from srpo_trl.loss.importance import importance_ratio
from srpo_trl.loss.ops.interface import (
    DistillationResult,
    DistillationSpec,
    Head,
    TokenStatistics,
    compute_dtype,
)
from srpo_trl.loss.ops.plan import ChunkPlan, plan_distillation, plan_statistics, slices
from srpo_trl.loss.ops.projection import (
    add_weight_gradient_,
    gradient_lift,
    gradient_view,
    hidden_gradient_,
    matmul_precision,
    project_,
    softcap_slope_,
)
from srpo_trl.loss.ops.teacher_rows import teacher_logps, teacher_tail_
from srpo_trl.loss.ops.token_losses import (
    TokenTerms,
    full_losses,
    gradient_ids,
    root_probs_,
    row_statistics_,
    student_rows,
    support_terms,
)


class Inputs(NamedTuple):
    """Everything that is no differentiable input.

    `teacher_log_sum_exp_N` is None where `DistillationSpec` needs none.
    """

    student_logit_scale: float
    student_softcap: float | None
    teacher_hidden_ND: Tensor
    teacher_head: Head
    teacher_log_sum_exp_N: Tensor | None
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
    teacher_log_sum_exp_N: Tensor | None,
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
        teacher_log_sum_exp_N=teacher_log_sum_exp_N,
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


def token_statistics(hidden_ND: Tensor, head: Head, temperature: float, chunk_bytes: int) -> TokenStatistics:
    """See `srpo_trl.loss.ops.token_statistics`."""
    with torch.no_grad():
        dtype = compute_dtype(hidden_ND, head.weight_VD)
        plan = plan_statistics(hidden_ND, head, dtype, chunk_bytes)
        precision = matmul_precision(hidden_ND, head.weight_VD, dtype)
        entropy_N, log_sum_exp_N = hidden_ND.new_empty((2, hidden_ND.shape[0]), dtype=dtype)
        buffer_CV = hidden_ND.new_empty((plan.chunk_tokens, head.weight_VD.shape[0]), dtype=dtype)
        for tokens in slices(0, hidden_ND.shape[0], plan.chunk_tokens):
            logits_CV = buffer_CV[: tokens.stop - tokens.start]
            project_(logits_CV, hidden_ND[tokens], head, temperature, precision, plan.tile_rows)
            for block in slices(tokens.start, tokens.stop, plan.block_tokens):
                local = slice(block.start - tokens.start, block.stop - tokens.start)
                entropy_N[block], log_sum_exp_N[block] = row_statistics_(logits_CV[local])
        return TokenStatistics(entropy_N, log_sum_exp_N)


def hellinger(
    hidden_ND: Tensor,
    head: Head,
    other_hidden_ND: Tensor,
    other_head: Head,
    temperature: float,
    chunk_bytes: int,
) -> Tensor:
    """See `srpo_trl.loss.ops.hellinger`; both sides' logits of a chunk are held, and become sqrt(p) and sqrt(q)."""
    sides = ((hidden_ND, head), (other_hidden_ND, other_head))
    with torch.no_grad():
        dtype = compute_dtype(hidden_ND, head.weight_VD, other_hidden_ND, other_head.weight_VD)
        plan = plan_distillation(*sides[0], *sides[1], dtype, DistillationSpec(topk=None), chunk_bytes)
        distance_N = hidden_ND.new_empty(hidden_ND.shape[0], dtype=dtype)
        buffer_2CV = hidden_ND.new_empty((2, plan.chunk_tokens, head.weight_VD.shape[0]), dtype=dtype)
        for tokens in slices(0, hidden_ND.shape[0], plan.chunk_tokens):
            logits_2CV = buffer_2CV[:, : tokens.stop - tokens.start]
            for logits_CV, (side_ND, side_head) in zip(logits_2CV, sides, strict=True):
                precision = matmul_precision(side_ND, side_head.weight_VD, dtype)
                project_(logits_CV, side_ND[tokens], side_head, temperature, precision, plan.tile_rows)
            for block in slices(tokens.start, tokens.stop, plan.block_tokens):
                local = slice(block.start - tokens.start, block.stop - tokens.start)
                roots_RV, other_roots_RV = map(root_probs_, logits_2CV[:, local])
                square_R = roots_RV.sub_(other_roots_RV).square_().sum(-1)
                distance_N[block] = square_R.mul_(0.5).sqrt_().clamp_(max=1.0)
        return distance_N


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
        lift = _lift(hidden_ND, weight_VD, inputs)
        if lift is not None:
            inputs = inputs._replace(coefficient_N=inputs.coefficient_N.float() * lift)
        sweep = make_sweep(hidden_ND, weight_VD, bias_V, inputs)
        if lift is not None:
            sweep.statistics_6N[0].div_(lift)
        ctx.lift = lift
        ctx.save_for_backward(sweep.grad_hidden_ND, sweep.grad_weight_VD, sweep.grad_bias_V)
        ctx.dtypes = (hidden_ND.dtype, weight_VD.dtype, None if bias_V is None else bias_V.dtype)
        ctx.chunk_bytes = inputs.chunk_bytes
        ctx.mark_non_differentiable(sweep.statistics_6N)
        ctx.set_materialize_grads(False)  # no zeros for the statistics
        return sweep.statistics_6N[0].sum(), sweep.statistics_6N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if upstream is not None and ctx.lift is not None:
            upstream = upstream / ctx.lift
        gradients = [
            None if saved is None or upstream is None else _scaled(saved, upstream, dtype, ctx.chunk_bytes)
            for saved, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return (*gradients, None, None)


def _lift(hidden_ND: Tensor, weight_VD: Tensor, inputs: Inputs) -> Tensor | None:
    """What the coefficients are multiplied by, and loss and gradients divided by; None where nothing has to be."""
    dtype = compute_dtype(hidden_ND, weight_VD, inputs.teacher_hidden_ND, inputs.teacher_head.weight_VD)
    is_mixed = matmul_precision(hidden_ND, weight_VD, dtype) == "mixed"
    if not is_mixed or weight_VD.dtype != torch.float16 or not inputs.needs_gradient:
        return None
    spec = inputs.spec
    return gradient_lift(
        inputs.coefficient_N, inputs.student_logit_scale, spec.temperature, spec.importance_clip
    )


def _sweep(hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, inputs: Inputs) -> ChunkedResult:
    """Loss, statistics and the gradients that `inputs` ask for, chunk by chunk."""
    teacher_ND, teacher_head = inputs.teacher_hidden_ND, inputs.teacher_head
    head = Head(weight_VD, bias_V, inputs.student_logit_scale, inputs.student_softcap)
    dtype = compute_dtype(hidden_ND, weight_VD, teacher_ND, teacher_head.weight_VD)
    precision = matmul_precision(hidden_ND, weight_VD, dtype)
    teacher_precision = matmul_precision(teacher_ND, teacher_head.weight_VD, dtype)
    (num_tokens, _), vocab_size = hidden_ND.shape, weight_VD.shape[0]
    plan = plan_distillation(
        hidden_ND, head, teacher_ND, teacher_head, dtype, inputs.spec, inputs.chunk_bytes
    )
    sweep = empty_result(hidden_ND, weight_VD, dtype, inputs)
    is_whole, temperature = inputs.spec.needs_whole_teacher(vocab_size), inputs.spec.temperature
    buffer_CV = hidden_ND.new_empty((plan.chunk_tokens, vocab_size), dtype=dtype)
    teacher_buffer_CV = torch.empty_like(buffer_CV) if is_whole else buffer_CV[:0]
    for tokens in slices(0, num_tokens, plan.chunk_tokens):
        logits_CV, teacher_CV = (b[: tokens.stop - tokens.start] for b in (buffer_CV, teacher_buffer_CV))
        project_(logits_CV, hidden_ND[tokens], head, temperature, precision, plan.tile_rows)
        if is_whole:
            teacher_CD = teacher_ND[tokens]
            project_(teacher_CV, teacher_CD, teacher_head, temperature, teacher_precision, plan.tile_rows)
        gradient_CV = gradient_view(logits_CV, weight_VD, precision)
        for block in slices(tokens.start, tokens.stop, plan.block_tokens):
            local = slice(block.start - tokens.start, block.stop - tokens.start)
            if is_whole:
                sides = (logits_CV[local], teacher_CV[local])
                terms = full_losses(*sides, inputs.token_ids_N[block], inputs.spec)
            else:
                terms = _support_losses(logits_CV[local], inputs, block, plan)
            factor_R = _record_(sweep.statistics_6N[:, block], terms, inputs, block)
            if inputs.needs_gradient and terms.grad_logits_RV is not None:
                _product_gradient_(terms.grad_logits_RV, logits_CV[local], factor_R, head, inputs.spec)
                gradient_CV[local] = terms.grad_logits_RV
            del terms
        if inputs.needs_gradient:
            accumulate_gradients_(sweep, gradient_CV, hidden_ND[tokens], weight_VD, tokens, plan.tile_rows)
    return sweep


def empty_result(hidden_ND: Tensor, weight_VD: Tensor, dtype: torch.dtype, inputs: Inputs) -> ChunkedResult:
    """What a sweep fills: statistics, and zeros for the gradients that are summed up.

    A token's hidden gradient is complete after its chunk, so it may be rounded to bfloat16 then; in float16 small ones
    would be lost before `backward` has multiplied by its upstream scalar.
    """
    (num_tokens, _), vocab_size = hidden_ND.shape, weight_VD.shape[0]
    hidden_dtype = torch.bfloat16 if hidden_ND.dtype == torch.bfloat16 else dtype
    return ChunkedResult(
        statistics_6N=hidden_ND.new_empty((6, num_tokens), dtype=dtype),
        grad_hidden_ND=torch.empty_like(hidden_ND, dtype=hidden_dtype) if inputs.needs_hidden else None,
        grad_weight_VD=torch.zeros_like(weight_VD, dtype=dtype) if inputs.needs_weight else None,
        grad_bias_V=hidden_ND.new_zeros(vocab_size, dtype=dtype) if inputs.needs_bias else None,
    )


def _support_losses(logits_RV: Tensor, inputs: Inputs, block: slice, plan: ChunkPlan) -> TokenTerms:
    """A block's losses on a support; the gradient over all logits takes the place of the student's softmax."""
    spec, hidden_RD, head = inputs.spec, inputs.teacher_hidden_ND[block], inputs.teacher_head
    rows = student_rows(logits_RV, inputs.token_ids_N[block], spec.support_size(logits_RV.shape[-1]))
    log_sum_exp_R = None if inputs.teacher_log_sum_exp_N is None else inputs.teacher_log_sum_exp_N[block]
    logps_RW = teacher_logps(hidden_RD, head, rows.ids_RW, log_sum_exp_R, spec.temperature, logits_RV.dtype)
    tail_R = torch.zeros_like(rows.tail_R)
    if log_sum_exp_R is not None and spec.estimator == "exact":
        sums = (hidden_RD, head, rows.ids_RW[:, 1:], log_sum_exp_R, spec, plan.tile_rows, plan.block_tokens)
        tail_R = teacher_tail_(logps_RW[:, 1:], rows.tail_R, *sums)
    terms = support_terms(rows.logps_RW, logps_RW, rows.tail_R, tail_R, spec)
    grad_RV = None
    if inputs.needs_gradient:
        grad_RV = rows.probs_RV.mul_((terms.rest_R / rows.denominator_R).unsqueeze(-1))
        grad_RV.scatter_(-1, gradient_ids(rows), terms.grad_RK)
    return TokenTerms(
        terms.token_loss_R,
        terms.divergence_R,
        rows.logps_RW[:, 0],
        rows.entropy_R,
        rows.logps_RW[:, 1:].exp().sum(-1) if rows.ids_RW.shape[1] > 1 else torch.ones_like(rows.entropy_R),
        grad_RV,
    )


def _record_(statistics_6R: Tensor, terms: TokenTerms, inputs: Inputs, block: slice) -> Tensor:
    """Fill the block's statistics; returns coefficient times importance ratio."""
    dtype = statistics_6R.dtype
    ratio_R = torch.ones_like(terms.student_logps_R)
    if inputs.old_logps_N is not None:
        old_logps_R = inputs.old_logps_N[block].to(dtype)
        ratio_R = importance_ratio(terms.student_logps_R, old_logps_R, inputs.spec.importance_clip)
    factor_R = inputs.coefficient_N[block].to(dtype) * ratio_R
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
    return factor_R


def _product_gradient_(
    grad_RV: Tensor, logits_RV: Tensor, factor_R: Tensor, head: Head, spec: DistillationSpec
) -> None:
    """Turn the gradient of the finished logits into that of hidden W^T + bias, times each token's factor."""
    grad_RV.mul_((factor_R * (head.logit_scale / spec.temperature)).unsqueeze(-1))
    if head.softcap is not None:
        softcap_slope_(logits_RV, head.softcap, spec.temperature)
        grad_RV.mul_(logits_RV)


def accumulate_gradients_(
    sweep: ChunkedResult,
    grad_product_CV: Tensor,
    hidden_CD: Tensor,
    weight_VD: Tensor,
    tokens: slice,
    tile_rows: int,
) -> None:
    """Add a chunk's share to the sweep's gradients; `grad_product_CV`, from `gradient_view`, is that of its
    products."""
    dtype = sweep.statistics_6N.dtype
    precision = matmul_precision(hidden_CD, weight_VD, dtype)
    if sweep.grad_bias_V is not None:
        sweep.grad_bias_V.add_(grad_product_CV.sum(0, dtype=dtype))
    if sweep.grad_hidden_ND is not None:
        kept_CD = sweep.grad_hidden_ND[tokens]
        made_CD = torch.empty_like(kept_CD, dtype=dtype) if kept_CD.dtype != dtype else kept_CD
        hidden_gradient_(made_CD, grad_product_CV, weight_VD, precision, tile_rows)
        kept_CD.copy_(made_CD)
        del made_CD  # before the next temporary is made
    if sweep.grad_weight_VD is not None:
        add_weight_gradient_(sweep.grad_weight_VD, grad_product_CV, hidden_CD, precision)


def _scaled(gradient: Tensor, upstream: Tensor, dtype: torch.dtype, chunk_bytes: int) -> Tensor:
    """`upstream * gradient` in `dtype`, without a second whole matrix in the gradient's own dtype."""
    if gradient.dtype == dtype:
        return gradient * upstream
    scaled = torch.empty_like(gradient, dtype=dtype)
    row_bytes = max(1, gradient[:1].numel()) * gradient.element_size()
    for rows in slices(0, gradient.shape[0], max(1, chunk_bytes // row_bytes)):
        scaled[rows] = gradient[rows] * upstream
    return scaled
