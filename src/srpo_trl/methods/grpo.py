"""GRPO (arXiv:2402.03300): the policy loss with advantages within the group, as TRL has it."""

from srpo_trl.methods import routers
from srpo_trl.methods.record import Method


def grpo() -> Method:
    """The policy loss on every rollout: the trainer is GRPOTrainer itself.

    Source: the paper. Loss, clip and advantages are TRL's options.
    """
    return Method(route=routers.policy, scorers=())
