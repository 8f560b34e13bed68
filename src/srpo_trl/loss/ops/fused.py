"""The distillation operators with Triton kernels: the sweep of `ops.chunked`, with one row kernel in place of
each chain of element-wise operators.

The student's products with its head fill one matrix per chunk. It is scanned once for the softmax and the
top K, and read once more when the gradient replaces it, in the dtype that the gradient's products want. Of
the teacher a support needs the softmax sums and the support's own logits: its products are made and scanned
a tile of the vocabulary at a time, and only the divergence over the full vocabulary keeps all of them.

Shapes: N packed scored tokens, C tokens of a chunk, D hidden, V vocabulary, K top K, W = 1 + K support
columns (the sampled token, then the top K), S segments of a row, G groups of a row.
"""

import contextlib

import torch
import triton
from torch import Tensor

from srpo_trl.loss.ops import chunked
from srpo_trl.loss.ops.chunked import ChunkedResult, Inputs
from srpo_trl.loss.ops.fused_plan import FusedPlan, plan_fused, plan_fused_entropy, tiles
from srpo_trl.loss.ops.fused_steps import (
    Buffers,
    DistributionStats,
    choose_,
    distribution_stats,
    gather_,
    gradient_view,
    make_buffers,
    merge_,
    project_columns_,
    reduce_full_,
    reduce_support_,
    scan_,
)
from srpo_trl.loss.ops.interface import DistillationResult, DistillationSpec, Head
from srpo_trl.loss.ops.plan import slices
from srpo_trl.loss.ops.projection import add_weight_gradient_, hidden_gradient_
from srpo_trl.loss.ops.triton_scan import merge_segments

# The choice holds the candidates of a row in the registers of one program.
MAX_TOPK = 2048


def interpreted() -> bool:
    """Whether the kernels run in Triton's interpreter, which needs no GPU."""
    return not isinstance(merge_segments, triton.runtime.JITFunction)


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
) -> DistillationResult:
    """See `srpo_trl.loss.ops.distillation_loss`."""
    return chunked.distillation_loss(
        student_hidden_ND,
        student_head,
        teacher_hidden_ND,
        teacher_head,
        token_ids_N,
        coefficient_N,
        old_logps_N,
        spec,
        chunk_bytes,
        _sweep,
    )


def teacher_entropy(hidden_ND: Tensor, head: Head, temperature: float, chunk_bytes: int) -> Tensor:
    """See `srpo_trl.loss.ops.teacher_entropy`."""
    with torch.no_grad(), _device_of(hidden_ND):
        plan = plan_fused_entropy(hidden_ND, head, chunk_bytes)
        side = distribution_stats(hidden_ND, head, temperature)
        entropy_N = hidden_ND.new_empty(hidden_ND.shape[0], dtype=torch.float32)
        chunk = (plan.chunk_tokens,)
        products_CV = hidden_ND.new_empty((*chunk, plan.teacher_stride), dtype=torch.float32)
        partial_CS3 = hidden_ND.new_empty((*chunk, plan.num_segments, 3), dtype=torch.float32)
        sums_C3 = hidden_ND.new_empty((*chunk, 3), dtype=torch.float32)
        for tokens in slices(0, hidden_ND.shape[0], plan.chunk_tokens):
            num_tokens = tokens.stop - tokens.start
            for columns in tiles(head.weight_VD.shape[0], plan.teacher_columns):
                project_columns_(products_CV[:num_tokens], side, tokens, columns, plan)
                scan_(products_CV[:num_tokens], side, columns, partial_CS3[:num_tokens], None, plan)
            merge_(partial_CS3[:num_tokens], sums_C3[:num_tokens])
            entropy_N[tokens] = sums_C3[:num_tokens, 2]
        return entropy_N


