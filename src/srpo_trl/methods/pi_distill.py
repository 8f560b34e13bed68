"""pi-Distill's student (arXiv:2602.04942): the policy and the teacher that is shown a solution are one model."""

from srpo_trl.methods import opsd
from srpo_trl.methods.record import Method


def pi_distill(beta: float = 0.01) -> Method:
    """As `opsd`, with its `beta`: theirs also samples from the teacher, and trains it on its own rewards.

    Source: secondary sources; beta is ours.
    """
    return opsd.opsd(beta)
