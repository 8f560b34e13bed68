"""Triton kernels that choose the top K of each row, and sum up the rest.

The top K is chosen without sorting the vocabulary. The maxima of groups of neighboring tokens are kept while
the row is scanned for its softmax; the K groups with the largest maxima hold a top K of the row, because every
token elsewhere is no larger than each of these K maxima. So K groups are chosen among the maxima, then K tokens
within those groups. Both choices take exactly K, ties going to the lowest index, and together they give equal
logits at the threshold to the lowest token ids. torch.topk may choose others among equal ones: what is
reported about the student does not depend on it, the divergence does where the teacher tells them apart.

The mass outside the top K is a sum over the tokens outside: one minus the mass inside would lose all digits of a
small tail. Each choice adds what it passes over.

The candidates of a row are TILES times BLOCK. One tile is held in registers while the K-th largest is searched. More
would not fit there: they are read again, a tile at a time, for every four bits of it.

Products and finished logits: `ops.triton_scan`.
Shapes: C tokens of a chunk (one row each), V vocabulary, S segments that a row is cut into, G groups, K top K.
"""

import triton
import triton.language as tl

from srpo_trl.loss.ops.triton_scan import finished


@triton.jit
def _order_key(value, valid):
    """Integers in the order of the given floats: their bits, once those of negative ones are mirrored."""
    bits = value.to(tl.int32, bitcast=True)
    return tl.where(valid, bits ^ ((bits >> 31) & 0x7FFFFFFF), -2147483648)


@triton.jit
def _held_threshold(key, count):
    """The count-th largest of the keys, found bit by bit."""
    threshold = tl.where(tl.sum((key >= 0).to(tl.int32), axis=0) >= count, 0, -2147483648)
    bit = tl.full([], 1073741824, tl.int32)
    for _ in range(31):
        candidate = threshold + bit
        threshold = tl.where(tl.sum((key >= candidate).to(tl.int32), axis=0) >= count, candidate, threshold)
        bit = bit >> 1
    return threshold


@triton.jit
def _tiled_threshold(READ: tl.constexpr, source, count, TILES: tl.constexpr, BLOCK: tl.constexpr):
    """The count-th largest key, found four bits at a time, and how many are larger."""
    threshold = tl.full([], -2147483648, tl.int32)
    step = tl.full([], 268435456, tl.int32)
    for _ in range(8):
        candidate = threshold + step * tl.arange(0, 16)
        at_least = tl.zeros([16], tl.int32)
        for tile in range(TILES):
            _index, valid, value = READ(tile * BLOCK + tl.arange(0, BLOCK), *source)
            key = _order_key(value, valid)
            at_least += tl.sum((key[:, None] >= candidate[None, :]).to(tl.int32), axis=0)
        threshold += step * (tl.sum((at_least >= count).to(tl.int32), axis=0) - 1)
        step = step >> 4
    above = tl.zeros([BLOCK], tl.int32)
    for tile in range(TILES):
        _index, valid, value = READ(tile * BLOCK + tl.arange(0, BLOCK), *source)
        above += (_order_key(value, valid) > threshold).to(tl.int32)
    return threshold, tl.sum(above, axis=0)


@triton.jit
def _are_chosen(key, threshold, ties):
    """Which keys are above the threshold, and the first `ties` that are at it."""
    tied = key == threshold
    return (key > threshold) | (tied & (tl.cumsum(tied.to(tl.int32), axis=0) <= ties))


