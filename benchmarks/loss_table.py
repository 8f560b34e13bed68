"""The distillation loss beside its peers, at one size: `python -m benchmarks.loss_table`."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from benchmarks.measure import Timing, extra_bytes, free_memory, time_alternately
from benchmarks.peers import (
    FLOOR_TOKENS,
    FULL,
    QWEN3_VOCABULARY,
    TOPK,
    Contender,
    Size,
    contenders,
    floor_products,
    head_products,
    loss_and_gradients,
    make_case,
)
from benchmarks.tables import DOES_NOT_FIT, Table, environment, gigabytes, parser, report

_NUMBERS = {3: "three", 4: "four"}


def loss_table(
    found: Sequence[Contender], size: Size, device: torch.device, *, repeats: int, memory: bool
) -> Table:
    """Return seconds, ratios over three and four products and peak memory of every contender at one size."""
    case = make_case(size, device)
    calls: dict[str, Callable[[], object]] = {s: head_products(case, floor_products(s)) for s in (TOPK, FULL)}
    calls |= {_key(c): partial(loss_and_gradients, c, case) for c in found}
    timings = time_alternately(calls, device, repeats=repeats, warmup=3 if device.type == "cuda" else 1)
    del case, calls
    free_memory(device)
    floors = {support: _floor(timings[support], size, device) for support in (TOPK, FULL)}
    rows = [
        _timing_row(f"floor: {_NUMBERS[floor_products(support)]} matrix products", support, floor, floors)
        for support, floor in floors.items()
    ]
    rows += [_timing_row(c.name, c.support, timings[_key(c)], floors) for c in found]
    if memory:
        extras = [extra_bytes(c, size, device) for c in found]
        for row, text in zip(rows, ["", "", *map(gigabytes, extras)], strict=True):
            row["GB beyond"] = text
    rate = 6 * size.num_tokens * size.hidden_size * size.vocab_size / floors[TOPK].median / 1e12
    note = f"Three products at {rate:.3g} TFLOP/s. x three, x four: over three and over four products of the same run."
    return Table(f"Loss and gradients, {size}", rows, note)


def _floor(timing: Timing | None, size: Size, device: torch.device) -> Timing:
    """The floor of all N tokens, from that of the first C."""
    assert timing is not None
    return timing.times(max(1.0, size.num_tokens / FLOOR_TOKENS.get(device.type, 512)))


def _key(contender: Contender) -> str:
    return f"{contender.name}, {contender.support}"


def _timing_row(name: str, support: str, timing: Timing | None, floors: dict[str, Timing]) -> dict[str, Any]:
    row = {"loss": name, "support": support}
    if timing is None:
        return row | {"seconds": DOES_NOT_FIT, "min-max": "", "x three": "", "x four": ""}
    return row | {
        "seconds": timing.median,
        "min-max": f"{timing.low:.3g}-{timing.high:.3g}",
        "x three": timing.median / floors[TOPK].median,
        "x four": timing.median / floors[FULL].median,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Print the loss table for this machine."""
    options = parser(
        "The distillation loss on this machine, beside its peers.", prog="python -m benchmarks.loss_table"
    )
    options.add_argument("--tokens", type=int, help="N, tokens of one loss")
    options.add_argument("--hidden", type=int, help="D, the model's hidden size")
    options.add_argument("--vocabulary", type=int, help="V, the model's vocabulary size")
    given = options.parse_args(argv)
    on_gpu = given.device.type == "cuda"
    tokens, hidden, vocabulary = (8192, 2560, QWEN3_VOCABULARY) if on_gpu else (256, 256, 32_000)
    if given.quick:
        tokens, hidden, vocabulary = 64, 32, 1000
    size = Size(
        given.tokens or tokens,
        given.hidden or hidden,
        given.vocabulary or vocabulary,
        torch.bfloat16 if on_gpu else torch.float32,
    )
    repeats = 1 if given.quick else 10 if on_gpu else 3
    table = loss_table(contenders(given.device), size, given.device, repeats=repeats, memory=not given.quick)
    report([table], environment(given.device), given.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
