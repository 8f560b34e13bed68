"""Token-wise functions that several methods share, (B, T) each."""

from collections.abc import Callable

import torch
from torch import Tensor

from srpo_trl.loss.token_weights import raw_entropy_weights
from srpo_trl.methods.record import Tokens


def entropy_weights(beta: float) -> Callable[[Tokens], Tensor]:
    """Return the weights w~ = exp(-beta H) of the teacher's entropy H (SRPO, section 3.2)."""
    return lambda tokens: raw_entropy_weights(tokens.scores["teacher"].entropy_BT, beta)


def log_ratio(tokens: Tokens) -> Tensor:
    """Return log pi - log pi_old; 0 on-policy."""
    logps_BT = tokens.student.logps_BT
    return torch.zeros_like(logps_BT) if tokens.old_logps_BT is None else logps_BT - tokens.old_logps_BT


def covariance(tokens: Tokens) -> Tensor:
    """Return (A - mean A)(log pi - mean log pi), the means over the micro-batch's policy tokens; 0 at all others.

    Source: arXiv:2505.22617, equation 9; their code has the same means.
    """
    mask_BT, advantage_BT = tokens.policy_BT, tokens.advantage_B.unsqueeze(1)
    return _centered(advantage_BT.expand(mask_BT.shape), mask_BT) * _centered(
        tokens.student.logps_BT, mask_BT
    )


def _centered(value_BT: Tensor, mask_BT: Tensor) -> Tensor:
    mean = (value_BT * mask_BT).sum() / mask_BT.sum().clamp(min=1)
    return (value_BT - mean) * mask_BT


def number(mask_BT: Tensor, share: float) -> int:
    """Return how many of the masked tokens a share is, rounded down."""
    return int(share * int(mask_BT.sum()))


def largest(value_BT: Tensor, mask_BT: Tensor, count: int) -> Tensor:
    """Return the `count` masked tokens with the largest values, bool; ties to the first."""
    order_N = value_BT.masked_fill(~mask_BT, -torch.inf).flatten().sort(descending=True, stable=True).indices
    chosen_N = torch.zeros(mask_BT.numel(), dtype=torch.bool, device=mask_BT.device)
    chosen_N[order_N[:count]] = True
    return chosen_N.view_as(mask_BT) & mask_BT


def drawn(tokens: Tokens, mask_BT: Tensor, count: int) -> Tensor:
    """Return `count` of the masked tokens, drawn without replacement, bool; all where there are fewer.

    The draw is that of the micro-batch's first rollout, and so another one on each process and in each step.
    """
    generator = torch.Generator().manual_seed(int(tokens.rollout_B[0]) + 2**32 * tokens.step)
    noise_BT = torch.rand(mask_BT.shape, generator=generator).to(mask_BT.device)
    return largest(noise_BT, mask_BT, count)
