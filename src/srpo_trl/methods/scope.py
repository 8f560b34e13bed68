"""SCOPE (arXiv:2604.10688): likelihood of correct rollouts, distillation of wrong ones, by perplexity."""

from torch import Tensor

from srpo_trl.methods import checks, groups, routers, scorers, tokenwise
from srpo_trl.methods.record import Method, Scored, Tokens


def scope(temperature: float = 1.0, reverse_student_weight: bool = False) -> Method:
    """A = 0; correct: k = w ~ PPL_S^(1/`temperature`); wrong: k = w d, w ~ PPL_T^(-1/`temperature`).

    w has mean 1 over each kind in a group; with `reverse_student_weight` the student's exponent has the other sign.

    Source: the paper; its code trains wrong ones through the clip, its scripts have `reverse_student_weight`.
    """
    checks.above_0(temperature=temperature)
    sign = 1.0 if reverse_student_weight else -1.0  # of the mean log-probability, which is -log PPL

    def rows(scored: Scored) -> dict[str, Tensor]:
        logp = {name: means.logp_PG / temperature for name, means in scored.means.items()}
        correct_PG, wrong_PG = groups.outcomes(scored)
        student_PG = groups.softmax_within(sign * logp["student"], correct_PG)
        return {"weight": student_PG + groups.softmax_within(logp["teacher"], wrong_PG)}

    def pull(tokens: Tokens) -> Tensor:
        step_BT = tokens.gap_BT().masked_fill(tokens.is_correct_B.unsqueeze(1), 1.0)
        return tokens.rows["weight"].unsqueeze(1) * step_BT

    both = (scorers.EXTERNAL, scorers.STUDENT)
    return Method(routers.policy, both, rows=rows, advantages=tokenwise.no_advantages, pull=pull)
