"""DPH-RL (arXiv:2509.07430): GRPO, and a rehearsal of what the initial weights answered to mastered prompts."""

from torch import Tensor

from srpo_trl.methods import routers, tokenwise
from srpo_trl.methods.record import OWN_CONTEXT, Method, Scorer, Tokens


def dph_rl(eta: float = 0.01, jensen_shannon: bool = False) -> Method:
    """Stored rollouts: A = 0, k = `eta` (1 - u), u = pi / pi_0, or with `jensen_shannon` -`eta` u log(2 u / (1 + u)).

    Others: TRL's own. Give `offline_rollouts(rows, otherwise)` as rollout_func, rows by the initial weights to the
    prompts that these have mastered, with their log-probabilities by `with_teacher_logps`.

    Source: the authors' code, secondary sources.
    """

    def pull(tokens: Tokens) -> Tensor:
        u_BT = (-tokens.gap_BT("initial")).exp()
        if jensen_shannon:
            return -eta * u_BT * (2 * u_BT / (1 + u_BT)).log()
        return eta * (1 - u_BT)

    stored = Scorer("initial", weights="cached", context=OWN_CONTEXT, distils=False)
    return Method(routers.policy, (stored,), advantages=tokenwise.no_advantages, pull=pull)
