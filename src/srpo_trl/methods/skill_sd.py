"""Skill-SD (arXiv:2604.10674): GRPO, and distillation to the same model after a prompt that holds a skill."""

from srpo_trl.methods import routers, schedules
from srpo_trl.methods.record import Method, Scorer


def skill_sd(strength: float = 0.1, column: str = "skill") -> Method:
    """Gradient: GRPO's and `strength` rho d grad log pi; T reads the whole prompt that `column` holds.

    It resets the teacher to the student at each rollout batch: teacher_update_rate=1.

    Source: the paper, without its strength, which is ours, and its choice of skills.
    """
    divergence = {"estimator": "sampled", "alpha": 1.0}
    strong = schedules.constant(strength)
    return Method(routers.both, (Scorer(context=column),), divergence, strength=strong)
