"""SRPO without its token weights (arXiv:2604.02288): the ablation of its table 2."""

from srpo_trl.methods import routers
from srpo_trl.methods.record import Method


def srpo_unweighted() -> Method:
    """SRPO's routes, w = 1.

    Source: the paper.
    """
    return Method(routers.sample_routed)
