"""Matrix products with an LM head that are never rounded below float32, in bounded memory, without autograd.

Three precisions, by dtype and device: "direct" where hidden states and weight already have the dtype of the
computation; "mixed" for bfloat16 and float16 on CUDA, where the product itself is made in float32; "convert" for the
rest, where the weight is upcast to that dtype, one tile of vocabulary rows at a time.

Shapes: C tokens of a chunk, D hidden, V vocabulary.
"""

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from srpo_trl.loss.ops.interface import Head

MatmulPrecision = Literal["direct", "mixed", "convert"]

_NARROW = (torch.bfloat16, torch.float16)
_LIFTED = 8  # the exponent that `gradient_lift` gives the largest coefficient: 2^8, of float16's 2^16


def matmul_precision(hidden_ND: Tensor, weight_VD: Tensor, dtype: torch.dtype) -> MatmulPrecision:
    """How products of these two are made in `dtype`."""
    if hidden_ND.dtype == weight_VD.dtype == dtype:
        return "direct"
    is_narrow = hidden_ND.dtype == weight_VD.dtype and weight_VD.dtype in _NARROW
    if is_narrow and dtype == torch.float32 and weight_VD.is_cuda:
        return "mixed"
    return "convert"


def project_(
    logits_CV: Tensor,
    hidden_CD: Tensor,
    head: Head,
    temperature: float,
    precision: MatmulPrecision,
    tile_rows: int,
) -> None:
    """Fill `logits_CV` with softcap(logit_scale * (hidden W^T + bias)) / temperature.

    Args:
        logits_CV: overwritten; its dtype is that of the computation.
        hidden_CD: any float dtype.
        head: any float dtype.
        temperature: above 0.
        precision: from `matmul_precision`.
        tile_rows: vocabulary rows that are upcast at a time with "convert".
    """
    if precision == "direct":
        torch.mm(hidden_CD, head.weight_VD.T, out=logits_CV)
    elif precision == "mixed":
        _mixed_mm(hidden_CD, head.weight_VD.T, out=logits_CV)
    else:
        raised_hidden_CD = hidden_CD.to(logits_CV.dtype)
        for rows in _tiles(logits_CV.shape[1], tile_rows):
            raised_weight = head.weight_VD[rows].to(logits_CV.dtype)
            torch.mm(raised_hidden_CD, raised_weight.T, out=logits_CV[:, rows])
            del raised_weight  # before the next tile is made
    finish_(logits_CV, head, head.bias_V, temperature)


def finish_(logits: Tensor, head: Head, bias: Tensor | None, temperature: float) -> None:
    """Turn products hidden W^T into finished logits.

    Args:
        logits: overwritten; (..., V), or some columns of it.
        head: for its logit scale and softcap.
        bias: the head's, of the same columns, or None.
        temperature: above 0.
    """
    if bias is not None:
        logits.add_(bias)
    if head.logit_scale != 1.0:
        logits.mul_(head.logit_scale)
    if head.softcap is not None:
        logits.div_(head.softcap).tanh_().mul_(head.softcap)
    if temperature != 1.0:
        logits.div_(temperature)


def gradient_view(products_CV: Tensor, weight_VD: Tensor, precision: MatmulPrecision) -> Tensor:
    """Where the gradient of the products goes: over them, with "mixed" in the dtype of the products that follow."""
    if precision == "mixed":
        return products_CV.view(weight_VD.dtype)[:, : weight_VD.shape[0]]
    return products_CV[:, : weight_VD.shape[0]]


