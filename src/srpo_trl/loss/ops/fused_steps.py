"""The steps of the fused operators on one chunk: a product or a kernel launch each.

Shapes: N packed scored tokens, C tokens of a chunk, D hidden, V vocabulary, K top K, W = 1 + K support
columns (the sampled token, then the top K), S segments of a row, G groups of a row.
"""

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from srpo_trl.loss.ops.chunked import Inputs
from srpo_trl.loss.ops.fused_plan import FusedPlan
from srpo_trl.loss.ops.interface import DistillationSpec, Head
from srpo_trl.loss.ops.projection import MatmulPrecision, gradient_view, matmul_precision, project_
from srpo_trl.loss.ops.triton_choice import choose_groups, choose_tokens
from srpo_trl.loss.ops.triton_full import full_vocab_loss
from srpo_trl.loss.ops.triton_scan import gather_support, merge_segments, scan_segments, support_products
from srpo_trl.loss.ops.triton_terms import scatter_support, softmax_gradient, topk_loss

_ROW_BLOCK = 8192  # columns that a row kernel reads at a time
_FULL_BLOCK = 4096  # with both sides' logits in registers
_HELD_GROUPS, _HELD_TOKENS = 4096, 8192  # candidates for a top K that registers hold
_CHOICE_TILE = 2048  # of more, so many at a time
_MAX_WARPS = 16
_REGISTERS = 65_536  # of a GPU's multiprocessor, from Turing to Blackwell
_GATHER_IDS, _GATHER_COLUMNS = 16, 256  # rows of a head that a program reads, and columns at a time


class DistributionStats(NamedTuple):
    """One side's inputs and the two factors that finish its logits."""

    hidden_ND: Tensor
    head: Head
    precision: MatmulPrecision
    inner: float
    outer: float


class Buffers(NamedTuple):
    """Everything that is made for a chunk, used again for the next one; tokens come first in each."""

    student_CV: Tensor
    teacher_CV: Tensor
    partial_CS3: Tensor
    student_sums_C3: Tensor
    teacher_sums_C3: Tensor
    groups_C2G: Tensor
    chosen_CK: Tensor
    ids_CW: Tensor
    student_CW: Tensor
    teacher_CW: Tensor
    gradient_CW: Tensor
    outside_C: Tensor
    teacher_tail_C: Tensor
    rest_C: Tensor


def make_buffers(like: Tensor, plan: FusedPlan) -> Buffers:
    """Buffers for the largest chunk, on the device of `like`."""
    num_tokens, width = plan.chunk_tokens, 1 + plan.topk

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return like.new_empty((num_tokens, *shape), dtype=dtype)

    return Buffers(
        student_CV=empty(plan.student_stride),
        teacher_CV=empty(plan.teacher_stride),
        partial_CS3=empty(plan.num_segments, 3),
        student_sums_C3=empty(3),
        teacher_sums_C3=empty(3),
        groups_C2G=empty(2, plan.num_groups),
        chosen_CK=empty(min(plan.topk, plan.num_groups), dtype=torch.int32),
        ids_CW=empty(width, dtype=torch.int32),
        student_CW=empty(width),
        teacher_CW=empty(width),
        gradient_CW=empty(width),
        outside_C=empty(),
        teacher_tail_C=empty(),
        rest_C=empty(),
    )


def distribution_stats(hidden_ND: Tensor, head: Head, temperature: float) -> DistributionStats:
    """The side, its bias ready for kernels, which read neighbors."""
    inner, outer = 0.0, head.logit_scale / temperature
    if head.softcap is not None:
        inner, outer = head.logit_scale / head.softcap, head.softcap / temperature
    if head.bias_V is not None:
        head = head._replace(bias_V=head.bias_V.contiguous())
    return DistributionStats(
        hidden_ND, head, matmul_precision(hidden_ND, head.weight_VD, torch.float32), inner, outer
    )


def project_columns_(
    products_CV: Tensor, side: DistributionStats, tokens: slice, columns: slice, plan: FusedPlan
) -> None:
    """The bare products of some tokens with some rows of the head's weight."""
    head = Head(side.head.weight_VD[columns])
    out_CV = products_CV[:, : columns.stop - columns.start]
    project_(out_CV, side.hidden_ND[tokens], head, 1.0, side.precision, plan.tile_rows)


def scan_(
    products_CV: Tensor,
    side: DistributionStats,
    columns: slice,
    partial_CS3: Tensor,
    groups_C2G: Tensor | None,
    plan: FusedPlan,
) -> None:
    """Fill the columns' part of `partial_CS3` and, where given, of the groups' maxima and sums."""
    num_columns = columns.stop - columns.start
    scan_segments[(products_CV.shape[0], triton.cdiv(num_columns, plan.segment))](
        products_CV,
        products_CV.stride(0),
        side.head.bias_V,
        columns.start,
        num_columns,
        side.inner,
        side.outer,
        partial_CS3,
        plan.num_segments,
        groups_C2G,
        plan.num_groups,
        **_flags(side),
        KEEP_GROUPS=groups_C2G is not None,
        GROUP=plan.group,
        BLOCK=plan.segment,
        num_warps=_num_warps(plan.segment),
    )


