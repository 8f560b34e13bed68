"""A control: GRPO with a KL penalty to the moving average of its own weights, which is shown nothing."""

from srpo_trl.methods import routers, tokenwise
from srpo_trl.methods.record import OWN_CONTEXT, Method, Scorer


def ema_anchor(beta: float = 0.04) -> Method:
    """k = `beta` (T / pi - 1), T the self-teacher after the student's own prompt.

    What distillation gains beyond this is not gained by staying near an average.

    Source: ours.
    """
    teacher = Scorer(context=OWN_CONTEXT, distils=False)
    return Method(routers.policy, (teacher,), pull=lambda t: beta * tokenwise.k3_pull(t, "teacher"))
