"""ERPD (arXiv:2605.25582): what reinforcement changed in one run, distilled into a new one."""

from torch import Tensor

from srpo_trl.methods import routers, scorers
from srpo_trl.methods.record import Method, Tokens


def erpd(largest: float = 5.0) -> Method:
    """A = clip(log T - log pi_0, -`largest`, `largest`), T the model of the first stage, given as `teacher_model`.

    Source: the abstract alone; the bound is ours. This is the second stage; the first is a run of its own.
    """

    def advantages(tokens: Tokens) -> Tensor:
        gain_BT = tokens.scores["teacher"].logps_BT - tokens.scores["initial"].logps_BT
        return gain_BT.clamp(-largest, largest)

    return Method(routers.policy, (scorers.EXTERNAL, scorers.INITIAL), advantages=advantages)