def merge_(partial_CS3: Tensor, sums_C3: Tensor) -> None:
    """Fill `sums_C3` with each row's max, sum and entropy."""
    num_tokens, num_segments, _ = partial_CS3.shape
    merge_segments[(num_tokens,)](partial_CS3, num_segments, sums_C3, BLOCK=_block(num_segments), num_warps=1)


def choose_(chunk: Buffers, student: DistributionStats, topk: int, plan: FusedPlan) -> None:
    """Fill the top K's columns of the chunk's ids, and the sum over the tokens outside."""
    num_tokens, num_chosen = chunk.chosen_CK.shape
    choose_groups[(num_tokens,)](
        chunk.groups_C2G,
        plan.num_groups,
        chunk.partial_CS3,
        plan.num_segments,
        chunk.student_sums_C3,
        chunk.chosen_CK,
        num_chosen,
        chunk.outside_C,
        GROUPS_OF_SEGMENT=plan.segment // plan.group,
        **_choice(plan.num_groups, _HELD_GROUPS),
    )
    choose_tokens[(num_tokens,)](
        chunk.student_CV,
        chunk.student_CV.stride(0),
        student.head.bias_V,
        student.head.weight_VD.shape[0],
        student.inner,
        student.outer,
        chunk.chosen_CK,
        num_chosen,
        chunk.student_sums_C3,
        chunk.ids_CW,
        topk,
        chunk.outside_C,
        **_flags(student),
        GROUP=plan.group,
        **_choice(num_chosen * plan.group, _HELD_TOKENS),
    )


def gather_(products_CV: Tensor, side: DistributionStats, ids_CW: Tensor, support_CW: Tensor) -> None:
    """Fill `support_CW` with the finished logits of the given tokens."""
    num_tokens, width = ids_CW.shape
    gather_support[(num_tokens,)](
        products_CV,
        products_CV.stride(0),
        side.head.bias_V,
        side.inner,
        side.outer,
        ids_CW,
        support_CW,
        width,
        **_flags(side),
        BLOCK=_block(width),
        num_warps=4,
    )


def project_support_(chunk: Buffers, teacher: DistributionStats, tokens: slice) -> None:
    """Fill the teacher's logits of the support: products with gathered rows of its head."""
    num_tokens, width = chunk.ids_CW.shape
    hidden_CD, weight_VD = teacher.hidden_ND[tokens], teacher.head.weight_VD
    block = min(_GATHER_IDS, _block(width))
    support_products[(num_tokens, triton.cdiv(width, block))](
        hidden_CD,
        hidden_CD.stride(0),
        hidden_CD.stride(1),
        weight_VD,
        weight_VD.stride(0),
        weight_VD.stride(1),
        teacher.head.bias_V,
        teacher.inner,
        teacher.outer,
        chunk.ids_CW,
        chunk.teacher_CW,
        width,
        HIDDEN=hidden_CD.shape[1],
        **_flags(teacher),
        BLOCK=block,
        BLOCK_D=min(_GATHER_COLUMNS, _block(hidden_CD.shape[1])),
        num_warps=4,
    )


