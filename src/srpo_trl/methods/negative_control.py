"""A control: GRPO with a constant negative advantage on failed rollouts, to compare any use of them with."""

import torch

from srpo_trl.methods import routers
from srpo_trl.methods.record import Method


def negative_control(advantage: float = -0.1) -> Method:
    """The policy loss everywhere; TRL's advantage on correct rollouts, a constant one on failed ones.

    What distillation of failed rollouts gains beyond this is not gained by pushing them away alone.
    """
    return Method(
        route=routers.policy,
        scorers=(),
        advantages=lambda t: torch.where(t.is_correct_B, t.advantage_B, advantage),
    )
