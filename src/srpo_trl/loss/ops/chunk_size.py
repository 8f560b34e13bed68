"""How much temporary memory the operators take where the caller sets no bound.

The head's float32 gradient, (V, D), is read and written once a chunk: small chunks cost time, large ones memory.
"""

import psutil
import torch
from torch import Tensor

from srpo_trl.loss.ops.interface import DistillationSpec, Head

_MOST_TOKENS, _LEAST_TOKENS = 4096, 128
_FREE_SHARE = 4  # at most one part in so many of what is free
MARGIN = 0.1  # of a device's memory that is left to its context, libraries and fragmentation
_BLOCK_BYTES = 32 * 2**20  # beside the logits: temporaries of a block of tokens


def default_chunk_bytes(hidden_ND: Tensor, head: Head, dtype: torch.dtype, spec: DistillationSpec) -> int:
    """The bound of `distillation_loss` for these inputs, by what is free on their device beside the head's gradient.

    Args:
        hidden_ND: the student's, for its device.
        head: the student's, for its size.
        dtype: of the computation.
        spec: what is computed.
    """
    weight_VD, vocab_size = head.weight_VD, head.weight_VD.shape[0]
    gradient_bytes = weight_VD.numel() * torch.float32.itemsize * weight_VD.requires_grad
    free_bytes = _free_bytes(hidden_ND.device) - gradient_bytes
    return chunk_bound(free_bytes, vocab_size * dtype.itemsize, vocab_size, spec)


def chunk_bound(free_bytes: int, row_bytes: int, vocab_size: int, spec: DistillationSpec) -> int:
    """Room for the logits of 4,096 tokens, or of half as many while that is over a quarter of what is free.

    Halving keeps the chunks, and with them the bits of all sums, the same while what is free moves a little.
    """
    token_bytes = row_bytes * (2 if spec.needs_whole_teacher(vocab_size) else 1)
    num_tokens = _MOST_TOKENS
    while num_tokens > _LEAST_TOKENS and num_tokens * token_bytes > free_bytes // _FREE_SHARE:
        num_tokens //= 2
    return num_tokens * token_bytes + num_tokens * token_bytes // 8 + _BLOCK_BYTES


def statistics_chunk_bytes(on_gpu: bool) -> int:
    """The bound of `token_statistics`, which adds to no gradient and gains nothing from large chunks."""
    return (512 if on_gpu else 256) * 2**20


def _free_bytes(device: torch.device) -> int:
    """What could still be allocated, the allocator's own reserve included and the margin left out."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    elif device.type == "mps":
        total = torch.mps.recommended_max_memory()
        free = total - torch.mps.driver_allocated_memory()
    else:
        memory = psutil.virtual_memory()
        free, total = memory.available, memory.total
    return int(free - MARGIN * total)
