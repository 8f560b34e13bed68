"""SDPO on correct rollouts alone (SRPO, arXiv:2604.02288, figure 1b)."""

from srpo_trl.methods import routers, tokenwise
from srpo_trl.methods.record import Method


def sdpo_correct(entropy_weight_beta: float) -> Method:
    """Correct rollouts with teacher information are distilled, all others are excluded from the loss."""
    return Method(route=routers.distilled_correct, weights=tokenwise.entropy_weights(entropy_weight_beta))
