"""SDPO on correct (arXiv:2604.02288): self-distillation of correct rollouts alone, of figure 1b."""

from srpo_trl.methods import routers, tokenwise
from srpo_trl.methods.record import Method


def sdpo_correct(entropy_weight_beta: float) -> Method:
    """Correct rollouts with teacher information are distilled, all others are excluded from the loss.

    w = exp(-beta H) with beta = `entropy_weight_beta`, 0 unless it is given: w = 1.

    Source: the paper.
    """
    return Method(route=routers.distilled_correct, weights=tokenwise.entropy_weights(entropy_weight_beta))
