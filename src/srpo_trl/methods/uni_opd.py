"""Uni-OPD (arXiv:2605.03677): the teacher's gaps shifted until correct rollouts stand above wrong ones."""

from torch import Tensor

from srpo_trl.methods import groups, routers, scorers
from srpo_trl.methods.record import Method, Scored, Tokens


def uni_opd(margin: float = 0.4, largest_gap: float | None = None) -> Method:
    """A = d + s / 2 on correct, d - s / 2 on wrong rollouts of mixed groups, s = max(0, `margin` - what there is).

    What there is: the mean gap of correct less that of wrong ones. A = 0 where abs(d) >= `largest_gap`.

    Source: the authors' code; theirs balances prompts and outcomes besides.
    """

    def rows(scored: Scored) -> dict[str, Tensor]:
        gap_PG = scored.means["teacher"].logp_PG - scored.means["student"].logp_PG
        correct_PG, wrong_PG = groups.outcomes(scored)
        is_mixed_P1 = correct_PG.any(1, keepdim=True) & wrong_PG.any(1, keepdim=True)
        there_P1 = groups.mean(gap_PG, correct_PG) - groups.mean(gap_PG, wrong_PG)
        return {"shift": (margin - there_P1).clamp(min=0) * is_mixed_P1 / 2 * (2 * correct_PG.double() - 1)}

    def advantages(tokens: Tokens) -> Tensor:
        gap_BT = tokens.gap_BT()
        shifted_BT = gap_BT + tokens.rows["shift"].unsqueeze(1)
        return shifted_BT if largest_gap is None else shifted_BT.masked_fill(gap_BT.abs() >= largest_gap, 0.0)

    return Method(routers.policy, (scorers.EXTERNAL, scorers.STUDENT), rows=rows, advantages=advantages)
