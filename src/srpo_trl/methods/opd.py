"""OPD (arXiv:2609.04108): the gap to a teacher as the advantage of each token, and no reward."""

from srpo_trl.methods import routers, scorers
from srpo_trl.methods.record import Method


def opd(self_teacher: bool = False) -> Method:
    """A = d: the reverse KL to the teacher by the policy gradient, inside the clip.

    T: `teacher_model`; with `self_teacher` the self-teacher.

    Source: the paper, its table 1. `self_teacher` is ours.
    """
    teacher = scorers.teacher(is_self=self_teacher)
    return Method(routers.policy, (teacher,), advantages=lambda tokens: tokens.gap_BT())
