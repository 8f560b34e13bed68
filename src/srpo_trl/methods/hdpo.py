"""HDPO (arXiv:2603.23871): distil the groups in which no rollout is correct, beside GRPO."""

from srpo_trl.methods import routers, schedules
from srpo_trl.methods.record import Method


def hdpo(beta: float = 1.0) -> Method:
    """GRPO everywhere; where a whole group failed, `beta` times the Jensen-Shannon divergence besides.

    Such a group has no correct sibling to show: the teacher needs a reference answer or feedback.
    """
    divergence = {"alpha": 0.5}
    return Method(routers.both_where_all_failed, divergence=divergence, strength=schedules.constant(beta))
