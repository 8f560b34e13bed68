"""The advantage mix (SRPO, arXiv:2604.02288, table 2): both losses on one rollout, without a choice between them."""

from srpo_trl.methods import routers, tokenwise
from srpo_trl.methods.record import Method


def advantage_mix(advantage_mix_lambda: float, entropy_weight_beta: float) -> Method:
    """Policy loss, weighted lambda, on every rollout; distillation, 1 - lambda, where there is teacher information."""
    return Method(
        route=routers.both,
        weights=tokenwise.entropy_weights(entropy_weight_beta),
        strength=lambda step: 1.0 - advantage_mix_lambda,
        advantages=lambda t: advantage_mix_lambda * t.advantage_B,
    )
