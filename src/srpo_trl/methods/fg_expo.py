"""FG-ExPO (arXiv:2605.11403): GRPO whose KL penalty grows with the accuracy of the batch."""

import torch
from torch import Tensor

from srpo_trl.methods import routers, scorers, tokenwise
from srpo_trl.methods.record import Method, Scored


def fg_expo(beta: float = 0.02) -> Method:
    """k = `beta` (tanh(accuracy) + 1) / 2 (pi_0 / pi - 1), with the share of correct rollouts of the batch.

    Source: the paper; without its choice of prompts by their pass rate.
    """

    def rows(scored: Scored) -> dict[str, Tensor]:
        accuracy = scored.is_correct_PG.sum() / scored.is_scored_PG.sum().clamp(min=1)
        return {"beta": (beta * (torch.tanh(accuracy) + 1) / 2).expand(scored.route_PG.shape)}

    return Method(
        routers.policy,
        (scorers.INITIAL,),
        rows=rows,
        pull=lambda t: t.rows["beta"].unsqueeze(1) * tokenwise.k3_pull(t, "initial"),
    )
