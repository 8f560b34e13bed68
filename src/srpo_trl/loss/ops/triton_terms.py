"""Triton kernels of the divergence on a support, what is reported about it, and its gradient over the logits.

Formulas: `ops.token_losses`; products, finished logits and shapes: `ops.triton_scan`.
"""

import triton
import triton.language as tl

from srpo_trl.loss.divergence import MIN_TAIL_MASS
from srpo_trl.loss.ops.triton_scan import finished

_MIN_TAIL_MASS = tl.constexpr(MIN_TAIL_MASS)


@triton.jit
def slope(logit, inner, outer, HAS_SOFTCAP: tl.constexpr):
    """d logit / d product."""
    if HAS_SOFTCAP:
        capped = logit / outer
        factor = inner * outer * (1.0 - capped * capped)
    else:
        factor = outer
    return factor


@triton.jit
def _bregman(weight, other, log_ratio):
    """weight * (exp(u) - 1 - u) with u = log(other / weight), one bucket's share of KL(weight || other).

    Each share is >= 0 and small ones are exact, where the usual weight * -u has shares of both signs that
    cancel near the self-teacher; the two sums are equal where both sides sum to one.
    """
    u = log_ratio
    series = 1.0 / 5040 + u * (1.0 / 40320)
    series = 1.0 / 24 + u * (1.0 / 120 + u * (1.0 / 720 + u * series))
    series = u * u * (0.5 + u * (1.0 / 6 + u * series))
    return tl.where(tl.abs(u) < 0.5, weight * series, other - weight - weight * u)


@triton.jit
def divergence_terms(
    student_logp,
    teacher_logp,
    student_prob,
    teacher_prob,
    alpha,
    entry_clip,
    DIVERGENCE: tl.constexpr,
    CLIPS_ENTRIES: tl.constexpr,
):
    """Each bucket's share of the divergence, and g_k = dD/d(student_logp) as in `ops.token_losses`.

    Args: log-probabilities, finite, and the probabilities of the same buckets; alpha, used by "jsd" and "linear".
    With CLIPS_ENTRIES a share gives away what its summand, whose sum is the same, has above `entry_clip`: so nothing
    cancels where no summand is above it.
    """
    if DIVERGENCE == "forward_kl":
        share = _bregman(teacher_prob, student_prob, student_logp - teacher_logp)
        summand = teacher_prob * (teacher_logp - student_logp)
        gradient = -teacher_prob
    elif DIVERGENCE == "reverse_kl":
        share = _bregman(student_prob, teacher_prob, teacher_logp - student_logp)
        summand = student_prob * (student_logp - teacher_logp)
        gradient = summand
        if CLIPS_ENTRIES:
            gradient += student_prob
    elif DIVERGENCE == "linear":
        gap = student_logp - teacher_logp
        share = alpha * _bregman(student_prob, teacher_prob, -gap)
        share += (1.0 - alpha) * _bregman(teacher_prob, student_prob, gap)
        summand = gap * (alpha * student_prob - (1.0 - alpha) * teacher_prob)
        gradient = alpha * student_prob * gap - (1.0 - alpha) * teacher_prob
        if CLIPS_ENTRIES:
            gradient += alpha * student_prob
    else:
        gap = teacher_logp - student_logp
        small = tl.exp(-tl.abs(gap))
        student_share = tl.where(gap > 0, small, 1.0) * (1.0 - alpha)
        teacher_share = tl.where(gap > 0, 1.0, small) * alpha
        mixture_logp = tl.maximum(student_logp, teacher_logp) + tl.log(student_share + teacher_share)
        mixture_prob = (1.0 - alpha) * student_prob + alpha * teacher_prob
        share = alpha * _bregman(teacher_prob, mixture_prob, mixture_logp - teacher_logp)
        share += (1.0 - alpha) * _bregman(student_prob, mixture_prob, mixture_logp - student_logp)
        gradient = (1.0 - alpha) * student_prob * (student_logp - mixture_logp)
        summand = gradient + alpha * teacher_prob * (teacher_logp - mixture_logp)
    if CLIPS_ENTRIES:
        share -= tl.maximum(summand - entry_clip, 0.0)
        gradient = tl.where(summand > entry_clip, 0.0, gradient)
    return share, gradient


