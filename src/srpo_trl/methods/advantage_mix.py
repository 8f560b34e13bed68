"""Advantage mix (arXiv:2604.02288): both losses on one rollout, without a choice between them, of table 2."""

from srpo_trl.methods import routers, tokenwise
from srpo_trl.methods.record import Method


def advantage_mix(advantage_mix_lambda: float, entropy_weight_beta: float) -> Method:
    """Policy loss, weighted lambda, on every rollout; distillation, 1 - lambda, where there is teacher information.

    A = lambda A and strength 1 - lambda, with lambda = `advantage_mix_lambda`; w = exp(-beta H) with
    beta = `entropy_weight_beta`, 0 unless it is given: w = 1.

    Source: the paper.
    """
    return Method(
        route=routers.both,
        weights=tokenwise.entropy_weights(entropy_weight_beta),
        strength=lambda step: 1.0 - advantage_mix_lambda,
        advantages=lambda t: advantage_mix_lambda * t.advantage_B,
    )
