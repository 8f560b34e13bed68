"""KDRL (arXiv:2506.02208): GRPO and the k2 estimate of the reverse KL to a teacher, on the same rollouts."""

from torch import Tensor

from srpo_trl.methods import routers, schedules, scorers
from srpo_trl.methods.record import Method, Tokens


def kdrl(
    beta: float = 5e-3,
    final_beta: float = 1e-3,
    decay_steps: int | None = 80,
    only_failed: bool = False,
    self_teacher: bool = False,
) -> Method:
    """k = b d, b from `beta` to `final_beta` over `decay_steps` optimizer steps; None: it stays `beta`.

    With `only_failed` 0 on correct rollouts. T: `teacher_model`; with `self_teacher` the self-teacher.

    Source: secondary sources, which give 2e-3 throughout, or 5e-3 falling by 5e-5 a step. `self_teacher` is ours.
    """
    coefficient = schedules.linear(beta, final_beta, steps=decay_steps)

    def pull(tokens: Tokens) -> Tensor:
        pull_BT = coefficient(tokens.step) * tokens.gap_BT()
        return pull_BT * ~tokens.is_correct_B.unsqueeze(1) if only_failed else pull_BT

    return Method(routers.policy, (scorers.teacher(is_self=self_teacher),), pull=pull)
