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

from benchmarks.common import Options, run
from benchmarks.loss_table import loss_table
from benchmarks.measure import extra_bytes
from benchmarks.peers import (
    ANEW,
    FULL,
    QWEN3_VOCABULARY,
    SUPPORTS,
    TOPK,
    BenchmarkCase,
    Contender,
    Losses,
    Size,
    contenders,
    srpo_losses,
)
from benchmarks.tables import Table, gigabytes


def sdpo_losses(case: BenchmarkCase, helper: Any, options: dict[str, Any]) -> Losses:
    """TRL's SDPO: both models' whole logits in the weights' dtype, raised to float32 as a model's forward does."""
    student_NV = F.linear(case.student_hidden_ND, case.student_weight_VD).float()
    with torch.no_grad():
        teacher_NV = F.linear(case.teacher_hidden_ND, case.teacher_weight_VD).float()
    divergence_N = helper(student_NV, teacher_NV, distillation_alpha=0.5, **options)
    return Losses((case.coefficient_N * divergence_N).sum(), divergence_N.detach())


def all_contenders(device: torch.device, before: str | None = None) -> list[Contender]:
    """Ours, the peers, TRL's SDPO, and ours of the commit `before`."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental.sdpo import loss_utils

    topk_options = {"distillation_topk": 100, "distillation_add_tail": True}
    topk = partial(sdpo_losses, helper=loss_utils.compute_topk_self_distillation_loss, options=topk_options)
    full = partial(sdpo_losses, helper=loss_utils.compute_full_logit_self_distillation_loss, options={})
    found = [
        *contenders(device),
        Contender("TRL SDPO", TOPK, topk, has_accumulator=False),
        Contender("TRL SDPO", FULL, full, has_accumulator=False),
    ]
    if before is not None:
        name = f"srpo_trl chunked at {before}"
        own = partial(srpo_losses, backend="chunked", carries=False, commit=before)
        found += [Contender(name, support, partial(own, topk=k)) for support, k in SUPPORTS.items()]
    return found


def tables(options: Options) -> Iterator[Table]:
    """One table of times for each size, then memory over N."""
    device, quick = options.device, options.quick
    found = all_contenders(device, options.before)
    for size in _time_sizes(device, quick):
        repeats = 1 if quick else 7 if device.type == "cuda" else 3
        yield loss_table(found, size, device, repeats=repeats, memory=device.type == "cuda")
    yield memory_curve(found, device, quick)


def memory_curve(found: Sequence[Contender], device: torch.device, quick: bool) -> Table:
    """Peak memory beyond what every contender must hold, as N grows."""
    dense = [c for c in found if c.support == TOPK and c.name.startswith("TRL")]
    fused = [c for c in found if c.support == TOPK and c.name.startswith("srpo_trl") and ANEW not in c.name]
    peers = [c for c in found if c.support == FULL and c.name.startswith(("TRL chunked", "Liger"))]
    chosen = fused if quick else [*fused, *dense, *peers]
    rows = []
    for size in _memory_sizes(device, quick):
        rows.append(
            {"N": size.num_tokens} | {c.name: gigabytes(extra_bytes(c, size, device)) for c in chosen}
        )
    how = "the allocator's peak" if device.type == "cuda" else "growth of a fresh process's resident memory"
    return Table(
        f"Memory beyond inputs, gradients and the head gradient's accumulator, GB: {str(size).partition(' ')[2]}",
        rows,
        f"Measured as {how}. srpo_trl and TRL SDPO: {TOPK}; the others: {FULL}.",
    )


def _time_sizes(device: torch.device, quick: bool) -> list[Size]:
    if quick:
        return [_quick_size(device)]
    if device.type == "cuda":
        return [_gpu_size(n, d) for n, d in itertools.product((8192, 32_768), (1024, 2560, 4096))]
    small = [Size(n, 256, 32_000, torch.float32) for n in (256, 512)]
    return [*small, Size(512, 1024, QWEN3_VOCABULARY, torch.float32)]


def _memory_sizes(device: torch.device, quick: bool) -> list[Size]:
    if quick:
        return [_quick_size(device)]
    if device.type == "cuda":
        return [_gpu_size(1024 * 2**power, 4096) for power in range(7)]
    return [Size(n, 256, 32_000, torch.float32) for n in (256, 512, 1024)]


def _gpu_size(num_tokens: int, hidden_size: int) -> Size:
    return Size(num_tokens, hidden_size, QWEN3_VOCABULARY, torch.bfloat16)


def _quick_size(device: torch.device) -> Size:
    if device.type == "cuda":
        return Size(64, 32, 10_000, torch.bfloat16)
    return Size(64, 32, 1000, torch.float32)


def main(argv: Sequence[str] | None = None) -> int:
    return run("Loss and gradients: seconds and memory.", (tables,), argv)


if __name__ == "__main__":
    sys.exit(main())
