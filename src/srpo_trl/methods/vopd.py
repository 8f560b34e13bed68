"""vOPD (arXiv:2605.07865): on-policy distillation of the sampled token, with the exact KL as its baseline."""

from torch import Tensor

from srpo_trl.methods import routers, scorers
from srpo_trl.methods.record import Method, Tokens


def vopd(self_teacher: bool = False) -> Method:
    """A + d + KL(pi || T): the policy gradient of the reverse KL, its baseline over the support of the options.

    T: `teacher_model`; with `self_teacher` the self-teacher. The divergence is computed with weight 0.

    Source: the authors' code, where A is 0 with one generation. `self_teacher` is ours.
    """

    def advantages(tokens: Tokens) -> Tensor:
        return tokens.advantage_B.unsqueeze(1) + tokens.gap_BT() + tokens.student.divergence_BT

    def weights(tokens: Tokens) -> Tensor:
        return tokens.mask_BT * 0.0

    teacher = scorers.teacher(is_self=self_teacher, distils=True)._replace(has_logps=True)
    return Method(
        routers.both, (teacher,), {"alpha": 1.0}, weights=weights, mean_one=False, advantages=advantages
    )
