"""Entropy-aware weights of the distilled tokens.

Shapes: any; a weight has the shape of its entropy. Omega: every valid token that is distilled in the
optimizer step, over all micro-batches and processes.
"""

import torch
from torch import Tensor


def raw_entropy_weights(teacher_entropy: Tensor, beta: float) -> Tensor:
    """Weights before normalisation: the surer the teacher, the larger.

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
    return torch.exp(-beta * teacher_entropy.detach().double())


def entropy_weights(teacher_entropy: Tensor, beta: float, mean_unnormalized_weight: Tensor | float) -> Tensor:
    """Weights whose mean over Omega is 1.

        w = exp(-beta H) / mean over Omega of exp(-beta H)                  (SRPO, arXiv:2604.02288, sec. 3.2)

    Args:
        teacher_entropy: H, entropy over the full vocabulary in nats, >= 0; detached here.
        beta: >= 0. 0 gives exactly 1, whatever the mean.
        mean_unnormalized_weight: mean of `raw_entropy_weights` over Omega, () and float64; above 0.

    Returns:
        The argument's shape, in its dtype but float32 at least (computed in float64), >= 0, no gradient.

    Raises:
        ValueError: beta is negative.
    """
    dtype = torch.promote_types(teacher_entropy.dtype, torch.float32)
    raw_weights = raw_entropy_weights(teacher_entropy, beta)
    if beta == 0:
        return raw_weights.to(dtype)
    return (raw_weights / mean_unnormalized_weight).to(dtype)


def effective_sample_size(sum_w: Tensor | float, sum_w2: Tensor | float) -> Tensor:
    """How many equally weighted tokens have the variance of the weighted ones (Kish).

        ESS = (sum w)^2 / sum w^2

    Args:
        sum_w: sum of the weights over Omega, >= 0.
        sum_w2: sum of their squares, >= 0.

    Returns:
        () float64, from 1 to the number of tokens, no gradient; 0 where nothing has a weight.
    """
    sum_w = torch.as_tensor(sum_w).detach().double()
    sum_w2 = torch.as_tensor(sum_w2).detach().double()
    return torch.where(sum_w2 > 0, sum_w.square() / sum_w2, torch.zeros_like(sum_w2))
