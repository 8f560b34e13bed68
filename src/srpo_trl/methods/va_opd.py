"""VA-OPD (arXiv:2605.21924): distil most where what the teacher is shown changes its mind about the token."""

from torch import Tensor

from srpo_trl.methods import checks, groups, routers, tokenwise
from srpo_trl.methods.record import OWN_CONTEXT, Method, Scored, Scorer, Tokens


def va_opd(share: float = 0.5, top: float = 0.2) -> Method:
    """Reverse KL; of a rollout's weight `share` is on its `top` tokens by gain, the rest on the others.

    Gain: log T - log T without what is shown. Rollouts weigh by the softmax of its z-score in the group.

    Source: the authors' code, by its README; there T sees an image or not, and only positive gains count.
    """
    checks.within_1(share=share, top=top)

    def rows(scored: Scored) -> dict[str, Tensor]:
        gain_PG, of_PG = (
            scored.means["teacher"].logp_PG - scored.means["plain"].logp_PG,
            scored.has_context_PG,
        )
        return {"weight": groups.softmax_within(groups.standardized(gain_PG, of_PG), of_PG)}

    def weights(tokens: Tokens) -> Tensor:
        gain_BT = tokens.scores["teacher"].logps_BT - tokens.scores["plain"].logps_BT
        return tokens.rows["weight"].unsqueeze(1) * tokenwise.two_means(gain_BT, tokens.mask_BT, top, share)

    plain = Scorer("plain", context=OWN_CONTEXT, distils=False)
    return Method(routers.distilled, (Scorer(has_logps=True), plain), {"alpha": 1.0}, rows, weights)
