"""TCOD (arXiv:2604.24005): on-policy distillation of a conversation's first turns, of more and more of them."""

from torch import Tensor

from srpo_trl.methods import opd, tokenwise
from srpo_trl.methods.record import Method, Tokens


def tcod(interval: int = 5, self_teacher: bool = False) -> Method:
    """A = d in the first 1 + step // `interval` turns of the model, 0 in later ones; `self_teacher` as `opd` has it.

    Source: the authors' code, which ends a rollout there; here later turns are sampled and count in N.
    """

    def advantages(tokens: Tokens) -> Tensor:
        is_late_BT = tokenwise.turns(tokens.mask_BT) > 1 + tokens.step // interval
        return tokens.gap_BT().masked_fill(is_late_BT, 0.0)

    return opd.opd(self_teacher)._replace(advantages=advantages)