def reduce_support_(
    chunk: Buffers,
    student: DistributionStats,
    tokens: slice,
    statistics_6N: Tensor,
    inputs: Inputs,
    plan: FusedPlan,
) -> None:
    """The last step of `_reduce_chunk_` for a top K or the sampled token."""
    num_tokens, width = chunk.ids_CW.shape
    old_logps_N, clip = _ratio_inputs(inputs)
    block = _block(width)
    statistics_6C = statistics_6N[:, tokens]
    topk_loss[(num_tokens,)](
        chunk.student_CW,
        chunk.teacher_CW,
        width,
        chunk.student_sums_C3,
        chunk.outside_C,
        chunk.teacher_tail_C,
        inputs.coefficient_N[tokens],
        None if old_logps_N is None else old_logps_N[tokens],
        clip,
        inputs.spec.alpha,
        inputs.spec.pointwise_clip,
        student.inner,
        student.outer,
        statistics_6C,
        statistics_6C.stride(0),
        chunk.gradient_CW,
        chunk.rest_C,
        HAS_RATIO=old_logps_N is not None,
        HAS_SOFTCAP=student.head.softcap is not None,
        SUPPORT=plan.support,
        **_divergence(inputs.spec),
        BLOCK=block,
        **_with_all_registers(max(4, block // 512)),
    )
    if not inputs.needs_gradient:
        return
    gradient_CV = gradient_view(chunk.student_CV, student.head.weight_VD, student.precision)
    if plan.support == "renormalized":  # nothing flows to the tokens outside
        gradient_CV.zero_()
    else:
        row_block = min(_ROW_BLOCK, _block(gradient_CV.shape[1]))
        softmax_gradient[(num_tokens,)](
            chunk.student_CV,
            chunk.student_CV.stride(0),
            student.head.bias_V,
            student.inner,
            student.outer,
            chunk.student_sums_C3,
            chunk.rest_C,
            gradient_CV,
            gradient_CV.stride(0),
            NUM_COLUMNS=gradient_CV.shape[1],
            **_flags(student),
            NARROW=gradient_CV.dtype != torch.float32,
            BLOCK=row_block,
            num_warps=_num_warps(row_block),
        )
    first, last = (0, 1) if plan.support == "sampled" else (1, width)
    scatter_support[(num_tokens,)](
        chunk.ids_CW,
        chunk.gradient_CW,
        width,
        first,
        last,
        gradient_CV,
        gradient_CV.stride(0),
        BLOCK=block,
        num_warps=4,
    )


def reduce_full_(
    chunk: Buffers,
    student: DistributionStats,
    teacher: DistributionStats,
    tokens: slice,
    statistics_6N: Tensor,
    inputs: Inputs,
    plan: FusedPlan,
) -> None:
    """The last step of `_reduce_chunk_` for the full vocabulary."""
    old_logps_N, clip = _ratio_inputs(inputs)
    statistics_6C = statistics_6N[:, tokens]
    gradient_CV = gradient_view(chunk.student_CV, student.head.weight_VD, student.precision)
    row_block = min(_FULL_BLOCK, _block(gradient_CV.shape[1]))
    full_vocab_loss[(chunk.ids_CW.shape[0],)](
        chunk.student_CV,
        chunk.teacher_CV,
        chunk.student_CV.stride(0),
        chunk.teacher_CV.stride(0),
        student.head.bias_V,
        teacher.head.bias_V,
        student.inner,
        student.outer,
        teacher.inner,
        teacher.outer,
        chunk.student_CW,
        chunk.student_sums_C3,
        chunk.teacher_sums_C3,
        inputs.coefficient_N[tokens],
        None if old_logps_N is None else old_logps_N[tokens],
        clip,
        inputs.spec.alpha,
        inputs.spec.pointwise_clip,
        statistics_6C,
        statistics_6C.stride(0),
        gradient_CV,
        gradient_CV.stride(0),
        NUM_COLUMNS=gradient_CV.shape[1],
        **_flags(student),
        TEACHER_HAS_BIAS=teacher.head.bias_V is not None,
        TEACHER_HAS_SOFTCAP=teacher.head.softcap is not None,
        HAS_RATIO=old_logps_N is not None,
        **_divergence(inputs.spec),
        WITH_GRADIENT=inputs.needs_gradient,
        NARROW=gradient_CV.dtype != torch.float32,
        BLOCK=row_block,
        **_with_all_registers(_num_warps(4 * row_block)),
    )


def _ratio_inputs(inputs: Inputs) -> tuple[Tensor | None, float]:
    """The old log-probabilities, None where every ratio is 1, and the cap."""
    clip = inputs.spec.importance_clip
    return (None, 1.0) if clip is None else (inputs.old_logps_N, clip)


def _divergence(spec: DistillationSpec) -> dict[str, str | bool]:
    name = {0.0: "forward_kl", 1.0: "reverse_kl"}.get(spec.alpha, "linear" if spec.is_linear else "jsd")
    return {"DIVERGENCE": name, "CLIPS_ENTRIES": spec.pointwise_clip is not None}


def _flags(side: DistributionStats) -> dict[str, bool]:
    return {"HAS_BIAS": side.head.bias_V is not None, "HAS_SOFTCAP": side.head.softcap is not None}


def _block(size: int) -> int:
    return int(triton.next_power_of_2(size))


def _num_warps(block: int) -> int:
    """About 32 elements a thread."""
    return min(_MAX_WARPS, max(1, block // 1024))


def _with_all_registers(num_warps: int) -> dict[str, int]:
    """So many warps, which may take all registers there are.

    By itself the assembler takes fewer and spills some bytes, so that more programs fit on a processor.
    """
    return {"num_warps": num_warps, "maxnreg": min(255, _REGISTERS // (32 * num_warps))}


def _choice(size: int, held: int) -> dict[str, int]:
    """How `size` candidates are chosen from: up to `held` in registers, where more would spill, else in tiles."""
    if size > held:
        tiles = triton.cdiv(size, _CHOICE_TILE)
        return {"TILES": tiles, "BLOCK": _CHOICE_TILE, **_with_all_registers(_MAX_WARPS)}
    block = _block(size)  # with all registers asked for, the assembler of Triton 3.6 spills
    return {"TILES": 1, "BLOCK": block, "num_warps": min(8, _num_warps(2 * block))}
