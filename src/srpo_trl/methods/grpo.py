"""GRPO (arXiv:2402.03300), as TRL has it."""

from srpo_trl.methods import routers
from srpo_trl.methods.record import Method


def grpo() -> Method:
    """The policy loss on every rollout: the trainer is GRPOTrainer itself."""
    return Method(route=routers.policy, scorers=())
