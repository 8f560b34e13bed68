"""TIP (arXiv:2604.14084): distil where the student is unsure, or sure and far from the teacher."""

from torch import Tensor

from srpo_trl.methods import checks, routers, scorers, tokenwise
from srpo_trl.methods.record import Method, Tokens


def tip(kept: float = 0.5, self_teacher: bool = True) -> Method:
    """Reverse KL, averaged over the `kept` share of each rollout's tokens with the largest h + d - h d.

    h, d: the student's entropy and KL(student || teacher), each scaled to [0, 1] within the rollout. Without
    `self_teacher` the teacher is `teacher_model`.

    Source: the paper, which leaves open over what it scales.
    """
    checks.within_1(kept=kept)

    def weights(tokens: Tokens) -> Tensor:
        student, mask_BT = tokens.scores["student"], tokens.mask_BT
        h_BT = tokenwise.min_max(student.entropy_BT, mask_BT)
        d_BT = tokenwise.min_max(student.divergence_BT, mask_BT)
        return tokenwise.top_frac(h_BT + d_BT - h_BT * d_BT, mask_BT, kept)

    teacher = scorers.teacher(is_self=self_teacher, distils=True)
    both = (teacher, scorers.STUDENT._replace(against="teacher"))
    return Method(routers.distilled, both, {"alpha": 1.0}, weights=weights)
