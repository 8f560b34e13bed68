"""HDPO (arXiv:2603.23871): the groups in which no rollout is correct are distilled, beside GRPO."""

from srpo_trl.methods import routers, schedules
from srpo_trl.methods.record import Method


def hdpo(beta: float = 1.0) -> Method:
    """GRPO everywhere; where a whole group failed, `beta` times the Jensen-Shannon divergence besides.

    Such a group has no correct sibling: show a reference or feedback, teacher_context=['reference'] or ['feedback'].

    Source: secondary sources. beta is ours.
    """
    divergence = {"alpha": 0.5}
    return Method(routers.both_where_all_failed, divergence=divergence, strength=schedules.constant(beta))
