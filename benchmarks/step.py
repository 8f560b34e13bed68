"""Whole training steps, generation apart: this package's trainer beside TRL's GRPO and TRL's SDPO.

    python -m benchmarks.step                  on a GPU: Qwen3-0.6B and 1.7B shapes with random weights
    python -m benchmarks.step --device cpu     a small model; best with OMP_NUM_THREADS=1

All train on the same random completions, replayed: the share of failed rollouts is exact, and every failed one has a
correct sibling.
"""

import statistics
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from benchmarks.common import Options, run
from benchmarks.step_measure import AT, Run, alternate, medians
from benchmarks.step_rollouts import Case
from benchmarks.step_trainers import CONTENDERS, PEERS
from benchmarks.tables import DOES_NOT_FIT, Table

GPU_TOKENS_AT_ONCE = 32_768  # of a micro-batch's completions

NOTE = (
    "Seconds of an optimizer step, from the end of one to the end of the next: replayed rollouts and rewards, teacher "
    "pass, forward and backward, update (AdamW and the teacher's EMA), and the rest (clipping, logging). Peak memory "
    "above the model, trainer and optimizer included: on a CPU of the process, on a GPU of the allocator. x: over the "
    "peer, which is TRL's GRPO for grpo and srpo and TRL's SDPO for sdpo; rounds: the ratio's lowest and highest. "
    "Equal: model, rollouts, rewards, teacher prompts (templates and demonstrations of TRL's SDPO are ours), "
    "divergence, top K and tail, EMA teacher, AdamW, gradient checkpointing. Not equal: TRL's SDPO takes the mean over "
    "each completion, has no per-token weights and no policy loss, keeps no old log-probabilities here, and truncates "
    "no prompt; sdpo also logs entropies, importance ratios and where its gradient comes from."
)

COLUMNS = ("seconds", "x", "rounds", "GB", "x GB")


def compare(
    case: Case,
    device: torch.device,
    *,
    num_steps: int,
    rounds: int,
    contenders: Sequence[str] = tuple(CONTENDERS),
    before: str | None = None,
    apart: bool | None = None,
) -> list[dict[str, Any]]:
    """One row a contender: seconds, also by part, peak memory, and both as a multiple of the peer's.

    Args:
        case: what is trained.
        device: to run on.
        num_steps: that are timed of each run, after one that warms up.
        rounds: runs of each contender, which take turns.
        contenders: keys of `CONTENDERS`; a peer that is left out leaves ratios empty.
        before: a commit whose trainers take turns with this tree's.
        apart: whether each run has a process of its own; None: on a CPU.
    """
    if before is not None:
        contenders = (*contenders, *(f"{name}{AT}{before}" for name in contenders if name in PEERS))
    runs = alternate(contenders, case, device, num_steps=num_steps, rounds=rounds, apart=apart)
    return [_row(name, runs) for name in contenders]


def _row(name: str, runs: dict[str, list[Run] | None]) -> dict[str, Any]:
    own = runs[name]
    if own is None:
        return {"trainer": name} | dict.fromkeys((*COLUMNS, *_PART_COLUMNS), DOES_NOT_FIT)
    row: dict[str, Any] = {"trainer": name, "seconds": statistics.median(r.seconds for r in own)}
    peak = statistics.median(r.peak_bytes for r in own)
    row |= {"x": "", "rounds": "", "GB": peak / 1e9, "x GB": ""}
    peers = runs.get(PEERS.get(name.partition(AT)[0], ""))
    if peers:
        ratios = [r.seconds / p.seconds for r, p in zip(own, peers, strict=True)]
        row["x"] = row["seconds"] / statistics.median(p.seconds for p in peers)
        row["rounds"] = f"{min(ratios):.2f}-{max(ratios):.2f}" if len(ratios) > 1 else "1"
        row["x GB"] = peak / statistics.median(p.peak_bytes for p in peers)
    parts = medians(own)
    return row | {column: parts[part] for part, column in zip(parts, _PART_COLUMNS, strict=True)}


_PART_COLUMNS = ("rollouts s", "teacher s", "forward, backward s", "update s", "rest s")


def tables(options: Options) -> Iterator[Table]:
    """All trainers at the main size, then over vocabulary, length and batch."""
    device, before = options.device, options.before
    if options.quick:
        case = Case("tiny", 32, 50, 8, 4, num_generations=4, prompt_tokens=100)
        yield _table(
            "Training step", compare(case, device, num_steps=1, rounds=1, before=before, apart=False)
        )
        return
    on_gpu = device.type == "cuda"
    for case in _gpu_cases() if on_gpu else [SMALL]:
        title = f"Training step, {case.shape}, {case.routed_percent} % routed, {_sizes(case)}"
        yield _table(title, compare(case, device, num_steps=3 if on_gpu else 2, rounds=2, before=before))
    for name, cases in _scaling(on_gpu).items():
        rows = [
            _sizes_of(case) | row
            for case in cases
            for row in compare(case, device, num_steps=2 if on_gpu else 1, rounds=1)
        ]
        yield _table(f"Training step over {name}, {cases[0].shape}, {cases[0].routed_percent} % routed", rows)


def _table(title: str, rows: list[dict[str, Any]]) -> Table:
    return Table(f"{title}, gradient checkpointing", rows, NOTE)


# The main case on a CPU.
SMALL = Case("small", 128, 50, 16, 8, num_generations=8, vocabulary=32_768, prompt_tokens=128)


def _sizes_of(case: Case) -> dict[str, Any]:
    return {"vocabulary": case.vocabulary or "", "tokens": case.num_tokens, "rollouts": case.num_rows}


def _sizes(case: Case) -> str:
    rows = f"{case.num_rows} rollouts of {case.num_tokens:,} tokens, micro-batches of {case.micro_batch}"
    return rows if case.vocabulary is None else f"{rows}, vocabulary {case.vocabulary:,}"


def _scaling(on_gpu: bool) -> dict[str, list[Case]]:
    """What the tables add to the main one; a case that is in two of them is measured for the first."""
    if on_gpu:
        lengths = [gpu_case("Qwen3-0.6B", 1024 * 2**power) for power in range(4)]
        shares = [gpu_case("Qwen3-0.6B", 2048, percent) for percent in (0, 20, 60)]
        return {"length": lengths, "routed share": shares}
    lengths = [_of_length(length) for length in (128, 512, 2048)]
    return {
        "vocabulary": [SMALL._replace(vocabulary=size) for size in (8_192, 131_072)],
        "length": lengths,
        "batch": [SMALL._replace(num_rows=32)],
    }


def _of_length(num_tokens: int) -> Case:
    """A micro-batch of about as many tokens whatever their length, one row at the least."""
    rows = max(1, SMALL.micro_batch * SMALL.num_tokens // num_tokens)
    return SMALL._replace(num_tokens=num_tokens, num_rows=8, micro_batch=rows)


def gpu_case(shape: str, num_tokens: int, routed_percent: int = 40) -> Case:
    """A case for a GPU: two groups of ten, as many rows at once as usually fit."""
    fitting = [n for n in (1, 2, 4, 5, 10) if n * num_tokens <= GPU_TOKENS_AT_ONCE]
    return Case(shape, num_tokens, routed_percent, 20, fitting[-1])


def _gpu_cases() -> list[Case]:
    return [gpu_case(shape, 2048) for shape in ("Qwen3-0.6B", "Qwen3-1.7B")]


def main(argv: Sequence[str] | None = None) -> int:
    return run("Training steps beside TRL's GRPO and SDPO.", (tables,), argv)


if __name__ == "__main__":
    sys.exit(main())
