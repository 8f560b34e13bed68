"""Decoupling (arXiv:2605.16826): the mix of the two KLs to the teacher, of every rollout."""

from srpo_trl.methods import checks, routers
from srpo_trl.methods.record import Method


def decoupling(share: float = 0.5) -> Method:
    """`share` KL(student || teacher) + (1 - `share`) KL(teacher || student) where there is something to show.

    Source: secondary sources. The paper's share is not known. Its prefixes by the teacher and its growing length of
    rollouts are left out: every rollout is the student's own.
    """
    checks.within_1(share=share)
    return Method(route=routers.distilled, divergence={"alpha": share, "is_linear": True})
