"""OPD, then RL (arXiv:2609.04108): the teacher's gap as the advantage first, the reward's after."""

from torch import Tensor

from srpo_trl.methods import opd as distillation
from srpo_trl.methods.record import Method, Tokens


def opd_then_rl(at_step: int = 60) -> Method:
    """A = d for the first `at_step` optimizer steps, then TRL's own.

    Source: secondary sources. A line of the paper's table 1.
    """
    method = distillation.opd()

    def advantages(tokens: Tokens) -> Tensor:
        if tokens.step < at_step:
            return tokens.gap_BT()
        return tokens.advantage_B.unsqueeze(1).expand(tokens.mask_BT.shape)

    return method._replace(advantages=advantages)
