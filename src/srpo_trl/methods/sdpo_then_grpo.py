"""SDPO, then GRPO (ours): self-distillation for its fast start, the reward for its end."""

from srpo_trl.methods import routers
from srpo_trl.methods.record import Method


def sdpo_then_grpo(at_step: int = 50) -> Method:
    """SDPO for the first `at_step` optimizer steps, then the policy loss alone.

    Source: secondary sources, which change from distillation to the reward at step 60. The step is ours.
    """
    return Method(route=routers.by_step(routers.distilled, routers.policy, at_step))
