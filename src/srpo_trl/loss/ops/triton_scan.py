"""Triton kernels that read logits: softmax statistics of each row, and the logits of a support.

A product hidden W^T is stored in float32, its rows `stride` elements apart, and becomes a finished logit
wherever it is read, so that the matrix itself is never rewritten before the gradient replaces it:

    logit = outer * tanh(inner * (product + bias))        with a softcap c: inner = scale / c, outer = c / temperature
    logit = outer * (product + bias)                      without: outer = scale / temperature

Log-probabilities are kept as logit - max - log(sum): subtracting a log-sum-exp of the size of the logits would
cost digits that matter near the self-teacher.

Shapes: C tokens of a chunk (one row each), V vocabulary, S segments that a row is cut into, G groups, K top
K, W = 1 + K support columns: the sampled token, then the top K in the order of their ids.
"""

import triton
import triton.language as tl


@triton.jit
def finished(
    product, columns, in_range, bias_ptr, inner, outer, HAS_BIAS: tl.constexpr, HAS_SOFTCAP: tl.constexpr
):
    """Finished logits of the given products."""
    if HAS_BIAS:
        product += tl.load(bias_ptr + columns, mask=in_range, other=0.0).to(tl.float32)
    if HAS_SOFTCAP:
        product = 1.0 - 2.0 / (1.0 + tl.exp(2.0 * inner * product))  # tanh; an infinite exp is 1 as it should
    return outer * product


@triton.jit
def scan_segments(
    product_ptr,
    stride,
    bias_ptr,
    first_column,
    num_columns,
    inner,
    outer,
    partial_ptr,
    num_segments,
    groups_ptr,
    num_groups,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    KEEP_GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Softmax statistics of each segment of BLOCK columns, and of its groups. Grid: (C, segments).

    In: product (C, num_columns), the columns from `first_column`, a multiple of BLOCK, on; bias (V,).
    Out: partial (C, S, 3): max m, sum exp(x - m), sum exp(x - m) (x - m); if KEEP_GROUPS groups (C, 2, G):
        each group's max, and its sum exp(x - m) with the m of its segment.
    """
    row = tl.program_id(0).to(tl.int64)
    start = tl.program_id(1) * BLOCK
    group = tl.arange(0, BLOCK // GROUP)
    column = start + group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    in_range = column < num_columns
    product = tl.load(product_ptr + row * stride + column, mask=in_range, other=0.0)
    bias_column = first_column + column
    logit = finished(product, bias_column, in_range, bias_ptr, inner, outer, HAS_BIAS, HAS_SOFTCAP)
    group_max = tl.max(tl.where(in_range, logit, float("-inf")), axis=1)
    largest = tl.max(group_max, axis=0)
    shifted = tl.where(in_range, logit - largest, 0.0)
    weight = tl.where(in_range, tl.exp(shifted), 0.0)
    group_sum = tl.sum(weight, axis=1)
    partial = partial_ptr + (row * num_segments + (first_column + start) // BLOCK) * 3
    tl.store(partial, largest)
    tl.store(partial + 1, tl.sum(group_sum, axis=0))
    tl.store(partial + 2, tl.sum(tl.sum(weight * shifted, axis=1), axis=0))
    if KEEP_GROUPS:
        group += (first_column + start) // GROUP
        groups = groups_ptr + row * 2 * num_groups + group
        tl.store(groups, group_max, mask=group < num_groups)
        tl.store(groups + num_groups, group_sum, mask=group < num_groups)


@triton.jit
def merge_segments(partial_ptr, num_segments, sums_ptr, BLOCK: tl.constexpr):
    """Statistics of each row from those of its segments. Grid: (C,).

    In: partial (C, S, 3) from `scan_segments`; BLOCK >= S.
    Out: sums (C, 3): max m, sum exp(x - m), entropy in nats.
    """
    row = tl.program_id(0).to(tl.int64)
    segment = tl.arange(0, BLOCK)
    valid = segment < num_segments
    partial = partial_ptr + (row * num_segments + segment) * 3
    segment_max = tl.load(partial, mask=valid, other=float("-inf"))
    segment_sum = tl.load(partial + 1, mask=valid, other=0.0)
    segment_moment = tl.load(partial + 2, mask=valid, other=0.0)
    largest = tl.max(segment_max, axis=0)
    shift = tl.where(valid, segment_max - largest, 0.0)
    weight = tl.exp(shift)
    total = tl.sum(weight * segment_sum, axis=0)
    moment = tl.sum(weight * (segment_moment + segment_sum * shift), axis=0)
    tl.store(sums_ptr + row * 3, largest)
    tl.store(sums_ptr + row * 3 + 1, total)
    # An infinite logit makes its moment NaN, and NaN must come out: callers refuse such logits by it.
    entropy = tl.maximum(tl.log(total) - moment / total, 0.0, propagate_nan=tl.PropagateNan.ALL)
    tl.store(sums_ptr + row * 3 + 2, entropy)


@triton.jit
def gather_support(
    product_ptr,
    stride,
    bias_ptr,
    inner,
    outer,
    ids_ptr,
    support_ptr,
    width,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Finished logits of the support's tokens. Grid: (C,).

    In: product (C, V); bias (V,); ids (C, W); BLOCK >= W.
    Out: support (C, W).
    """
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, BLOCK)
    here = place < width
    ids = tl.load(ids_ptr + row * width + place, mask=here, other=0)
    product = tl.load(product_ptr + row * stride + ids, mask=here, other=0.0)
    logit = finished(product, ids, here, bias_ptr, inner, outer, HAS_BIAS, HAS_SOFTCAP)
    tl.store(support_ptr + row * width + place, logit, mask=here)


@triton.jit
def support_products(
    hidden_ptr,
    hidden_stride,
    hidden_step,
    weight_ptr,
    weight_stride,
    weight_step,
    bias_ptr,
    inner,
    outer,
    ids_ptr,
    support_ptr,
    width,
    HIDDEN: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Finished logits of the support's tokens from the gathered rows of a head. Grid: (C, ceil(W / BLOCK)).

    In: hidden (C, D) and weight (V, D), rows `stride` and columns `step` apart; bias (V,); ids (C, W); HIDDEN is D.
    Out: support (C, W); the products are summed up in float32.
    """
    row = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    here = place < width
    ids = tl.load(ids_ptr + row * width + place, mask=here, other=0)
    weight_rows = weight_ptr + ids.to(tl.int64)[:, None] * weight_stride
    total = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    for start in range(0, HIDDEN, BLOCK_D):
        column = start + tl.arange(0, BLOCK_D)
        in_range = column < HIDDEN
        hidden = tl.load(hidden_ptr + row * hidden_stride + column * hidden_step, mask=in_range, other=0.0)
        both = here[:, None] & in_range[None, :]
        weight = tl.load(weight_rows + column[None, :] * weight_step, mask=both, other=0.0)
        total += weight.to(tl.float32) * hidden.to(tl.float32)[None, :]
    product = tl.sum(total, axis=1)
    logit = finished(product, ids, here, bias_ptr, inner, outer, HAS_BIAS, HAS_SOFTCAP)
    tl.store(support_ptr + row * width + place, logit, mask=here)
