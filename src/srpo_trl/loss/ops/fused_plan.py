"""How much work at a time the fused operators take, within a number of bytes.

Shapes: N packed scored tokens, C tokens of a chunk, D hidden, V vocabulary, K top K.
"""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from srpo_trl.loss.ops.interface import DistillationSpec, Head
from srpo_trl.loss.ops.plan import slices
from srpo_trl.loss.ops.projection import matmul_precision
from srpo_trl.loss.ops.teacher_rows import may_sum_tails

_SEGMENT = 8192  # columns of a row that one program scans
_STATISTICS_TILES = 8  # parts that the vocabulary is cut into where products are not kept
_TAIL_ROWS_SHARE = 32  # one token in so many at a time has its tail summed up: a whole row of logits each
_STRIDE = 64  # rows of products begin at multiples of so many elements: 16-byte loads need it
_TOKEN_TILE = 64  # rows of a matrix product's tile on the GPU: chunks are multiples of it, large ones of two
_WEIGHT_TILE_SHARE = (
    8  # one part in so many of the bytes is for the upcast tile of a weight, where one is needed
)
_ITEM = 4  # bytes of a float32
_TOKEN_SCALARS = 16  # sums, coefficients, ratios

Support = Literal["tail", "renormalized", "sampled", "full"]


class FusedPlan(NamedTuple):
    """How the work is cut.

    Attributes:
        support: which tokens the divergence is taken over.
        topk: K; 0 where no top K is taken.
        chunk_tokens: C.
        student_stride: elements from one row of the student's products to the next.
        teacher_columns: columns of the teacher's products that are made at a time; 0 where gathered rows do.
        teacher_stride: elements from one row of these to the next.
        tail_rows: whole rows of the teacher's logits at a time, of tokens that need them; 0 where none may.
        segment: columns that one program scans.
        num_segments: of a row.
        group: neighboring columns whose maximum is kept for the top K.
        num_groups: of a row; 0 where no top K is taken.
        tile_rows: vocabulary rows of a weight that are upcast to float32 at a time, where they have to be.
        temporary_bytes: what is held at the most, outputs and gradients aside.
    """

    support: Support
    topk: int
    chunk_tokens: int
    student_stride: int
    teacher_columns: int
    teacher_stride: int
    tail_rows: int
    segment: int
    num_segments: int
    group: int
    num_groups: int
    tile_rows: int
    temporary_bytes: int


def plan_fused(
    student_hidden_ND: Tensor,
    student_head: Head,
    teacher_hidden_ND: Tensor,
    teacher_head: Head,
    spec: DistillationSpec,
    chunk_bytes: int,
) -> FusedPlan:
    """The plan of `distillation_loss`.

    Args:
        student_hidden_ND: for its size, dtype and device.
        student_head: for its size, dtype and device.
        teacher_hidden_ND: for its size, dtype and device.
        teacher_head: for its size, dtype and device.
        spec: what is computed.
        chunk_bytes: the bound.

    Returns:
        A plan that keeps the bound, or one of one token at a time.
    """
    vocab_size = student_head.weight_VD.shape[0]
    topk = spec.support_size(vocab_size)
    support: Support = "full"
    if spec.estimator == "sampled":
        support = "sampled"
    elif topk is not None:
        support = "tail" if spec.add_tail else "renormalized"
    sides = ((student_hidden_ND, student_head), (teacher_hidden_ND, teacher_head))
    sums_tails = support == "tail" and may_sum_tails(spec)
    return _plan(sides, support, topk or 0, chunk_bytes, sums_tails=sums_tails)


def plan_fused_statistics(hidden_ND: Tensor, head: Head, chunk_bytes: int) -> FusedPlan:
    """The plan of `token_statistics`; arguments as in `plan_fused`."""
    return _plan(((hidden_ND, head),), "sampled", 0, chunk_bytes, with_student=False)


def tiles(vocab_size: int, columns: int) -> list[slice]:
    """The vocabulary, `columns` at a time."""
    return slices(0, vocab_size, columns)


def _plan(
    sides: tuple[tuple[Tensor, Head], ...],
    support: Support,
    topk: int,
    chunk_bytes: int,
    with_student: bool = True,
    sums_tails: bool = False,
) -> FusedPlan:
    num_tokens, vocab_size = sides[0][0].shape[0], sides[0][1].weight_VD.shape[0]
    segment = min(_SEGMENT, _power_of_2(vocab_size))
    num_segments = -(-vocab_size // segment)
    # Both choices look at about as many numbers: V / group maxima, then K * group tokens.
    group = min(segment, 128, max(8, _power_of_2(math.isqrt(vocab_size // max(1, topk)))))
    num_groups = -(-vocab_size // group) if topk else 0
    teacher_columns = vocab_size if support == "full" else 0
    if not with_student:
        teacher_columns = min(vocab_size, segment * -(-num_segments // _STATISTICS_TILES))
    student_stride, teacher_stride = _padded(vocab_size) if with_student else 0, _padded(teacher_columns)

    token_items = student_stride + teacher_stride + 3 * num_segments + _TOKEN_SCALARS
    token_items += 2 * num_groups + min(topk, num_groups) + 5 * (1 + topk)
    token_items += -(-vocab_size // _TAIL_ROWS_SHARE) * sums_tails
    fixed_items, tile_rows = 0, vocab_size
    hidden_size = max(1, *(hidden_ND.shape[1] for hidden_ND, _ in sides))
    if with_student:
        token_items += hidden_size  # the gradient of the hidden states
    if any(
        matmul_precision(hidden_ND, head.weight_VD, torch.float32) == "convert" for hidden_ND, head in sides
    ):
        tile_rows = max(
            chunk_bytes // _WEIGHT_TILE_SHARE // (hidden_size * _ITEM), vocab_size // hidden_size, 1
        )
        tile_rows = min(vocab_size, tile_rows)
        fixed_items += tile_rows * hidden_size
        token_items += hidden_size  # upcast hidden states
    if with_student and sides[0][1].bias_V is not None:
        fixed_items += vocab_size  # a chunk's share of its gradient

    fitting = (chunk_bytes // _ITEM - fixed_items) // token_items
    chunk_tokens = max(1, min(num_tokens, fitting))
    if num_tokens > chunk_tokens > _TOKEN_TILE:
        # Full tiles, and no small chunk at the end.
        tile = 2 * _TOKEN_TILE if chunk_tokens >= 8 * _TOKEN_TILE else _TOKEN_TILE
        num_chunks = -(-num_tokens // (chunk_tokens // tile * tile))
        chunk_tokens = -(-num_tokens // (num_chunks * tile)) * tile
    return FusedPlan(
        support=support,
        topk=topk,
        chunk_tokens=chunk_tokens,
        student_stride=student_stride,
        teacher_columns=teacher_columns,
        teacher_stride=teacher_stride,
        tail_rows=max(1, chunk_tokens // _TAIL_ROWS_SHARE) if sums_tails else 0,
        segment=segment,
        num_segments=num_segments,
        group=group,
        num_groups=num_groups,
        tile_rows=tile_rows,
        temporary_bytes=(fixed_items + chunk_tokens * token_items) * _ITEM,
    )


def _power_of_2(number: int) -> int:
    """The least power of 2 from `number` on."""
    return 1 << max(0, number - 1).bit_length()


def _padded(columns: int) -> int:
    return -(-columns // _STRIDE) * _STRIDE
