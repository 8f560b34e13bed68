"""KL-Cov (arXiv:2505.22617): hold the tokens back on which advantage and log-probability rise together most."""

from torch import Tensor

from srpo_trl.methods import routers, tokenwise
from srpo_trl.methods.record import Method, Tokens


def kl_cov(share: float = 2e-3, coefficient: float = 1.0) -> Method:
    """k = -coefficient sign(log pi - log pi_old) on the top tokens by covariance.

    Nothing in the first update of a rollout batch, where both are equal. Theirs has no PPO clip: epsilon is TRL's.
    """

    def pull(tokens: Tokens) -> Tensor:
        top_BT = tokenwise.largest(
            tokenwise.covariance(tokens), tokens.policy_BT, tokenwise.number(tokens.policy_BT, share)
        )
        return -coefficient * tokenwise.log_ratio(tokens).sign() * top_BT

    return Method(route=routers.policy, scorers=(), pull=pull)
