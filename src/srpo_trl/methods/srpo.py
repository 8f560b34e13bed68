"""SRPO (arXiv:2604.02288): the policy loss or self-distillation, rollout by rollout."""

from srpo_trl.methods import routers, tokenwise
from srpo_trl.methods.record import Method


def srpo(entropy_weight_beta: float) -> Method:
    """Failed rollouts with teacher information are distilled, all others take the policy loss.

    w = exp(-beta H) of the teacher's entropy H, mean 1, with beta = `entropy_weight_beta`; 0: all weights are 1.

    Source: the paper.
    """
    return Method(route=routers.sample_routed, weights=tokenwise.entropy_weights(entropy_weight_beta))
