"""RLSD (arXiv:2609.04108): the reward's advantage, larger on tokens that the shown teacher agrees with."""

from torch import Tensor

from srpo_trl.methods import routers
from srpo_trl.methods.record import Method, Scorer, Tokens


def rlsd(share: float = 0.5, epsilon: float = 0.2) -> Method:
    """A times (1 - `share`) + `share` clip(exp(sign(A) d), 1 - `epsilon`, 1 + `epsilon`): its sign is the reward's.

    Source: secondary sources. A line of the paper's table 1, and a library's code with these values.
    """

    def advantages(tokens: Tokens) -> Tensor:
        advantage_B1 = tokens.advantage_B.unsqueeze(1)
        evidence_BT = (advantage_B1.sign() * tokens.gap_BT()).exp().clamp(1 - epsilon, 1 + epsilon)
        return advantage_B1 * ((1 - share) + share * evidence_BT)

    return Method(routers.policy, (Scorer(distils=False),), advantages=advantages)
