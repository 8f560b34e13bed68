"""KL-Cov (arXiv:2505.22617): the tokens on which advantage and log-probability rise together most are held back."""

from torch import Tensor

from srpo_trl.methods import checks, routers, tokenwise
from srpo_trl.methods.record import Method, Tokens


def kl_cov(share: float = 2e-3, coefficient: float = 1.0) -> Method:
    """k = -`coefficient` sign(log pi - log pi_old) on the top `share` of the micro-batch's tokens by covariance.

    Nothing in the first update of a rollout batch, where both are equal.

    Source: the authors' code. Theirs has no PPO clip; here epsilon is TRL's.
    """
    checks.within_1(share=share)

    def pull(tokens: Tokens) -> Tensor:
        top_BT = tokenwise.largest(
            tokenwise.covariance(tokens), tokens.policy_BT, tokenwise.number(tokens.policy_BT, share)
        )
        return -coefficient * tokenwise.log_ratio(tokens).sign() * top_BT

    return Method(route=routers.policy, scorers=(), pull=pull)
