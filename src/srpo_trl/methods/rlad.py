"""RLAD (arXiv:2602.22495): the policy's ratio is taken to a mixture of the old policy and a teacher."""

from torch import Tensor

from srpo_trl.methods import routers, scorers
from srpo_trl.methods.record import Method, Tokens


def rlad(alpha: float = 0.5, largest_gap: float | None = None, self_teacher: bool = False) -> Method:
    """Ratio (pi / pi_old)^`alpha` (pi / T)^(1 - `alpha`) in TRL's clip; `alpha` 1 is GRPO.

    T: `teacher_model`; with `self_teacher` the self-teacher. `largest_gap` bounds abs(d) in the ratio's value.

    Source: the paper, its equation 3, as its text has alpha the other way round. The bound is a third party's, and
    `self_teacher` ours.
    """

    def anchor(tokens: Tokens) -> Tensor:
        logps_BT, gap_BT = tokens.student.logps_BT, tokens.gap_BT()
        if largest_gap is not None:
            gap_BT = gap_BT.clamp(-largest_gap, largest_gap)
        old_BT = logps_BT if tokens.old_logps_BT is None else tokens.old_logps_BT
        return alpha * old_BT + (1 - alpha) * (logps_BT + gap_BT)

    return Method(routers.policy, (scorers.teacher(is_self=self_teacher),), anchor=anchor)
