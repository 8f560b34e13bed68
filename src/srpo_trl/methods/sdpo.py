"""SDPO (arXiv:2601.20802): self-distillation of every rollout that has teacher information."""

from srpo_trl.methods import routers, tokenwise
from srpo_trl.methods.record import Method


def sdpo(entropy_weight_beta: float) -> Method:
    """Every rollout with teacher information is distilled, the others are excluded from the loss.

    w = exp(-beta H) with beta = `entropy_weight_beta`, 0 unless it is given: w = 1.

    Source: the paper, the authors' code.
    """
    return Method(route=routers.distilled, weights=tokenwise.entropy_weights(entropy_weight_beta))
