"""SDPO on failed rollouts alone (SRPO, arXiv:2604.02288, figure 1b)."""

from srpo_trl.methods import routers, tokenwise
from srpo_trl.methods.record import Method


def sdpo_failed(entropy_weight_beta: float) -> Method:
    """Failed rollouts with teacher information are distilled, all others are excluded from the loss."""
    return Method(route=routers.distilled_failed, weights=tokenwise.entropy_weights(entropy_weight_beta))
