"""SELFCI (arXiv:2605.20258): distil to the same model after two prompts at once, the product of both."""

from torch import Tensor

from srpo_trl.methods import checks, routers
from srpo_trl.methods.record import Method, Scorer, Tokens


def selfci(
    columns: tuple[str, str] = ("utility", "privacy"), shares: tuple[float, float] = (1.0, 1.0)
) -> Method:
    """sum_b w_b KL(pi || T_b), w = `shares` / max(sum, 1); each T_b reads the whole prompt that one of `columns` holds.

    Source: the authors' code; theirs can set the shares by a judge, and mix teacher and student logits.
    """
    checks.above_0(**{f"share {n}": share for n, share in enumerate(shares)})
    total = max(sum(shares), 1.0)

    def weights(tokens: Tokens) -> tuple[Tensor, ...]:
        return tuple(share / total * tokens.mask_BT for share in shares)

    teachers = tuple(Scorer(f"teacher{n}" if n else "teacher", context=c) for n, c in enumerate(columns))
    return Method(routers.distilled, teachers, {"alpha": 1.0}, weights=weights, mean_one=False)
