"""Rows of token ids of different lengths as one padded tensor, with their attention mask.

Legend: R rows, L length of the longest.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


def right_pad(sequences: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return token ids and attention mask, (R, L) int64 each, padded on the right with 0."""
    ids = pad_sequence([torch.tensor(s, dtype=torch.int64) for s in sequences], batch_first=True)
    mask = pad_sequence([torch.ones(len(s), dtype=torch.int64) for s in sequences], batch_first=True)
    return ids.to(device), mask.to(device)


def left_pad(sequences: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return token ids and attention mask, (R, L) int64 each, padded on the left with 0."""
    ids, mask = right_pad([sequence[::-1] for sequence in sequences], device)
    return ids.flip(1), mask.flip(1)
