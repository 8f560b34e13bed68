"""GTPO (arXiv:2508.03772): tokens that good and bad rollouts share are protected, confused rollouts left out."""

import torch
from torch import Tensor

from srpo_trl.methods import groups, routers, scorers
from srpo_trl.methods.record import Method, Scored, Tokens


def gtpo(weight: float = 2.0, entropy_cost: float = 0.1, largest_entropy: float = 0.7) -> Method:
    """A - `entropy_cost` H, times `weight` (rewarded) or 0 (others) on shared tokens, over their number or 1.

    H: a rollout's mean entropy; A = 0 above `largest_entropy`. Every rollout weighs alike, however long.

    Source: the authors' code, which has neither ratio nor clip; the sign of A is here that of the score less its mean.
    """

    def rows(scored: Scored) -> dict[str, Tensor]:
        sign_PG = (scored.score_PG - groups.mean(scored.score_PG, scored.is_scored_PG)).sign().nan_to_num(0.0)
        shared_PGT = groups.conflicts(scored.token_ids(), sign_PG)
        factor_PGT = torch.where(shared_PGT, weight * (sign_PG > 0).double().unsqueeze(2), 1.0)
        share_PG = groups.equal_shares(scored) / shared_PGT.sum(2).clamp(min=1)
        return {"factor": factor_PGT * share_PG.unsqueeze(2), "entropy": scored.means["student"].entropy_PG}

    def advantages(tokens: Tokens) -> Tensor:
        h_B = tokens.rows["entropy"]
        kept_B = (tokens.advantage_B - entropy_cost * h_B).masked_fill(h_B > largest_entropy, 0.0)
        return kept_B.unsqueeze(1) * tokens.rows["factor"]

    return Method(routers.policy, (scorers.STUDENT,), rows=rows, advantages=advantages)
