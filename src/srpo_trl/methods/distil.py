"""DistIL (arXiv:2606.05152): the forward KL to a teacher that is shown what went wrong, token by token."""

from srpo_trl.methods import routers
from srpo_trl.methods.record import Method


def distil() -> Method:
    """Forward KL on every rollout with something to show, all tokens alike; teacher_context=['feedback'] is its own.

    Source: the abstract alone, secondary sources. The token form, without credit for later disagreement.
    """
    return Method(route=routers.distilled, divergence={"alpha": 0.0})
