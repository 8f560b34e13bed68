"""APO (id unknown): a KL penalty by difficulty on what the reward favours, a length penalty on the rest."""

import torch
from torch import Tensor

from srpo_trl.methods import groups, routers, scorers, tokenwise
from srpo_trl.methods.record import Method, Scored, Tokens


def apo(beta: float = 1e-3, base: float = 1.00001) -> Method:
    """k = `beta` (pi_0 / pi - 1), times 1 - exp(-e p) where A > 0, 0 < p < 1; A (2 - `base`^-excess) on long failures.

    Source: the authors' code, whose penalty is a mean over sequences. Excess: tokens beyond the group's correct ones.
    """

    def rows(scored: Scored) -> dict[str, Tensor]:
        pass_PG = groups.share(scored.is_correct_PG, scored.is_scored_PG).expand_as(scored.route_PG)
        excess_PG = scored.length_PG - groups.mean(scored.length_PG, scored.is_correct_PG)
        is_long_PG = ~scored.is_correct_PG & (excess_PG > 0) & (pass_PG > 0)
        return {"pass": pass_PG, "factor": torch.where(is_long_PG, 2 - base**-excess_PG, 1.0)}

    def pull(tokens: Tokens) -> Tensor:
        p_B = tokens.rows["pass"]
        is_scaled_B = (tokens.advantage_B > 0) & (p_B > 0) & (p_B < 1)
        scale_B = torch.where(is_scaled_B, 1 - (-torch.e * p_B).exp(), 1.0)
        return beta * scale_B.unsqueeze(1) * tokenwise.k3_pull(tokens, "initial")

    by_length = tokenwise.times_row("factor")
    return Method(routers.policy, (scorers.INITIAL,), {}, rows, advantages=by_length, pull=pull)
