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


def no_advantages(tokens: Tokens) -> Tensor:
    """Return advantages of 0, (B,): TRL's policy loss has no gradient, and a pull alone trains."""
    return torch.zeros_like(tokens.advantage_B)


def k3_pull(tokens: Tokens, scorer: str) -> Tensor:
    """Return the pull of TRL's penalty k3 = r - log r - 1, r = reference / pi, for beta 1: r - 1."""
    return tokens.gap_BT(scorer).expm1()


def min_max(value_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Return values scaled to [0, 1] within each row's masked tokens; 0 where they are all alike, and elsewhere."""
    low_B1 = value_BT.masked_fill(~mask_BT, torch.inf).amin(1, keepdim=True)
    high_B1 = value_BT.masked_fill(~mask_BT, -torch.inf).amax(1, keepdim=True)
    width_B1 = (high_B1 - low_B1).nan_to_num(posinf=0.0, neginf=0.0)
    scaled_BT = (value_BT - low_B1) / torch.where(width_B1 > 0, width_B1, 1.0)
    return torch.where(mask_BT & (width_B1 > 0), scaled_BT, 0.0)


def top_frac(value_BT: Tensor, mask_BT: Tensor, share: float) -> Tensor:
    """Return the `share` of each row's masked tokens with the largest values, rounded down, bool; ties to the first."""
    order_BT = value_BT.masked_fill(~mask_BT, -torch.inf).argsort(dim=1, descending=True, stable=True)
    rank_BT = torch.empty_like(order_BT).scatter_(
        1, order_BT, torch.arange(order_BT.shape[1], device=order_BT.device).expand_as(order_BT)
    )
    return mask_BT & (rank_BT < (share * mask_BT.sum(1, keepdim=True)).floor())


def two_means(value_BT: Tensor, mask_BT: Tensor, top: float, share: float) -> Tensor:
    """Return weights of each row's tokens whose sum is that of its tokens' number: `share` of it on the `top` ones.

    They make the weighted mean over a row `share` times the mean over its top tokens and 1 - share times that of the
    others; a row without any top token has the others alone.
    """
    top_BT = top_frac(value_BT, mask_BT, top)
    number_B1, top_B1 = mask_BT.sum(1, keepdim=True).double(), top_BT.sum(1, keepdim=True)
    share_B1 = torch.where(top_B1 > 0, share, 0.0)
    of_top_B1 = share_B1 * number_B1 / top_B1.clamp(min=1)
    of_rest_B1 = (1 - share_B1) * number_B1 / (number_B1 - top_B1).clamp(min=1)
    return torch.where(top_BT, of_top_B1, of_rest_B1) * mask_BT


def of_row(name: str) -> Callable[[Tokens], Tensor]:
    """Return one of the method's rows as the advantages, (B,)."""
    return lambda tokens: tokens.rows[name]


def times_row(name: str) -> Callable[[Tokens], Tensor]:
    """Return TRL's advantages times one of the method's rows, (B,)."""
    return lambda tokens: tokens.advantage_B * tokens.rows[name]


def rest_of_row(value_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Return the sum of each row's masked values after each position, (B, T)."""
    masked_BT = torch.where(mask_BT, value_BT, 0.0)
    return masked_BT.flip(1).cumsum(1).flip(1) - masked_BT


def softmax_of_row(value_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Return each row's softmax over its masked tokens times their number, so that its mean there is 1; 0 elsewhere."""
    masked_BT = value_BT.masked_fill(~mask_BT, -torch.inf)
    return masked_BT.softmax(1).nan_to_num(0.0) * mask_BT.sum(1, keepdim=True)


def turns(mask_BT: Tensor) -> Tensor:
    """Return the turn of each masked token, (B, T) int64 from 1: tokens that the model did not write stand between."""
    starts_BT = mask_BT & ~torch.nn.functional.pad(mask_BT, (1, 0))[:, :-1]
    return starts_BT.cumsum(1)
