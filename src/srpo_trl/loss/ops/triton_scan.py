"""Triton kernels that read logits: softmax statistics of each row, and its top K.

A product hidden W^T is stored in float32, its rows `stride` elements apart, and becomes a finished logit
wherever it is read, so that the matrix itself is never rewritten before the gradient replaces it:

    logit = outer * tanh(inner * (product + bias))        with a softcap c: inner = scale / c, outer = c / temperature
    logit = outer * (product + bias)                      without: outer = scale / temperature

The top K is chosen without sorting the vocabulary. The maxima of groups of neighboring tokens are kept while
the row is scanned for its softmax; the K groups with the largest maxima hold a top K of the row, because every
token elsewhere is no larger than each of these K maxima. So K groups are chosen among the maxima, then K tokens
within those groups. Both choices take exactly K, ties going to the lowest index, and together they give equal
logits at the threshold to the lowest token ids. torch.topk may choose others among equal ones: what is
reported about the student does not depend on it, the divergence does where the teacher tells them apart.

The mass outside the top K is a sum over the tokens outside: one minus the mass inside would lose all digits of a
small tail. Each choice adds what it passes over.

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
def _choose_largest(value, valid, count):
    """Which `count` valid elements are the largest, ties to the lowest index, and their places in index order.

    The order of floats is that of their bits read as integers, once the negative ones are mirrored; the
    count-th largest integer is found bit by bit.

    Args: value (B,) float32; valid (B,), at least `count` of them; count, above 0.
    Returns: chosen (B,) bool, exactly `count` of them; place (B,) int32, from 0 where chosen.
    """
    bits = value.to(tl.int32, bitcast=True)
    key = tl.where(valid, bits ^ ((bits >> 31) & 0x7FFFFFFF), -2147483648)
    threshold = tl.where(tl.sum((key >= 0).to(tl.int32), axis=0) >= count, 0, -2147483648)
    bit = tl.full([], 1073741824, tl.int32)
    for _ in range(31):
        candidate = threshold + bit
        threshold = tl.where(tl.sum((key >= candidate).to(tl.int32), axis=0) >= count, candidate, threshold)
        bit = bit >> 1
    above = key > threshold
    tied = key == threshold
    num_tied_chosen = count - tl.sum(above.to(tl.int32), axis=0)
    chosen = above | (tied & (tl.cumsum(tied.to(tl.int32), axis=0) <= num_tied_chosen))
    return chosen, tl.cumsum(chosen.to(tl.int32), axis=0) - 1


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
def choose_groups(
    groups_ptr,
    num_groups,
    partial_ptr,
    num_segments,
    sums_ptr,
    chosen_ptr,
    num_chosen,
    outside_ptr,
    GROUPS_OF_SEGMENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The groups with the largest maxima, and the sum over all others. Grid: (C,).

    In: groups (C, 2, G) and partial (C, S, 3) from `scan_segments`, sums (C, 3) from `merge_segments`;
        num_chosen <= G <= BLOCK.
    Out: chosen (C, num_chosen) int32, group indices in ascending order; outside (C,): sum exp(x - m) over the
        groups that are not chosen, with the m of the row.
    """
    row = tl.program_id(0).to(tl.int64)
    group = tl.arange(0, BLOCK)
    valid = group < num_groups
    groups = groups_ptr + row * 2 * num_groups + group
    chosen, place = _choose_largest(tl.load(groups, mask=valid, other=0.0), valid, num_chosen)
    tl.store(chosen_ptr + row * num_chosen + place, group, mask=chosen)
    passed_over = valid & (chosen == 0)
    segment = row * num_segments + group // GROUPS_OF_SEGMENT
    segment_max = tl.load(partial_ptr + segment * 3, mask=passed_over, other=0.0)
    group_sum = tl.load(groups + num_groups, mask=passed_over, other=0.0)
    shift = tl.where(passed_over, segment_max - tl.load(sums_ptr + row * 3), 0.0)
    tl.store(outside_ptr + row, tl.sum(group_sum * tl.exp(shift), axis=0))


@triton.jit
def choose_tokens(
    product_ptr,
    stride,
    bias_ptr,
    num_columns,
    inner,
    outer,
    chosen_ptr,
    num_chosen,
    sums_ptr,
    ids_ptr,
    topk,
    outside_ptr,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The top K tokens among those of the chosen groups. Grid: (C,).

    In: product (C, V), bias (V,), chosen (C, num_chosen) from `choose_groups`, sums (C, 3);
        BLOCK >= num_chosen * GROUP.
    Out: columns 1 to K of ids (C, 1 + K) int32, in ascending order; outside (C,), with what `choose_groups` has left
        there, becomes sum exp(x - m) over all tokens that are not in the top K.
    """
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, BLOCK)
    slot = place // GROUP
    group = tl.load(chosen_ptr + row * num_chosen + slot, mask=slot < num_chosen, other=0)
    column = group * GROUP + place % GROUP
    valid = (slot < num_chosen) & (column < num_columns)
    product = tl.load(product_ptr + row * stride + column, mask=valid, other=0.0)
    logit = finished(product, column, valid, bias_ptr, inner, outer, HAS_BIAS, HAS_SOFTCAP)
    chosen, rank = _choose_largest(logit, valid, topk)
    tl.store(ids_ptr + row * (topk + 1) + 1 + rank, column, mask=chosen)
    passed_over = valid & (chosen == 0)
    shift = tl.where(passed_over, logit - tl.load(sums_ptr + row * 3), 0.0)
    outside = tl.sum(tl.where(passed_over, tl.exp(shift), 0.0), axis=0)
    tl.store(outside_ptr + row, outside + tl.load(outside_ptr + row))


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
