"""Token-wise functions that several methods share, (B, T) each."""

from collections.abc import Callable

from torch import Tensor

from srpo_trl.loss.token_weights import raw_entropy_weights
from srpo_trl.methods.record import Tokens


def entropy_weights(beta: float) -> Callable[[Tokens], Tensor]:
    """Return the weights w~ = exp(-beta H) of the teacher's entropy H (SRPO, section 3.2)."""
    return lambda tokens: raw_entropy_weights(tokens.scores["teacher"].entropy_BT, beta)