@triton.jit
def _choose(
    READ: tl.constexpr,
    WEIGHT: tl.constexpr,
    source,
    count,
    ids_ptr,
    TILES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Store which `count` candidates are the largest, in ascending order, ties to the first.

    Args: READ(place, *source), the candidates at some places: index, whether there is one (at least `count` of all
        are), value; WEIGHT(index, value, passed_over, *source), what each that is not chosen adds to the sum, 0
        elsewhere; ids (count,).
    Returns: the sum over all that are not chosen.
    """
    if TILES > 1:
        threshold, num_above = _tiled_threshold(READ, source, count, TILES, BLOCK)
        ties = count - num_above
        first = 0
        outside = tl.zeros([BLOCK], tl.float32)
        for tile in range(TILES):
            index, valid, value = READ(tile * BLOCK + tl.arange(0, BLOCK), *source)
            key = _order_key(value, valid)
            chosen = _are_chosen(key, threshold, ties)
            place = first + tl.cumsum(chosen.to(tl.int32), axis=0) - 1
            tl.store(ids_ptr + place, index, mask=chosen)
            outside += WEIGHT(index, value, valid & (chosen == 0), *source)
            ties -= tl.sum((key == threshold).to(tl.int32), axis=0)
            first += tl.sum(chosen.to(tl.int32), axis=0)
    else:
        index, valid, value = READ(tl.arange(0, BLOCK), *source)
        key = _order_key(value, valid)
        threshold = _held_threshold(key, count)
        ties = count - tl.sum((key > threshold).to(tl.int32), axis=0)
        chosen = _are_chosen(key, threshold, ties)
        place = tl.cumsum(chosen.to(tl.int32), axis=0) - 1
        tl.store(ids_ptr + place, index, mask=chosen)
        outside = WEIGHT(index, value, valid & (chosen == 0), *source)
    return tl.sum(outside, axis=0)


@triton.jit
def _group_maxima(group, groups_ptr, num_groups, partial_ptr, largest, GROUPS_OF_SEGMENT: tl.constexpr):
    """As `READ` of `_choose`: the groups at the given places, which are their indices."""
    valid = group < num_groups
    return group, valid, tl.load(groups_ptr + group, mask=valid, other=0.0)


@triton.jit
def _group_weights(
    group,
    group_max,
    passed_over,
    groups_ptr,
    num_groups,
    partial_ptr,
    largest,
    GROUPS_OF_SEGMENT: tl.constexpr,
):
    """As `WEIGHT` of `_choose`: sum exp(x - m) over each group, with the m of the row."""
    segment = group // GROUPS_OF_SEGMENT
    segment_max = tl.load(partial_ptr + segment * 3, mask=passed_over, other=0.0)
    group_sum = tl.load(groups_ptr + num_groups + group, mask=passed_over, other=0.0)
    return group_sum * tl.exp(tl.where(passed_over, segment_max - largest, 0.0))


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
    TILES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The groups with the largest maxima, and the sum over all others. Grid: (C,).

    In: groups (C, 2, G) and partial (C, S, 3) from `scan_segments`, sums (C, 3) from `merge_segments`;
        num_chosen <= G <= TILES * BLOCK.
    Out: chosen (C, num_chosen) int32, group indices in ascending order; outside (C,): sum exp(x - m) over the
        groups that are not chosen, with the m of the row.
    """
    row = tl.program_id(0).to(tl.int64)
    groups = groups_ptr + row * 2 * num_groups
    partial = partial_ptr + row * num_segments * 3
    largest = tl.load(sums_ptr + row * 3)
    outside = _choose(
        _group_maxima,
        _group_weights,
        (groups, num_groups, partial, largest, GROUPS_OF_SEGMENT),
        num_chosen,
        chosen_ptr + row * num_chosen,
        TILES,
        BLOCK,
    )
    tl.store(outside_ptr + row, outside)


@triton.jit
def _token_logits(
    place,
    product_ptr,
    num_columns,
    bias_ptr,
    inner,
    outer,
    chosen_ptr,
    num_chosen,
    largest,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    GROUP: tl.constexpr,
):
    """As `READ` of `_choose`: the tokens of the chosen groups, one group after the other."""
    slot = place // GROUP
    group = tl.load(chosen_ptr + slot, mask=slot < num_chosen, other=0)
    column = group * GROUP + place % GROUP
    valid = (slot < num_chosen) & (column < num_columns)
    product = tl.load(product_ptr + column, mask=valid, other=0.0)
    logit = finished(product, column, valid, bias_ptr, inner, outer, HAS_BIAS, HAS_SOFTCAP)
    return column, valid, logit


@triton.jit
def _token_weights(
    column,
    logit,
    passed_over,
    product_ptr,
    num_columns,
    bias_ptr,
    inner,
    outer,
    chosen_ptr,
    num_chosen,
    largest,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    GROUP: tl.constexpr,
):
    """As `WEIGHT` of `_choose`: exp(x - m)."""
    return tl.where(passed_over, tl.exp(tl.where(passed_over, logit - largest, 0.0)), 0.0)


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
    TILES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The top K tokens among those of the chosen groups. Grid: (C,).

    In: product (C, V), bias (V,), chosen (C, num_chosen) from `choose_groups`, sums (C, 3);
        num_chosen * GROUP <= TILES * BLOCK.
    Out: columns 1 to K of ids (C, 1 + K) int32, in ascending order; outside (C,), with what `choose_groups` has left
        there, becomes sum exp(x - m) over all tokens that are not in the top K.
    """
    row = tl.program_id(0).to(tl.int64)
    product = product_ptr + row * stride
    chosen = chosen_ptr + row * num_chosen
    largest = tl.load(sums_ptr + row * 3)
    outside = _choose(
        _token_logits,
        _token_weights,
        # Not by a name of its own: what has one is no constant any more.
        (
            product,
            num_columns,
            bias_ptr,
            inner,
            outer,
            chosen,
            num_chosen,
            largest,
            HAS_BIAS,
            HAS_SOFTCAP,
            GROUP,
        ),
        topk,
        ids_ptr + row * (topk + 1) + 1,
        TILES,
        BLOCK,
    )
    tl.store(outside_ptr + row, outside + tl.load(outside_ptr + row))
