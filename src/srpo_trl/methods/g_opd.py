"""G-OPD (arXiv:2602.12125): distillation with the teacher's reward over a reference scaled; ExOPD above 1."""

from torch import Tensor

from srpo_trl.methods import routers, scorers
from srpo_trl.methods.record import Method, Tokens


def g_opd(scale: float = 1.25, teacher: str = "", reference: str = "") -> Method:
    """A = `scale` log T + (1 - `scale`) log ref - log pi; `scale` 1 is OPD for any reference.

    ref: the initial weights, or with `reference` one of several models of `teacher_model`, of which `teacher` is T.

    Source: the paper and the authors' code; the paper's equation 14 has the sign turned.
    """
    to = scorers.EXTERNAL._replace(model=teacher)
    other = scorers.INITIAL._replace(name="reference")
    if reference:
        other = scorers.EXTERNAL._replace(name="reference", model=reference)

    def advantages(tokens: Tokens) -> Tensor:
        return scale * tokens.gap_BT() + (1 - scale) * tokens.gap_BT("reference")

    return Method(routers.policy, (to, other), advantages=advantages)
