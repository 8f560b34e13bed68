"""The teacher pass with prompts encoded once for all failed siblings, against without.

python -m benchmarks.teacher_pass [--device cpu]
"""

import random
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.common import Options, random_qwen3, run
from benchmarks.measure import time_alternately
from benchmarks.tables import Table
from srpo_trl.config import SRPOConfig
from srpo_trl.teacher.packing import Layout, TeacherRow, plan_passes
from srpo_trl.teacher.scoring import forward_rows

FAILED_SIBLINGS = 7
LAYOUTS: tuple[Layout, ...] = ("padded", "shared")


def score(backbone: nn.Module, rows: Sequence[TeacherRow], max_tokens: int, layout: Layout) -> None:
    """Score all rows and keep nothing."""
    with torch.no_grad():
        for batch in plan_passes(rows, max_tokens=max_tokens, layout=layout):
            forward_rows(backbone, [rows[i] for i in batch], layout)


def random_rows(num_groups: int, prompt: int, completion: int, vocab_size: int) -> list[TeacherRow]:
    """Groups of failed siblings: one prompt of the given length, a completion each."""
    numbers = random.Random(0)

    def tokens(length: int) -> tuple[int, ...]:
        return tuple(numbers.randrange(vocab_size) for _ in range(length))

    prompts = [tokens(prompt) for _ in range(num_groups)]
    return [TeacherRow(ids, tokens(completion)) for ids in prompts for _ in range(FAILED_SIBLINGS)]


def tables(options: Options) -> Iterator[Table]:
    """Seconds and their ratio for several lengths and token budgets."""
    device = options.device
    shape, num_groups, lengths, repeats = _sizes(device, options.quick)
    model = random_qwen3(shape, device, longest=2 * max(map(sum, lengths))).eval()
    rows = [
        row
        for length in lengths
        for row in compare_layouts(model, num_groups, length, device, repeats=repeats)
    ]
    title = f"Teacher pass, {FAILED_SIBLINGS} failed siblings per demonstration, {num_groups} groups: {shape} shape"
    yield Table(title, rows, NOTE)


NOTE = (
    "Seconds without and with shared prompts. Tokens: how many times as many tokens are run without sharing."
)


def compare_layouts(
    model: Any, num_groups: int, length: tuple[int, int], device: torch.device, *, repeats: int
) -> list[dict[str, Any]]:
    """Return a row for each token budget at one (prompt, completion) length."""
    prompt, completion = length
    default_budget: int = SRPOConfig.teacher_tokens_per_pass
    batch = random_rows(num_groups, prompt, completion, model.config.vocab_size)
    budgets = {"default": default_budget, "all rows at once": len(batch) * (prompt + completion)}
    calls = {
        f"{layout} {name}": partial(score, model.base_model, batch, budget, layout)
        for name, budget in budgets.items()
        for layout in LAYOUTS
    }
    timings = time_alternately(calls, device, repeats=repeats, warmup=1)
    bound = FAILED_SIBLINGS * (prompt + completion) / (prompt + FAILED_SIBLINGS * completion)
    rows = []
    for name, budget in budgets.items():
        without, shared = timings[f"padded {name}"], timings[f"shared {name}"]
        row = {"prompt": prompt, "completion": completion, "tokens per pass": f"{budget:,} ({name})"}
        if without is None or shared is None:
            rows.append(row | dict.fromkeys(("without", "shared", "ratio"), "does not fit") | {"tokens": ""})
            continue
        seconds = {"without": without.median, "shared": shared.median}
        rows.append(row | seconds | {"ratio": without.median / shared.median, "tokens": bound})
    return rows


def _sizes(device: torch.device, quick: bool) -> tuple[str, int, list[tuple[int, int]], int]:
    """Shape, groups, (prompt, completion) lengths, repeats."""
    if quick:
        return "tiny", 1, [(24, 16)], 1
    if device.type == "cuda":
        return "Qwen3-0.6B", 2, [(1200, 1024), (2200, 2048), (4300, 4096), (8400, 8192)], 5
    return "tiny", 2, [(192, 128), (384, 256)], 3


def main(argv: Sequence[str] | None = None) -> int:
    return run("The teacher pass with shared prompts, against without.", (tables,), argv)


if __name__ == "__main__":
    sys.exit(main())
