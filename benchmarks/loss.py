"""Loss and gradients: seconds, ratio over the floor of three or four matrix products, and peak memory over N.

python -m benchmarks.loss                  on a GPU: Qwen3's vocabulary in bfloat16, N up to 65,536
python -m benchmarks.loss --device cpu     small sizes in float32
"""

import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks.common import run
from benchmarks.loss_table import loss_table
from benchmarks.measure import extra_bytes
from benchmarks.peers import (
    ANEW,
    FULL,
    QWEN3_VOCABULARY,
    TOPK,
    BenchmarkCase,
    Contender,
    Losses,
    Size,
    contenders,
)
from benchmarks.tables import Table, gigabytes


def sdpo_losses(case: BenchmarkCase, helper: Any, options: dict[str, Any]) -> Losses:
    """TRL's SDPO: both models' whole logits in the weights' dtype, raised to float32 as a model's forward does."""
    student_NV = F.linear(case.student_hidden_ND, case.student_weight_VD).float()
    with torch.no_grad():
        teacher_NV = F.linear(case.teacher_hidden_ND, case.teacher_weight_VD).float()
    divergence_N = helper(student_NV, teacher_NV, distillation_alpha=0.5, **options)
    return Losses((case.coefficient_N * divergence_N).sum(), divergence_N.detach())


def all_contenders(device: torch.device) -> list[Contender]:
    """Those of `srpo-trl bench`, and TRL's SDPO."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental.sdpo import loss_utils

    topk_options = {"distillation_topk": 100, "distillation_add_tail": True}
    topk = partial(sdpo_losses, helper=loss_utils.compute_topk_self_distillation_loss, options=topk_options)
    full = partial(sdpo_losses, helper=loss_utils.compute_full_logit_self_distillation_loss, options={})
    return [
        *contenders(device),
        Contender("TRL SDPO", TOPK, topk, has_accumulator=False),
        Contender("TRL SDPO", FULL, full, has_accumulator=False),
    ]


def tables(device: torch.device, quick: bool) -> Iterator[Table]:
    """One table of times for each size, then memory over N."""
    found = all_contenders(device)
    for num_tokens, hidden_size in _time_sizes(device, quick):
        size = _size(num_tokens, hidden_size, device, quick)
        repeats = 1 if quick else 7 if device.type == "cuda" else 3
        yield loss_table(found, size, device, repeats=repeats, memory=device.type == "cuda")
    yield memory_curve(found, device, quick)


def memory_curve(found: Sequence[Contender], device: torch.device, quick: bool) -> Table:
    """Peak memory beyond what every contender must hold, as N grows."""
    dense = [c for c in found if c.support == TOPK and c.name.startswith("TRL")]
    fused = [c for c in found if c.support == TOPK and c.name.startswith("srpo_trl") and ANEW not in c.name]
    peers = [c for c in found if c.support == FULL and c.name.startswith(("TRL chunked", "Liger"))]
    chosen = fused if quick else [*fused, *dense, *peers]
    numbers, hidden_size = _memory_sizes(device, quick)
    rows = []
    for num_tokens in numbers:
        size = _size(num_tokens, hidden_size, device, quick)
        rows.append({"N": num_tokens} | {c.name: gigabytes(extra_bytes(c, size, device)) for c in chosen})
    how = "the allocator's peak" if device.type == "cuda" else "growth of a fresh process's resident memory"
    return Table(
        f"Memory beyond inputs, gradients and the head gradient's accumulator, GB: {str(size).partition(' ')[2]}",
        rows,
        f"Measured as {how}. srpo_trl and TRL SDPO: {TOPK}; the others: {FULL}.",
    )


def _size(num_tokens: int, hidden_size: int, device: torch.device, quick: bool) -> Size:
    if device.type == "cuda":
        return Size(num_tokens, hidden_size, 10_000 if quick else QWEN3_VOCABULARY, torch.bfloat16)
    return Size(num_tokens, hidden_size, 1000 if quick else 32_000, torch.float32)


def _time_sizes(device: torch.device, quick: bool) -> list[tuple[int, int]]:
    if quick:
        return [(64, 32)]
    if device.type == "cuda":
        return list(itertools.product((8192, 32_768), (1024, 2560, 4096)))
    return [(256, 256), (512, 256)]


def _memory_sizes(device: torch.device, quick: bool) -> tuple[list[int], int]:
    if quick:
        return [64], 32
    if device.type == "cuda":
        return [1024 * 2**power for power in range(7)], 4096
    return [256, 512, 1024], 256


def main(argv: Sequence[str] | None = None) -> int:
    return run("Loss and gradients: seconds and memory.", (tables,), argv)


if __name__ == "__main__":
    sys.exit(main())
