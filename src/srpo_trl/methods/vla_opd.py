"""VLA-OPD (arXiv:2603.26666): the exact reverse KL to a teacher, on every rollout."""

from srpo_trl.methods import routers, scorers
from srpo_trl.methods.record import Method


def vla_opd() -> Method:
    """KL(pi || T) over the support of the options.

    Source: the abstract alone; theirs trains actions of robots.
    """
    teacher = scorers.EXTERNAL._replace(distils=True)
    return Method(routers.distilled, (teacher,), {"alpha": 1.0})
