"""TRACE (arXiv:2605.10194): key spans of correct rollouts are distilled at first, everything else is GRPO's."""

from torch import Tensor, where

from srpo_trl.methods import groups, routers, schedules
from srpo_trl.methods.record import Method, Scorer, Tokens


def trace(
    weight: float = 0.5, hold: int = 10, decay: int = 30, clip: float = 0.05, column: str = "label"
) -> Method:
    """On spans A (1 - strength / `weight`), and on those of correct rollouts forward KL clipped at `clip`, w = 1 / T.

    strength: `weight` for `hold` steps, then to 0 over `decay`. Spans: a reward function's log_extra("spans", ...). The
    teacher reads the prompt in `column`, and is reset: teacher_update_rate=1, teacher_update_interval=10.

    Source: the paper, its default; without its reverse KL on spans of errors.
    """
    left = schedules.linear(1.0, 0.0, hold=hold, steps=decay)

    def weights(tokens: Tokens) -> Tensor:
        return (tokens.rows["share"] * tokens.is_correct_B).unsqueeze(1) * tokens.rows["spans"]

    def advantages(tokens: Tokens) -> Tensor:
        factor_BT = where(tokens.rows["spans"].bool(), 1 - left(tokens.step), 1.0)
        return tokens.advantage_B.unsqueeze(1) * factor_BT

    clipped = {"alpha": 0.0, "pointwise_clip": clip}
    method = Method(routers.both, (Scorer(context=column),), clipped, groups.shares, weights, mean_one=False)
    return method._replace(strength=lambda step: weight * left(step), advantages=advantages, spans=True)
