"""How much work at a time: chunks of tokens, blocks of a chunk and tiles of a weight within a number of
bytes.

Shapes: N packed scored tokens, D hidden, V vocabulary.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from srpo_trl.loss.ops.interface import DistillationSpec, Head
from srpo_trl.loss.ops.projection import matmul_precision
from srpo_trl.loss.ops.token_losses import support_columns, vocabulary_rows

_BLOCKS_PER_CHUNK = 8
_BLOCK_BYTES = 16 * 2**20  # a block's temporaries are read again while they are in a CPU's cache
_WEIGHT_TILE_SHARE = (
    4  # one part in so many of the bytes is for the raised tile of a weight, where one is needed
)
_STATISTICS_ROWS = 1  # probabilities
_TOKEN_SCALARS = 32  # per-token numbers: coefficients, ratios, losses, maxima


class ChunkPlan(NamedTuple):
    """How the work is cut.

    Attributes:
        chunk_tokens: C.
        block_tokens: R.
        tile_rows: vocabulary rows of a head's weight that are upcast to the computation's dtype at a time.
        temporary_bytes: what is held at the most, outputs and gradients aside.
    """

    chunk_tokens: int
    block_tokens: int
    tile_rows: int
    temporary_bytes: int


def plan_statistics(hidden_ND: Tensor, head: Head, dtype: torch.dtype, chunk_bytes: int) -> ChunkPlan:
    """The plan of `token_statistics`: one matrix of logits, and blocks for the entropy.

    Args:
        hidden_ND: for its size, dtype and device.
        head: for its size, dtype and device.
        dtype: of the computation.
        chunk_bytes: the bound.

    Returns:
        The plan.
    """
    row_bytes = head.weight_VD.shape[0] * dtype.itemsize
    return _plan(hidden_ND, head, dtype, chunk_bytes, row_bytes, _STATISTICS_ROWS * row_bytes)


def plan_distillation(
    student_hidden_ND: Tensor,
    student_head: Head,
    teacher_hidden_ND: Tensor,
    teacher_head: Head,
    dtype: torch.dtype,
    spec: DistillationSpec,
    chunk_bytes: int,
) -> ChunkPlan:
    """The plan of `distillation_loss`: the student's logits, and blocks for the divergence and its gradient.

    The teacher's logits are a second matrix with the full vocabulary; a support takes gathered rows of its head.

    Args:
        student_hidden_ND: for its size, dtype and device.
        student_head: for its size, dtype and device.
        teacher_hidden_ND: for its size, dtype and device.
        teacher_head: for its size, dtype and device.
        dtype: of the computation.
        spec: what is computed.
        chunk_bytes: the bound.

    Returns:
        A plan that keeps the bound for both sides' products, which are made one after the other.
    """
    vocab_size = student_head.weight_VD.shape[0]
    row_bytes = vocab_size * dtype.itemsize
    block_token_bytes = vocabulary_rows(spec, vocab_size) * row_bytes
    block_token_bytes += support_columns(spec, vocab_size) * dtype.itemsize
    num_matrices = 2
    if not spec.needs_whole_teacher(vocab_size):
        num_matrices = 1
        width, teacher_dtype = 1 + (spec.support_size(vocab_size) or 0), teacher_head.weight_VD.dtype
        copies = dtype.itemsize + teacher_dtype.itemsize * (teacher_dtype != dtype)
        block_token_bytes += width * teacher_hidden_ND.shape[1] * copies
    plans = [
        _plan(hidden_ND, head, dtype, chunk_bytes, num_matrices * row_bytes, block_token_bytes)
        for hidden_ND, head in ((student_hidden_ND, student_head), (teacher_hidden_ND, teacher_head))
    ]
    return ChunkPlan(
        chunk_tokens=min(plan.chunk_tokens for plan in plans),
        block_tokens=min(plan.block_tokens for plan in plans),
        tile_rows=min(plan.tile_rows for plan in plans),
        temporary_bytes=max(plan.temporary_bytes for plan in plans),
    )


def _plan(
    hidden_ND: Tensor,
    head: Head,
    dtype: torch.dtype,
    chunk_bytes: int,
    chunk_token_bytes: int,
    block_token_bytes: int,
) -> ChunkPlan:
    """The largest chunks whose temporaries stay within `chunk_bytes`; one token at a time where none do.

        bytes = C * chunk_token_bytes + max(product, block),   product = tile + bias + C raised hidden states,
                                                               block = max(1, floor(C / 8)) * block_token_bytes

    Workspaces inside a kernel (of a matrix product, of top-K) are not counted.
    """
    num_tokens, hidden_size = hidden_ND.shape
    vocab_size = head.weight_VD.shape[0]
    precision = matmul_precision(hidden_ND, head.weight_VD, dtype)
    hidden_bytes = max(1, hidden_size) * dtype.itemsize
    tile_rows, product_bytes = vocab_size, 0
    if precision == "convert":
        # At least the size of one token's logits: smaller tiles would save nothing and cost many small products.
        tile_rows = max(
            chunk_bytes // _WEIGHT_TILE_SHARE // hidden_bytes, vocab_size // max(1, hidden_size), 1
        )
        tile_rows = min(vocab_size, tile_rows)
        product_bytes += tile_rows * hidden_bytes
    if head.bias_V is not None:  # its gradient's share of a chunk, or itself in another dtype
        product_bytes += vocab_size * dtype.itemsize
    chunk_token_bytes += _TOKEN_SCALARS * dtype.itemsize
    raised_bytes = hidden_bytes if precision == "convert" else 0

    fitting_product = (chunk_bytes - product_bytes) // (chunk_token_bytes + raised_bytes)
    fitting_block = chunk_bytes // (chunk_token_bytes + -(-block_token_bytes // _BLOCKS_PER_CHUNK))
    if fitting_block < _BLOCKS_PER_CHUNK:  # blocks of one token
        fitting_block = min(_BLOCKS_PER_CHUNK, (chunk_bytes - block_token_bytes) // chunk_token_bytes)
    chunk_tokens = max(1, min(num_tokens, fitting_product, fitting_block))
    block_tokens = max(1, min(chunk_tokens // _BLOCKS_PER_CHUNK, _BLOCK_BYTES // block_token_bytes))
    phase_bytes = max(product_bytes + chunk_tokens * raised_bytes, block_tokens * block_token_bytes)
    return ChunkPlan(chunk_tokens, block_tokens, tile_rows, chunk_tokens * chunk_token_bytes + phase_bytes)


def slices(start: int, stop: int, size: int) -> list[slice]:
    """Consecutive slices of at most `size` from `start` up to `stop`."""
    return [slice(begin, min(begin + size, stop)) for begin in range(start, stop, size)]
