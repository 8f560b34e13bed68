"""SRPO-both (ours): what SRPO distils keeps its place in the policy loss."""

from srpo_trl.methods import routers, schedules, srpo
from srpo_trl.methods.record import Method


def srpo_both(entropy_weight_beta: float, distilled: float = 1.0) -> Method:
    """GRPO everywhere; failed rollouts with teacher information are distilled besides, `distilled` times.

    w = exp(-beta H) of the teacher's entropy H, mean 1, with beta = `entropy_weight_beta`. SRPO leaves the negative
    advantages of these rollouts out.

    Source: ours, from the learning study.
    """
    method = srpo.srpo(entropy_weight_beta)
    return method._replace(route=routers.both_failed, strength=schedules.constant(distilled))