@triton.jit
def store_statistics(
    row,
    token_loss,
    divergence,
    student_logp,
    entropy,
    topk_mass,
    coefficient_ptr,
    old_logps_ptr,
    clip,
    statistics_ptr,
    statistics_stride,
    HAS_RATIO: tl.constexpr,
):
    """Store the row's six statistics; returns coefficient times importance ratio."""
    ratio = 1.0
    if HAS_RATIO:
        log_ratio = student_logp - tl.load(old_logps_ptr + row).to(tl.float32)
        ratio = tl.minimum(tl.exp(tl.minimum(tl.maximum(log_ratio, -20.0), 20.0)), clip)
    factor = tl.load(coefficient_ptr + row).to(tl.float32) * ratio
    statistics = statistics_ptr + row
    tl.store(statistics, factor * token_loss)
    tl.store(statistics + statistics_stride, divergence)
    tl.store(statistics + 2 * statistics_stride, student_logp)
    tl.store(statistics + 3 * statistics_stride, entropy)
    tl.store(statistics + 4 * statistics_stride, topk_mass)
    tl.store(statistics + 5 * statistics_stride, ratio)
    return factor


# The stride is the number of tokens: every new one would compile the kernel again.
@triton.jit(do_not_specialize=["statistics_stride"])
def topk_loss(
    student_support_ptr,
    teacher_support_ptr,
    width,
    student_sums_ptr,
    outside_ptr,
    teacher_tail_ptr,
    coefficient_ptr,
    old_logps_ptr,
    clip,
    alpha,
    entry_clip,
    inner,
    outer,
    statistics_ptr,
    statistics_stride,
    gradient_ptr,
    rest_ptr,
    HAS_RATIO: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    SUPPORT: tl.constexpr,
    DIVERGENCE: tl.constexpr,
    CLIPS_ENTRIES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Loss, statistics and the support's gradient of each row. Grid: (C,).

    In: on the support (C, W) the student's logits and the teacher's log-probabilities, with SUPPORT "renormalized"
        up to a constant of the row; sums (C, 3) of the student; with SUPPORT "tail" outside (C,), its sum exp(x - m)
        over the tokens outside, and the teacher's mass there (C,); coefficient and old log-probabilities (C,);
        inner and outer of the student; SUPPORT "tail", "renormalized" or "sampled"; BLOCK >= W.
    Out: statistics (6, C), `statistics_stride` apart, in the order of `chunked.ChunkedResult`; gradient (C, W) of the
        student's products, to be stored at the support's tokens (the first alone with "sampled", else
        all others); rest (C,), what the probability of every other token is multiplied by.
    """
    row = tl.program_id(0).to(tl.int64)
    student_max = tl.load(student_sums_ptr + row * 3)
    student_sum = tl.load(student_sums_ptr + row * 3 + 1)
    entropy = tl.load(student_sums_ptr + row * 3 + 2)
    sampled_logit = tl.load(student_support_ptr + row * width)
    sampled_logp = sampled_logit - student_max - tl.log(student_sum)
    place = tl.arange(0, BLOCK)
    if SUPPORT == "sampled":
        divergence = sampled_logp - tl.load(teacher_support_ptr + row * width)
        token_loss = divergence * sampled_logp
        mass = 1.0
        in_support = place < 1
        logit = tl.full([BLOCK], 0.0, tl.float32) + sampled_logit
        prob = tl.exp(sampled_logit - student_max) / student_sum
        gradient = tl.full([BLOCK], 0.0, tl.float32) + divergence * (1.0 - prob)
        rest = -divergence
    else:
        in_support = (place > 0) & (place < width)
        logit = tl.load(student_support_ptr + row * width + place, mask=in_support, other=0.0)
        teacher_logp = tl.load(teacher_support_ptr + row * width + place, mask=in_support, other=0.0)
        if SUPPORT == "renormalized":
            teacher_logp -= tl.max(tl.where(in_support, teacher_logp, float("-inf")), axis=0)
        logp = tl.where(in_support, logit - student_max - tl.log(student_sum), 0.0)
        prob = tl.where(in_support, tl.exp(logit - student_max) / student_sum, 0.0)
        teacher_prob = tl.where(in_support, tl.exp(teacher_logp), 0.0)
        mass = tl.sum(prob, axis=0)
        teacher_mass = tl.sum(teacher_prob, axis=0)
        if SUPPORT == "renormalized":
            logp = tl.where(in_support, logp - tl.log(mass), 0.0)
            teacher_logp = tl.where(in_support, teacher_logp - tl.log(teacher_mass), 0.0)
            prob /= mass
            teacher_prob /= teacher_mass
        share, gradient = divergence_terms(
            logp, teacher_logp, prob, teacher_prob, alpha, entry_clip, DIVERGENCE, CLIPS_ENTRIES
        )
        divergence = tl.sum(share, axis=0)
        total = tl.sum(gradient, axis=0)
        rest = 0.0
        if SUPPORT == "tail":
            student_tail = tl.load(outside_ptr + row) / student_sum
            tail = tl.maximum(student_tail, _MIN_TAIL_MASS)
            teacher_tail = tl.maximum(tl.load(teacher_tail_ptr + row), _MIN_TAIL_MASS)
            share, tail_gradient = divergence_terms(
                tl.log(tail),
                tl.log(teacher_tail),
                tail,
                teacher_tail,
                alpha,
                entry_clip,
                DIVERGENCE,
                CLIPS_ENTRIES,
            )
            divergence += share
            # At its bound the tail is a constant.
            tail_gradient = tl.where(student_tail < _MIN_TAIL_MASS, 0.0, tail_gradient)
            total += tail_gradient
            rest = tail_gradient / tail - total
        gradient -= prob * total
        token_loss = divergence
    factor = store_statistics(
        row,
        token_loss,
        divergence,
        sampled_logp,
        entropy,
        mass,
        coefficient_ptr,
        old_logps_ptr,
        clip,
        statistics_ptr,
        statistics_stride,
        HAS_RATIO,
    )
    gradient *= factor * slope(logit, inner, outer, HAS_SOFTCAP)
    tl.store(gradient_ptr + row * width + place, gradient, mask=in_support)
    tl.store(rest_ptr + row, factor * rest)


@triton.jit
def softmax_gradient(
    product_ptr,
    stride,
    bias_ptr,
    inner,
    outer,
    sums_ptr,
    rest_ptr,
    gradient_ptr,
    gradient_stride,
    NUM_COLUMNS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    NARROW: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Replace each row's products by rest * probability * slope. Grid: (C,).

    In: product (C, V), bias (V,), sums (C, 3), rest (C,); NUM_COLUMNS is V.
    Out: gradient (C, V) in the memory of `product`, each row from the place of its own first product on; with
        NARROW in a dtype of half the width. A block then ends before the products of the next one begin, but
        not before its own do: all of them are read before any is overwritten.
    """
    row = tl.program_id(0).to(tl.int64)
    largest = tl.load(sums_ptr + row * 3)
    scale = tl.load(rest_ptr + row) / tl.load(sums_ptr + row * 3 + 1)
    for start in range(0, NUM_COLUMNS, BLOCK):
        column = start + tl.arange(0, BLOCK)
        in_range = column < NUM_COLUMNS
        product = tl.load(product_ptr + row * stride + column, mask=in_range, other=0.0)
        logit = finished(product, column, in_range, bias_ptr, inner, outer, HAS_BIAS, HAS_SOFTCAP)
        gradient = scale * tl.exp(logit - largest) * slope(logit, inner, outer, HAS_SOFTCAP)
        if NARROW:
            tl.debug_barrier()
        gradient = gradient.to(gradient_ptr.dtype.element_ty)
        tl.store(gradient_ptr + row * gradient_stride + column, gradient, mask=in_range)


@triton.jit
def scatter_support(
    ids_ptr, values_ptr, width, first_place, last_place, gradient_ptr, gradient_stride, BLOCK: tl.constexpr
):
    """Store the support's own gradient over that of `softmax_gradient`. Grid: (C,).

    In: ids and values (C, W), the places from `first_place` up to `last_place`; BLOCK >= W.
    Out: gradient (C, V).
    """
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, BLOCK)
    wanted = (place >= first_place) & (place < last_place)
    ids = tl.load(ids_ptr + row * width + place, mask=wanted, other=0)
    values = tl.load(values_ptr + row * width + place, mask=wanted, other=0.0)
    values = values.to(gradient_ptr.dtype.element_ty)
    tl.store(gradient_ptr + row * gradient_stride + ids, values, mask=wanted)
