"""A control: GRPO with a constant negative advantage on failed rollouts, to compare any use of them with."""

import torch

from srpo_trl.methods import routers
from srpo_trl.methods.record import Method


def negative_control(advantage: float = -0.1) -> Method:
    """A = `advantage` on failed rollouts, TRL's on correct ones.

    What distillation of failed rollouts gains beyond this is not gained by pushing them away alone.

    Source: ours.
    """
    return Method(
        route=routers.policy,
        scorers=(),
        advantages=lambda t: torch.where(t.is_correct_B, t.advantage_B, advantage),
    )