def gradient_lift(
    coefficient_N: Tensor, logit_scale: float, temperature: float, clip: float | None
) -> Tensor:
    """The power of two that the coefficients are multiplied by where the products' gradient is rounded to float16.

        |d loss / d product| <= |coefficient| * ratio * logit_scale / temperature * |d l / d logit|

    The first three factors become at most 2^8. That leaves room for |d l / d logit| up to 255, which only a
    log-ratio of so many nats makes, and normal numbers down to 2^-22 of the largest coefficient. As it is a gradient
    lies around 1e-7, where float16 has few digits or none. A power of two changes no digit of anything else.

    Args:
        coefficient_N: of the tokens.
        logit_scale, temperature: of the student's logits.
        clip: the cap of the importance ratio; None: it is 1.

    Returns:
        () float32, no gradient.
    """
    factor = abs(logit_scale) / temperature * (1.0 if clip is None else clip)
    largest = torch.cat([coefficient_N.abs(), coefficient_N.new_zeros(1)]).max().float() * factor
    _, exponent = torch.frexp(largest)
    return torch.ldexp(torch.ones_like(largest), (_LIFTED - exponent).clamp(-126, 126))


def softcap_slope_(logits_CV: Tensor, softcap: float, temperature: float) -> None:
    """Replace finished logits by the derivative of the softcap that made them.

        y = c tanh(x / c),   dy/dx = 1 - (y / c)^2,   y = temperature * logits

    Args:
        logits_CV: from `project_`; overwritten, from 0 to 1.
        softcap: c of the head that made the logits.
        temperature: the temperature that made the logits.
    """
    logits_CV.mul_(temperature / softcap).square_().neg_().add_(1.0)


def hidden_gradient_(
    grad_hidden_CD: Tensor,
    grad_product_CV: Tensor,
    weight_VD: Tensor,
    precision: MatmulPrecision,
    tile_rows: int,
) -> None:
    """Fill `grad_hidden_CD` with (d loss / d product) W, the gradient of the hidden states.

    Args:
        grad_hidden_CD: overwritten; dtype of the computation.
        grad_product_CV: gradient of hidden W^T; with "mixed" already rounded to the weight's dtype.
        weight_VD: the head's weight.
        precision: from `matmul_precision`.
        tile_rows: vocabulary rows that are upcast at a time with "convert".
    """
    if precision == "direct":
        torch.mm(grad_product_CV, weight_VD, out=grad_hidden_CD)
    elif precision == "mixed":
        _mixed_mm(grad_product_CV, weight_VD, out=grad_hidden_CD)
    else:
        grad_hidden_CD.zero_()
        for rows in _tiles(weight_VD.shape[0], tile_rows):
            raised_weight = weight_VD[rows].to(grad_hidden_CD.dtype)
            grad_hidden_CD.addmm_(grad_product_CV[:, rows], raised_weight)
            del raised_weight


def add_weight_gradient_(
    grad_weight_VD: Tensor, grad_product_CV: Tensor, hidden_CD: Tensor, precision: MatmulPrecision
) -> None:
    """Add (d loss / d product)^T hidden, the gradient of the head's weight, to `grad_weight_VD`.

    Args:
        grad_weight_VD: added to; dtype of the computation.
        grad_product_CV: gradient of hidden W^T; with "mixed" already rounded to the hidden states' dtype.
        hidden_CD: the hidden states.
        precision: from `matmul_precision`.
    """
    if precision == "mixed":
        _mixed_mm(grad_product_CV.T, hidden_CD, out=grad_weight_VD, accumulate=True)
    else:
        grad_weight_VD.addmm_(grad_product_CV.T, hidden_CD.to(grad_weight_VD.dtype))


def _mixed_mm(left: Tensor, right: Tensor, *, out: Tensor, accumulate: bool = False) -> None:
    """The float32 product of two matrices of bfloat16 or float16, stored in `out` or added to it; only CUDA has it."""
    if accumulate:
        torch.addmm(out, left, right, out_dtype=torch.float32, out=out)
    else:
        torch.mm(left, right, out_dtype=torch.float32, out=out)


def _tiles(num_rows: int, tile_rows: int) -> Iterator[slice]:
    for start in range(0, num_rows, tile_rows):
        yield slice(start, min(start + tile_rows, num_rows))