def _sweep(hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, inputs: Inputs) -> ChunkedResult:
    """Loss, statistics and the gradients that `inputs` ask for, chunk by chunk."""
    spec, num_tokens = inputs.spec, hidden_ND.shape[0]
    inputs = inputs._replace(  # kernels read neighbors
        coefficient_N=inputs.coefficient_N.float().contiguous(),
        old_logps_N=None if inputs.old_logps_N is None else inputs.old_logps_N.float().contiguous(),
    )
    head = Head(weight_VD, bias_V, inputs.student_logit_scale, inputs.student_softcap)
    student = distribution_stats(hidden_ND, head, spec.temperature)
    teacher = distribution_stats(inputs.teacher_hidden_ND, inputs.teacher_head, spec.temperature)
    plan = plan_fused(
        hidden_ND, head, inputs.teacher_hidden_ND, inputs.teacher_head, spec, inputs.chunk_bytes
    )
    # A token's hidden gradient is complete after its chunk and may be rounded then; in float16 small ones would
    # be lost before `backward` has multiplied by its upstream scalar.
    hidden_dtype = torch.bfloat16 if hidden_ND.dtype == torch.bfloat16 else torch.float32
    sweep = ChunkedResult(
        statistics_6N=hidden_ND.new_empty((6, num_tokens), dtype=torch.float32),
        grad_hidden_ND=torch.empty_like(hidden_ND, dtype=hidden_dtype) if inputs.needs_hidden else None,
        grad_weight_VD=torch.zeros_like(weight_VD, dtype=torch.float32) if inputs.needs_weight else None,
        grad_bias_V=torch.zeros_like(bias_V, dtype=torch.float32)
        if bias_V is not None and inputs.needs_bias
        else None,
    )
    with _device_of(hidden_ND):
        buffers = make_buffers(hidden_ND, plan)
        for tokens in slices(0, num_tokens, plan.chunk_tokens):
            chunk = Buffers(*(buffer[: tokens.stop - tokens.start] for buffer in buffers))
            _reduce_chunk_(chunk, student, teacher, tokens, sweep.statistics_6N, inputs, plan)
            if inputs.needs_gradient:
                _accumulate_gradients_(sweep, chunk, student, tokens, plan)
    return sweep


def _reduce_chunk_(
    chunk: Buffers,
    student: DistributionStats,
    teacher: DistributionStats,
    tokens: slice,
    statistics_6N: Tensor,
    inputs: Inputs,
    plan: FusedPlan,
) -> None:
    """Fill the chunk's statistics, and turn the student's products into their gradient where one is asked for."""
    vocab_size, topk = student.head.weight_VD.shape[0], plan.topk
    whole = slice(0, vocab_size)
    chunk.ids_CW[:, 0] = inputs.token_ids_N[tokens]

    project_columns_(chunk.student_CV, student, tokens, whole, plan)
    scan_(chunk.student_CV, student, whole, chunk.partial_CS3, chunk.groups_C2G if topk else None, plan)
    merge_(chunk.partial_CS3, chunk.student_sums_C3)
    if topk:
        choose_(chunk, student, topk, plan)
    gather_(chunk.student_CV, student, whole, chunk.ids_CW, chunk.student_CW)

    is_tail = plan.support == "tail"  # the teacher's own tail is what a scan that skips the support adds up
    for columns in tiles(vocab_size, plan.teacher_columns):
        project_columns_(chunk.teacher_CV, teacher, tokens, columns, plan)
        gather_(chunk.teacher_CV, teacher, columns, chunk.ids_CW, chunk.teacher_CW, mark_topk=is_tail)
        scan_(chunk.teacher_CV, teacher, columns, chunk.partial_CS3, None, plan, skip_marked=is_tail)
    merge_(chunk.partial_CS3, chunk.teacher_sums_C3)

    reduce = reduce_full_ if plan.support == "full" else reduce_support_
    reduce(chunk, student, teacher, tokens, statistics_6N, inputs, plan)


def _accumulate_gradients_(
    sweep: ChunkedResult, chunk: Buffers, student: DistributionStats, tokens: slice, plan: FusedPlan
) -> None:
    """Add the chunk's share to the sweep's gradients."""
    hidden_CD, weight_VD = student.hidden_ND[tokens], student.head.weight_VD
    gradient_CV = gradient_view(chunk.student_CV, student)
    if sweep.grad_bias_V is not None:
        sweep.grad_bias_V.add_(gradient_CV.sum(0, dtype=torch.float32))
    if sweep.grad_hidden_ND is not None:
        grad_hidden_CD = torch.empty_like(hidden_CD, dtype=torch.float32)
        hidden_gradient_(grad_hidden_CD, gradient_CV, weight_VD, student.precision, plan.tile_rows)
        sweep.grad_hidden_ND[tokens] = grad_hidden_CD
        del grad_hidden_CD
    if sweep.grad_weight_VD is not None:
        add_weight_gradient_(sweep.grad_weight_VD, gradient_CV, hidden_CD, student.precision)


def _device_of(tensor: Tensor) -> contextlib.AbstractContextManager[None]:
    """Kernels are launched on the current device, which need not be the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()
