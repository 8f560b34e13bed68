"""The Triton kernel of the divergence over the whole vocabulary and its gradient over the student's logits.

Formulas: `ops.token_losses`; products, finished logits and shapes: `ops.triton_scan`.
"""

import triton
import triton.language as tl

from srpo_trl.loss.ops.triton_scan import finished
from srpo_trl.loss.ops.triton_terms import divergence_terms, slope, store_statistics


@triton.jit
def _full_block(
    column,
    in_range,
    student_row,
    teacher_row,
    student_bias_ptr,
    teacher_bias_ptr,
    inner,
    outer,
    teacher_inner,
    teacher_outer,
    student_max,
    student_sum,
    teacher_max,
    teacher_sum,
    alpha,
    entry_clip,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    TEACHER_HAS_BIAS: tl.constexpr,
    TEACHER_HAS_SOFTCAP: tl.constexpr,
    DIVERGENCE: tl.constexpr,
    CLIPS_ENTRIES: tl.constexpr,
):
    """The student's finished logits and probabilities at the given columns, and their `divergence_terms`."""
    logit = tl.load(student_row + column, mask=in_range, other=0.0)
    logit = finished(logit, column, in_range, student_bias_ptr, inner, outer, HAS_BIAS, HAS_SOFTCAP)
    teacher = tl.load(teacher_row + column, mask=in_range, other=0.0)
    teacher = finished(
        teacher,
        column,
        in_range,
        teacher_bias_ptr,
        teacher_inner,
        teacher_outer,
        TEACHER_HAS_BIAS,
        TEACHER_HAS_SOFTCAP,
    )
    prob = tl.exp(logit - student_max) / student_sum
    share, gradient = divergence_terms(
        logit - student_max - tl.log(student_sum),
        teacher - teacher_max - tl.log(teacher_sum),
        prob,
        tl.exp(teacher - teacher_max) / teacher_sum,
        alpha,
        entry_clip,
        DIVERGENCE,
        CLIPS_ENTRIES,
    )
    return logit, prob, share, gradient


@triton.jit(do_not_specialize=["statistics_stride"])  # as in `topk_loss`
def full_vocab_loss(
    student_ptr,
    teacher_ptr,
    stride,
    teacher_stride,
    student_bias_ptr,
    teacher_bias_ptr,
    inner,
    outer,
    teacher_inner,
    teacher_outer,
    sampled_ptr,
    student_sums_ptr,
    teacher_sums_ptr,
    coefficient_ptr,
    old_logps_ptr,
    clip,
    alpha,
    entry_clip,
    statistics_ptr,
    statistics_stride,
    gradient_ptr,
    gradient_stride,
    NUM_COLUMNS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    TEACHER_HAS_BIAS: tl.constexpr,
    TEACHER_HAS_SOFTCAP: tl.constexpr,
    HAS_RATIO: tl.constexpr,
    DIVERGENCE: tl.constexpr,
    CLIPS_ENTRIES: tl.constexpr,
    WITH_GRADIENT: tl.constexpr,
    NARROW: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Divergence over the whole vocabulary, then its gradient over the student's products. Grid: (C,).

    In: both sides' products (C, V), bias (V,), sums (C, 3); sampled (C, 1), the student's logit of the sampled
        token; coefficient and old log-probabilities (C,); NUM_COLUMNS is V.
    Out: statistics (6, C) as in `topk_loss`; gradient (C, V) as in `softmax_gradient`.
    """
    row = tl.program_id(0).to(tl.int64)
    student_max = tl.load(student_sums_ptr + row * 3)
    student_sum = tl.load(student_sums_ptr + row * 3 + 1)
    entropy = tl.load(student_sums_ptr + row * 3 + 2)
    teacher_max = tl.load(teacher_sums_ptr + row * 3)
    teacher_sum = tl.load(teacher_sums_ptr + row * 3 + 1)
    student_row = student_ptr + row * stride
    teacher_row = teacher_ptr + row * teacher_stride
    shares = tl.zeros([BLOCK], tl.float32)
    gradients = tl.zeros([BLOCK], tl.float32)
    for start in range(0, NUM_COLUMNS, BLOCK):
        column = start + tl.arange(0, BLOCK)
        here = column < NUM_COLUMNS
        _, _, share, gradient = _full_block(
            column,
            here,
            student_row,
            teacher_row,
            student_bias_ptr,
            teacher_bias_ptr,
            inner,
            outer,
            teacher_inner,
            teacher_outer,
            student_max,
            student_sum,
            teacher_max,
            teacher_sum,
            alpha,
            entry_clip,
            HAS_BIAS,
            HAS_SOFTCAP,
            TEACHER_HAS_BIAS,
            TEACHER_HAS_SOFTCAP,
            DIVERGENCE,
            CLIPS_ENTRIES,
        )
        shares += tl.where(here, share, 0.0)
        gradients += tl.where(here, gradient, 0.0)
    divergence = tl.sum(shares, axis=0)
    factor = store_statistics(
        row,
        divergence,
        divergence,
        tl.load(sampled_ptr + row) - student_max - tl.log(student_sum),
        entropy,
        1.0,
        coefficient_ptr,
        old_logps_ptr,
        clip,
        statistics_ptr,
        statistics_stride,
        HAS_RATIO,
    )
    if WITH_GRADIENT:
        total = tl.sum(gradients, axis=0)
        for start in range(0, NUM_COLUMNS, BLOCK):
            column = start + tl.arange(0, BLOCK)
            here = column < NUM_COLUMNS
            logit, prob, _, gradient = _full_block(
                column,
                here,
                student_row,
                teacher_row,
                student_bias_ptr,
                teacher_bias_ptr,
                inner,
                outer,
                teacher_inner,
                teacher_outer,
                student_max,
                student_sum,
                teacher_max,
                teacher_sum,
                alpha,
                entry_clip,
                HAS_BIAS,
                HAS_SOFTCAP,
                TEACHER_HAS_BIAS,
                TEACHER_HAS_SOFTCAP,
                DIVERGENCE,
                CLIPS_ENTRIES,
            )
            gradient = factor * (gradient - prob * total) * slope(logit, inner, outer, HAS_SOFTCAP)
            if NARROW:
                tl.debug_barrier()
            gradient = gradient.to(gradient_ptr.dtype.element_ty)
            tl.store(gradient_ptr + row * gradient_stride + column, gradient, mask=here)
