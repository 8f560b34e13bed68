"""f-DPG (id unknown): the policy matched to an explicit target by any f-divergence."""

from torch import Tensor

from srpo_trl.methods import checks, groups, routers, scorers, tokenwise
from srpo_trl.methods.record import Method, Scored

_SLOPES = {  # f'(t), t = pi / p; D_f(pi || p) = E_p f(t)
    "reverse": lambda log_t: log_t + 1.0,
    "forward": lambda log_t: -(-log_t).exp(),
    "jensen_shannon": lambda log_t: 0.6931471805599453 - (-log_t).exp().log1p(),
}


def f_dpg(temperature: float = 1.0, divergence: str = "reverse") -> Method:
    """A = -f'(pi / p) of the sequence less the group's mean, p ~ pi_0 exp(score / `temperature`), f of `divergence`.

    Source: the abstract alone; the target is ours, normalized by the group.
    """
    checks.above_0(temperature=temperature)
    slope = _SLOPES[divergence]

    def rows(scored: Scored) -> dict[str, Tensor]:
        pi_PG, initial_PG = (scored.means[n].logp_PG * scored.length_PG for n in ("student", "initial"))
        ratio_PG = initial_PG - pi_PG + scored.score_PG.double().nan_to_num(0.0, 0.0, 0.0) / temperature
        reward_PG = -slope(groups.log_mean_exp(ratio_PG, scored.is_rescored_PG) - ratio_PG)
        return {"A": groups.centered(reward_PG, scored.is_rescored_PG)}

    both = (scorers.STUDENT, scorers.INITIAL)
    return Method(routers.policy, both, {}, rows, advantages=tokenwise.of_row("A"))
