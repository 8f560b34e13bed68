"""PACED (arXiv:2603.11178): most is distilled where the student passes about half of the time."""

from torch import Tensor

from srpo_trl.methods import groups, routers, schedules
from srpo_trl.methods.record import Method, Scored


def paced(
    powers: tuple[float, float] = (1.0, 1.0),
    reverse_from_step: int | None = None,
    alphas: tuple[float, float] = (0.0, 1.0),
) -> Method:
    """w = p^a (1 - p)^b as it is, with the group's pass rate p and `powers` (a, b).

    D is that of `alphas[0]` (0: forward KL), from `reverse_from_step` on that of `alphas[1]` (1: reverse KL).

    Source: secondary sources. The paper's normaliser is not known.
    """

    def rows(scored: Scored) -> dict[str, Tensor]:
        pass_rate_P1 = groups.share(scored.is_correct_PG, scored.is_scored_PG)
        weight_P1 = pass_rate_P1 ** powers[0] * (1 - pass_rate_P1) ** powers[1]
        return {"weight": weight_P1.expand_as(scored.route_PG)}

    method = Method(routers.distilled, divergence={"alpha": schedules.switch(*alphas, reverse_from_step)})
    return method._replace(rows=rows, weights=lambda t: t.rows["weight"].unsqueeze(1), mean_one=False)
