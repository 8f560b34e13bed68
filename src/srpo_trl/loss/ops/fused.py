"""The distillation operators with Triton kernels: the sweep of `ops.chunked`, with one row kernel in place of
each chain of element-wise operators.

The student's products with its head fill one matrix per chunk. It is scanned once for the softmax and the
top K, and read once more when the gradient replaces it, in the dtype that the gradient's products want. Of
the teacher a support needs its own tokens' logits only, products with gathered rows of the teacher's head; the
divergence over the full vocabulary fills a second matrix.

Shapes: N packed scored tokens, C tokens of a chunk, D hidden, V vocabulary, K top K, W = 1 + K support
columns (the sampled token, then the top K), S segments of a row, G groups of a row.
"""

import contextlib

import torch
import triton
from torch import Tensor

from srpo_trl.loss.ops import chunked
from srpo_trl.loss.ops.chunked import ChunkedResult, Inputs
from srpo_trl.loss.ops.fused_plan import FusedPlan, plan_fused, plan_fused_statistics, tiles
from srpo_trl.loss.ops.fused_steps import (
    Buffers,
    DistributionStats,
    choose_,
    distribution_stats,
    gather_,
    make_buffers,
    merge_,
    project_columns_,
    project_support_,
    reduce_full_,
    reduce_support_,
    scan_,
)
from srpo_trl.loss.ops.interface import DistillationResult, DistillationSpec, Head, TokenStatistics
from srpo_trl.loss.ops.plan import slices
from srpo_trl.loss.ops.projection import gradient_view
from srpo_trl.loss.ops.teacher_rows import teacher_tail_
from srpo_trl.loss.ops.triton_scan import merge_segments

# The loss holds the support of a row in the registers of one program.
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
    teacher_log_sum_exp_N: Tensor | None,
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
        teacher_log_sum_exp_N,
        spec,
        chunk_bytes,
        _sweep,
    )


def token_statistics(hidden_ND: Tensor, head: Head, temperature: float, chunk_bytes: int) -> TokenStatistics:
    """See `srpo_trl.loss.ops.token_statistics`."""
    with torch.no_grad(), _device_of(hidden_ND):
        plan = plan_fused_statistics(hidden_ND, head, chunk_bytes)
        side = distribution_stats(hidden_ND, head, temperature)
        entropy_N, log_sum_exp_N = hidden_ND.new_empty((2, hidden_ND.shape[0]), dtype=torch.float32)
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
            largest_C, sum_C, entropy_N[tokens] = sums_C3[:num_tokens].unbind(-1)
            log_sum_exp_N[tokens] = largest_C + sum_C.log()
        return TokenStatistics(entropy_N, log_sum_exp_N)


def _sweep(hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, inputs: Inputs) -> ChunkedResult:
    """Loss, statistics and the gradients that `inputs` ask for, chunk by chunk."""
    spec, log_sum_exp_N = inputs.spec, inputs.teacher_log_sum_exp_N
    inputs = inputs._replace(  # kernels read neighbors
        coefficient_N=inputs.coefficient_N.float().contiguous(),
        old_logps_N=None if inputs.old_logps_N is None else inputs.old_logps_N.float().contiguous(),
        teacher_log_sum_exp_N=None if log_sum_exp_N is None else log_sum_exp_N.float().contiguous(),
    )
    head = Head(weight_VD, bias_V, inputs.student_logit_scale, inputs.student_softcap)
    student = distribution_stats(hidden_ND, head, spec.temperature)
    teacher = distribution_stats(inputs.teacher_hidden_ND, inputs.teacher_head, spec.temperature)
    plan = plan_fused(
        hidden_ND, head, inputs.teacher_hidden_ND, inputs.teacher_head, spec, inputs.chunk_bytes
    )
    sweep = chunked.empty_result(hidden_ND, weight_VD, torch.float32, inputs)
    with _device_of(hidden_ND):
        buffers = make_buffers(hidden_ND, plan)
        for tokens in slices(0, hidden_ND.shape[0], plan.chunk_tokens):
            chunk = Buffers(*(buffer[: tokens.stop - tokens.start] for buffer in buffers))
            _reduce_chunk_(chunk, student, teacher, tokens, sweep.statistics_6N, inputs, plan)
            if inputs.needs_gradient:
                gradient_CV = gradient_view(chunk.student_CV, weight_VD, student.precision)
                chunked.accumulate_gradients_(
                    sweep, gradient_CV, hidden_ND[tokens], weight_VD, tokens, plan.tile_rows
                )
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
    topk, whole = plan.topk, slice(0, student.head.weight_VD.shape[0])
    chunk.ids_CW[:, 0] = inputs.token_ids_N[tokens]
    project_columns_(chunk.student_CV, student, tokens, whole, plan)
    scan_(chunk.student_CV, student, whole, chunk.partial_CS3, chunk.groups_C2G if topk else None, plan)
    merge_(chunk.partial_CS3, chunk.student_sums_C3)
    if topk:
        choose_(chunk, student, topk, plan)
    gather_(chunk.student_CV, student, chunk.ids_CW, chunk.student_CW)
    if plan.support == "full":
        project_columns_(chunk.teacher_CV, teacher, tokens, whole, plan)
        scan_(chunk.teacher_CV, teacher, whole, chunk.partial_CS3, None, plan)
        merge_(chunk.partial_CS3, chunk.teacher_sums_C3)
        reduce_full_(chunk, student, teacher, tokens, statistics_6N, inputs, plan)
        return
    project_support_(chunk, teacher, tokens)
    log_sum_exp_N = inputs.teacher_log_sum_exp_N
    if log_sum_exp_N is not None:  # the logits become log-probabilities
        chunk.teacher_CW.sub_(log_sum_exp_N[tokens].unsqueeze(-1))
    if plan.support == "tail" and log_sum_exp_N is not None:
        chunk.teacher_tail_C.copy_(
            teacher_tail_(
                chunk.teacher_CW[:, 1:],
                chunk.outside_C / chunk.student_sums_C3[:, 1],
                teacher.hidden_ND[tokens],
                teacher.head,
                chunk.ids_CW[:, 1:],
                log_sum_exp_N[tokens],
                inputs.spec,
                plan.tile_rows,
                plan.tail_rows,
            )
        )
    reduce_support_(chunk, student, tokens, statistics_6N, inputs, plan)


def _device_of(tensor: Tensor) -> contextlib.AbstractContextManager[None]:
    """Kernels are launched on the current device, which need not be the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()
