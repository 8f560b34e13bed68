"""DGPO (arXiv:2605.03327): the advantage is spread over the tokens that are unsure and have left the start."""

from torch import Tensor

from srpo_trl.methods import checks, routers, scorers, tokenwise
from srpo_trl.methods.record import Method, Tokens


def dgpo(temperature: float = 0.5, kappa: float = 1.0) -> Method:
    """A times T softmax(h H^`kappa` / `temperature`) over a rollout's T tokens, so that its mean there is A.

    h: Hellinger distance to the initial weights, H: entropy scaled to [0, 1] within the rollout, both of when the
    rollouts were scored.

    Source: secondary sources; the vocabulary of h, here the whole, and the scale of H are not known.
    """
    checks.above_0(temperature=temperature)

    def advantages(tokens: Tokens) -> Tensor:
        student, mask_BT = tokens.scores["student"], tokens.mask_BT
        entropy_BT = tokenwise.min_max(student.entropy_BT, mask_BT)
        moved_BT = student.divergence_BT * entropy_BT**kappa / temperature
        return tokens.advantage_B.unsqueeze(1) * tokenwise.softmax_of_row(moved_BT, mask_BT)

    student = scorers.STUDENT._replace(against="initial", distance="hellinger")
    return Method(routers.policy, (scorers.INITIAL, student), advantages=advantages)
