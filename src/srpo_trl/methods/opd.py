"""OPD (arXiv:2609.04108, table 1): the gap to a teacher as the advantage of each token, and no reward."""

from srpo_trl.methods import routers, scorers
from srpo_trl.methods.record import Method


def opd(self_teacher: bool = False) -> Method:
    """A = d: the reverse KL to the teacher by the policy gradient, inside the clip.

    Source: the paper's table.
    """
    teacher = scorers.teacher(is_self=self_teacher)
    return Method(routers.policy, (teacher,), advantages=lambda tokens: tokens.gap_BT())
