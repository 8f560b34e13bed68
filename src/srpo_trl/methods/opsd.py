"""OPSD (arXiv:2602.04942): GRPO and the sampled reverse KL to the teacher that is shown a solution."""

from srpo_trl.methods import routers, schedules
from srpo_trl.methods.record import Method


def opsd(beta: float = 0.01) -> Method:
    """Gradient: GRPO's and `beta` (log pi_T - log pi) grad log pi where there is something to show.

    Their teacher is the student itself: teacher_model_kind='live'.

    Source: secondary sources. beta is ours.
    """
    divergence = {"estimator": "sampled", "alpha": 1.0}
    return Method(routers.both, divergence=divergence, strength=schedules.constant(beta))
