"""Functions of whole groups that several methods share. Shapes: P prompts, G generations per prompt."""

import torch
from torch import Tensor

from srpo_trl.methods.record import Graded, Scored


def share(is_one_PG: Tensor, of_PG: Tensor) -> Tensor:
    """Return each group's share of ones among `of_PG`, (P, 1) float64; 0 where there is nothing to count.

    Args:
        is_one_PG, of_PG: bool.
    """
    number_P1 = of_PG.sum(1, keepdim=True).double()
    return (is_one_PG & of_PG).sum(1, keepdim=True) / number_P1.clamp(min=1)


def has_failed(graded: Graded) -> Tensor:
    """Return the groups in which something was scored and nothing is correct, (P, 1) bool."""
    return graded.is_scored_PG.any(1, keepdim=True) & ~graded.is_correct_PG.any(1, keepdim=True)


def softmax_within(value_PG: Tensor, of_PG: Tensor) -> Tensor:
    """Return each group's softmax over `of_PG` times their number, so that its mean there is 1; 0 elsewhere."""
    masked_PG = value_PG.masked_fill(~of_PG, -torch.inf)
    softmax_PG = (masked_PG - masked_PG.amax(1, keepdim=True)).exp().nan_to_num(0.0)
    total_P1 = softmax_PG.sum(1, keepdim=True)
    return softmax_PG / torch.where(total_P1 > 0, total_P1, 1.0) * of_PG.sum(1, keepdim=True)


def mean(value_PG: Tensor, of_PG: Tensor) -> Tensor:
    """Return each group's mean over `of_PG`, (P, 1) float64; 0 where there is nothing to average."""
    number_P1 = of_PG.sum(1, keepdim=True).double()
    return torch.where(of_PG, value_PG, 0.0).double().sum(1, keepdim=True) / number_P1.clamp(min=1)


def log_mean_exp(value_PG: Tensor, of_PG: Tensor) -> Tensor:
    """Return the log of each group's mean of exp(value) over `of_PG`, (P, 1); -inf where there is nothing."""
    number_P1 = of_PG.sum(1, keepdim=True).clamp(min=1)
    return value_PG.masked_fill(~of_PG, -torch.inf).logsumexp(1, keepdim=True) - number_P1.log()


def centered(value_PG: Tensor, of_PG: Tensor) -> Tensor:
    """Return values less their group's mean over `of_PG`; 0 elsewhere."""
    return torch.where(of_PG, value_PG - mean(value_PG, of_PG), 0.0)


def standardized(value_PG: Tensor, of_PG: Tensor) -> Tensor:
    """Return values less their group's mean over `of_PG`, over its standard deviation there (1e-6 at the least)."""
    centered_PG = centered(value_PG, of_PG)
    return centered_PG / mean(centered_PG**2, of_PG).sqrt().clamp(min=1e-6)


def outcomes(scored: Scored) -> tuple[Tensor, Tensor]:
    """Return which rollouts that scorers have scored are correct, and which are wrong, (P, G) bool each."""
    is_wrong_PG = scored.is_scored_PG & ~scored.is_correct_PG
    return scored.is_correct_PG & scored.is_rescored_PG, is_wrong_PG & scored.is_rescored_PG


def equal_shares(scored: Scored) -> Tensor:
    """Return what gives every rollout the same say, however long: mean length over length, (P, G) float64.

    The mean is over the rollouts with a score: the others do not train.
    """
    length_PG = scored.length_PG.double()
    return length_PG[scored.is_scored_PG].mean().nan_to_num(0.0) / length_PG.clamp(min=1)


def shares(scored: Scored) -> dict[str, Tensor]:
    """Return `equal_shares` as a method's rows."""
    return {"share": equal_shares(scored)}


def conflicts(ids_PGT: Tensor, sign_PG: Tensor) -> Tensor:
    """Return tokens that completions of both signs begin with, or end with, (P, G, T) bool.

    From the start, or from the end, on: each is written at its place by a completion with a positive and by one with a
    negative sign, and so is each before it (GTPO, arXiv:2508.03772).

    Args:
        ids_PGT: -1 where there is no token, all of these after the last one or within.
        sign_PG: of the advantages.
    """
    place_T = torch.arange(ids_PGT.shape[2], device=ids_PGT.device)
    length_PG1 = torch.where(ids_PGT >= 0, place_T + 1, 0).amax(2, keepdim=True)
    from_end_PGT = (length_PG1 - 1 - place_T) % place_T.numel()  # each row's own places, backwards
    backwards_PGT = ids_PGT.gather(2, from_end_PGT).masked_fill(place_T >= length_PG1, -1)
    suffix_PGT = _shared_prefix(backwards_PGT, sign_PG).gather(2, from_end_PGT) & (ids_PGT >= 0)
    return _shared_prefix(ids_PGT, sign_PG) | suffix_PGT


def _shared_prefix(ids_PGT: Tensor, sign_PG: Tensor) -> Tensor:
    same_PGGT = (ids_PGT.unsqueeze(2) == ids_PGT.unsqueeze(1)) & (ids_PGT >= 0).unsqueeze(2)
    is_by = [(same_PGGT & (sign_PG == sign)[:, None, :, None]).any(2) for sign in (1, -1)]
    return (is_by[0] & is_by[1]).cumprod(-1).bool()
