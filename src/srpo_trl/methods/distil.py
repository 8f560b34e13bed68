"""DistIL (arXiv:2606.05152): the forward KL to a teacher that is shown what went wrong, with credit for later."""

from torch import Tensor

from srpo_trl.methods import routers, tokenwise
from srpo_trl.methods.record import Method, Tokens


def distil(credit: float = 0.0) -> Method:
    """Forward KL on every rollout with something to show, all tokens alike; teacher_context=['feedback'] is its own.

    `credit`: A = -credit times the sum of later tokens' cross-entropies to the teacher, besides; 0: the token form.

    Source: the abstract alone, secondary sources; the credit is our reading of it, over the support of the options.
    """
    method = Method(routers.distilled, divergence={"alpha": 0.0})

    def advantages(tokens: Tokens) -> Tensor:
        cross_entropy_BT = tokens.student.divergence_BT + tokens.scores["teacher"].entropy_BT
        return -credit * tokenwise.rest_of_row(cross_entropy_BT, tokens.mask_BT)

    return method._replace(route=routers.both_with_context, advantages=advantages) if credit else method
