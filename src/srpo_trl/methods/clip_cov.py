"""Clip-Cov (arXiv:2505.22617): no gradient of a few tokens on which advantage and log-probability rise together."""

import torch

from srpo_trl.methods import checks, routers, tokenwise
from srpo_trl.methods.record import Method, Tokens


def clip_cov(share: float = 2e-4, lowest: float = 1.0, highest: float = 5.0) -> Method:
    """A = 0 on `share` of the micro-batch's tokens, drawn among those of covariance between `lowest` and `highest`.

    Source: the authors' code. A token that the clip holds already can be drawn, too; the draw is by micro-batch.
    """
    checks.within_1(share=share)

    def advantages(tokens: Tokens) -> torch.Tensor:
        cov_BT = tokenwise.covariance(tokens)
        is_candidate_BT = tokens.policy_BT & (cov_BT > lowest) & (cov_BT < highest)
        drawn_BT = tokenwise.drawn(tokens, is_candidate_BT, tokenwise.number(tokens.policy_BT, share))
        return torch.where(drawn_BT, 0.0, tokens.advantage_B.unsqueeze(1))

    return Method(route=routers.policy, scorers=(), advantages=advantages)
