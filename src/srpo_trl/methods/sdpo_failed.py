"""SDPO on failed (arXiv:2604.02288): self-distillation of failed rollouts alone, of figure 1b."""

from srpo_trl.methods import routers, tokenwise
from srpo_trl.methods.record import Method


def sdpo_failed(entropy_weight_beta: float) -> Method:
    """Failed rollouts with teacher information are distilled, all others are excluded from the loss.

    w = exp(-beta H) with beta = `entropy_weight_beta`, 0 unless it is given: w = 1.

    Source: the paper.
    """
    return Method(route=routers.distilled_failed, weights=tokenwise.entropy_weights(entropy_weight_beta))
