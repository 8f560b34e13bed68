"""CORD (arXiv:2601.16547): reverse KL to the shown teacher, most where it is large and early."""

import torch
from torch import Tensor

from srpo_trl.methods import checks, routers, scorers
from srpo_trl.methods.record import Method, Scorer, Tokens


def cord(power: float = 1.0, decay: float = 0.99) -> Method:
    """w = KL(pi || T)^`power` `decay`^t at the rollout's t-th token, mean 1, the KL of when the rollouts were scored.

    Source: secondary sources, without the two weights, which are ours; theirs transfers text to audio.
    """
    checks.above_0(decay=decay)

    def weights(tokens: Tokens) -> Tensor:
        place_T = torch.arange(tokens.mask_BT.shape[1], device=tokens.mask_BT.device)
        return tokens.scores["student"].divergence_BT.clamp(min=0).double() ** power * decay**place_T

    student = scorers.STUDENT._replace(against="teacher")
    return Method(routers.distilled, (Scorer(), student), {"alpha": 1.0}, weights=weights)
