"""DMPO (arXiv:2605.19461): GRPO, and the policy's distribution over a group matched to the rewards'."""

from torch import Tensor

from srpo_trl.methods import checks, routers, scorers
from srpo_trl.methods.record import Method, Scored


def dmpo(strength: float = 2.0, temperature: float = 1 / 15) -> Method:
    """k: of the loss `strength` mean_i (p_i - q_i)^2, p = softmax(score / `temperature`), q = softmax(mean log pi).

    q is that of when the rollouts were scored. Groups in which a score is missing have none.

    Source: secondary sources.
    """
    checks.above_0(temperature=temperature)

    def rows(scored: Scored) -> dict[str, Tensor]:
        is_whole_P1 = (scored.is_scored_PG & scored.is_rescored_PG).all(1, keepdim=True)
        p_PG = (scored.score_PG.double().nan_to_num(0.0, 0.0, 0.0) / temperature).softmax(1)
        q_PG = scored.means["student"].logp_PG.softmax(1)
        e_PG = p_PG - q_PG
        step_PG = 2 * strength * q_PG * (e_PG - (q_PG * e_PG).sum(1, keepdim=True)) / q_PG.shape[1]
        trained_PG = scored.length_PG * scored.is_scored_PG
        num_tokens = trained_PG.sum() / len(q_PG)  # the loss is a mean over groups, not over tokens
        return {"step": is_whole_P1 * step_PG * num_tokens / scored.length_PG.clamp(min=1)}

    return Method(
        routers.policy, (scorers.STUDENT,), rows=rows, pull=lambda t: t.rows["step"].unsqueeze(1) * t.mask_BT
    )
