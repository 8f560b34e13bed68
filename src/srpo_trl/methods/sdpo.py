"""SDPO (arXiv:2601.20802): self-distillation of every rollout that has teacher information."""

from srpo_trl.methods import routers, tokenwise
from srpo_trl.methods.record import Method


def sdpo(entropy_weight_beta: float) -> Method:
    """Every rollout with teacher information is distilled, the others are excluded from the loss."""
    return Method(route=routers.distilled, weights=tokenwise.entropy_weights(entropy_weight_beta))
