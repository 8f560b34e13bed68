"""Entropy of a policy per token.

Shapes: N packed scored tokens, V vocabulary.
"""

from torch import Tensor


def entropy(logps_NV: Tensor) -> Tensor:
    """Entropy of each token's distribution over the whole vocabulary, in nats.

        H_n = - sum_v p_v log p_v                                           (SRPO, arXiv:2604.02288, sec. 3.2)

    Args:
        logps_NV: finite log-probabilities, normalized over the vocabulary, temperature applied. Receives a
            gradient.

    Returns:
        (N,) in the input's dtype, from 0 to log V.
    """
    return -(logps_NV.exp() * logps_NV).sum(-1)
