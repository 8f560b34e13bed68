"""Methods of the study that the package does not ship: each asks one question of SRPO."""

import torch
from torch import Tensor

from benchmarks.learning.add4 import chooses_form
from srpo_trl.methods import schedules, srpo, srpo_both, tokenwise
from srpo_trl.methods.record import Method, Route, Tokens


def failed_in_both(
    entropy_weight_beta: float,
    policy: float = 1.0,
    distilled: float = 1.0,
    decay_steps: int | None = None,
    advantage: float | None = None,
) -> Method:
    """`srpo_both` in other shares: does SRPO need its negative advantages for a higher end?

    A = `policy` A where both losses train, or `advantage` where that is given, and the divergence times `distilled`,
    which falls to 0 over `decay_steps` (None: it stays).
    """

    def advantages(tokens: Tokens) -> Tensor:
        of_failed_B = policy * tokens.advantage_B if advantage is None else advantage
        return torch.where(tokens.route_B == Route.BOTH, of_failed_B, tokens.advantage_B)

    strength = schedules.linear(distilled, 0.0, steps=decay_steps)
    return srpo_both.srpo_both(entropy_weight_beta)._replace(strength=strength, advantages=advantages)


def with_entropy_bonus(entropy_weight_beta: float, bonus: float = 0.02) -> Method:
    """SRPO with `bonus` times the entropy's gradient on the policy loss's tokens: is it the entropy that it lacks?

    k = bonus (-log pi - H), an unbiased estimate, as the expectation of -log pi is H.
    """

    def pull(tokens: Tokens) -> Tensor:
        return -bonus * (tokens.student.logps_BT + tokens.student.entropy_BT) * tokens.policy_BT

    return srpo.srpo(entropy_weight_beta)._replace(pull=pull)


def without_forms(entropy_weight_beta: float) -> Method:
    """SRPO without divergence where add4_forms chooses a column's form: does the pull to a form cost SRPO its end?

    That is the first token of each column.
    """

    def weights(tokens: Tokens) -> Tensor:
        place_T = torch.arange(tokens.mask_BT.shape[1], device=tokens.mask_BT.device)
        weights_BT: Tensor = tokenwise.entropy_weights(entropy_weight_beta)(tokens)
        return weights_BT.masked_fill(chooses_form(place_T), 0.0)

    return srpo.srpo(entropy_weight_beta)._replace(weights=weights)
