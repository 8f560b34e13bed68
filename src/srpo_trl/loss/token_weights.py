"""Weights of the distilled tokens.

Shapes: any; a weight has the shape of its token's entropy. Omega: every valid token that is distilled in the
optimizer step, over all micro-batches and processes.
"""

import torch
from torch import Tensor

from srpo_trl.loss.float64 import to_float64


def raw_entropy_weights(teacher_entropy: Tensor, beta: float) -> Tensor:
    """Weights before normalization: the surer the teacher, the larger.

        w~ = exp(-beta H)                                                   (SRPO, arXiv:2604.02288, sec. 3.2)

    Args:
        teacher_entropy: H, entropy over the full vocabulary in nats, >= 0; detached here.
        beta: >= 0. 0 gives exactly 1.

    Returns:
        The argument's shape, float64, from 0 to 1, no gradient.

    Raises:
        ValueError: beta is negative.
    """
    if beta < 0:
        raise ValueError(f"beta is {beta}; it must be 0 or above. 0 switches the entropy weights off.")
    return torch.exp(-beta * to_float64(teacher_entropy.detach()))


def mean_one_weights(
    raw_weights: Tensor, mean_unnormalized_weight: Tensor | float, dtype: torch.dtype
) -> Tensor:
    """Weights whose mean over Omega is 1.

        w = w~ / mean over Omega of w~                                      (SRPO, arXiv:2604.02288, sec. 3.2)

    Args:
        raw_weights: w~, float64, >= 0.
        mean_unnormalized_weight: mean of w~ over Omega, () and float64; above 0. Exactly 1 where every w~ is 1.
        dtype: of the teacher's entropies.

    Returns:
        The argument's shape, in `dtype` but float32 at least (computed in float64), >= 0.
    """
    weights = raw_weights / mean_unnormalized_weight
    return weights.to(torch.promote_types(dtype, torch.float32))


def effective_sample_size(sum_w: Tensor | float, sum_w2: Tensor | float) -> Tensor:
    """How many equally weighted tokens have the variance of the weighted ones (Kish).

        ESS = (sum w)^2 / sum w^2

    Args:
        sum_w: sum of the weights over Omega, >= 0.
        sum_w2: sum of their squares, >= 0.

    Returns:
        () float64, from 1 to the number of tokens, no gradient; 0 where nothing has a weight.
    """
    sum_w, sum_w2 = (to_float64(torch.as_tensor(value).detach()) for value in (sum_w, sum_w2))
    return torch.where(sum_w2 > 0, sum_w.square() / sum_w2, torch.zeros_like(sum_w2))
