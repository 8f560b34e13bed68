"""RAPO (arXiv:2510.03865): GRPO, and the forward KL to the initial weights, reweighted by the reward."""

from torch import Tensor

from srpo_trl.methods import routers, scorers
from srpo_trl.methods.record import Method, Tokens


def rapo(alpha: float = 0.01, power: float = 1.0) -> Method:
    """k = `alpha` w log w: of `alpha` (w log w - w + 1), w = r / pi, r = pi_0^`power` on correct rollouts, else pi_0.

    Source: secondary sources, without the function of the reward in the power, which is ours, and their
    entropy bonus.
    """

    def pull(tokens: Tokens) -> Tensor:
        power_B = tokens.is_correct_B.double() * (power - 1.0) + 1.0
        log_w_BT = power_B.unsqueeze(1) * tokens.scores["initial"].logps_BT - tokens.student.logps_BT
        return alpha * log_w_BT.exp() * log_w_BT

    return Method(routers.policy, (scorers.INITIAL,), pull=pull)
