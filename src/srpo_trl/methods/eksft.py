"""EKSFT (arXiv:2605.29303): the likelihood of correct rollouts, less what is unsure and far from the start."""

from torch import Tensor

from srpo_trl.methods import checks, routers, scorers, tokenwise
from srpo_trl.methods.record import Method, Tokens


def eksft(share: float = 0.2) -> Method:
    """A = 0; k = 1 on correct rollouts, but 0 in the micro-batch's top `share` of both entropy and KL(pi || pi_0).

    Source: the authors' code, for fine-tuning on given data; ours are own rollouts, without their two regularizers.
    """
    checks.within_1(share=share)

    def pull(tokens: Tokens) -> Tensor:
        student, mask_BT = tokens.scores["student"], tokens.policy_BT
        count = tokenwise.number(mask_BT, share)
        unsure_BT = tokenwise.largest(student.entropy_BT, mask_BT, count)
        far_BT = tokenwise.largest(student.divergence_BT, mask_BT, count)
        return (mask_BT & tokens.is_correct_B.unsqueeze(1) & ~(unsure_BT & far_BT)).double()

    both = (scorers.INITIAL, scorers.STUDENT._replace(against="initial"))
    return Method(routers.policy, both, advantages=tokenwise.no_advantages, pull=pull)
