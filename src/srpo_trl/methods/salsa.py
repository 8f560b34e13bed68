"""SALSA (id unknown): GRPO with a KL penalty to an averaged model, given as `teacher_model`."""

from srpo_trl.methods import routers, scorers, tokenwise
from srpo_trl.methods.record import Method


def salsa(beta: float = 0.04) -> Method:
    """k = `beta` (T / pi - 1): TRL's penalty `beta`, to another model than the initial one.

    Source: the abstract alone. Average two fine-tuned models yourself and give the result as `teacher_model`.
    """
    return Method(routers.policy, (scorers.EXTERNAL,), pull=lambda t: beta * tokenwise.k3_pull(t, "teacher"))
