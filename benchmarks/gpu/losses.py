"""c: the distillation loss beside its peers at Qwen3's vocabulary, over hidden sizes and chunk bounds."""

from collections.abc import Iterator, Sequence
from functools import partial

import torch

from benchmarks.gpu.kernels import backends
from benchmarks.gpu.sections import Part, Row, Setting
from benchmarks.loss import all_contenders
from benchmarks.loss_table import loss_table
from benchmarks.measure import extra_bytes, free_memory, time_alternately
from benchmarks.peers import (
    FLOOR_TOKENS,
    QWEN3_VOCABULARY,
    TOPK,
    Contender,
    Size,
    head_products,
    loss_and_gradients,
    make_case,
    srpo_losses,
)
from benchmarks.tables import gigabytes
from srpo_trl.loss.ops import Backend

HIDDEN_SIZES = (4096, 2560, 1024)
CHUNK_TOKENS = (512, 1024, 2048, 4096, 8192)
PUBLISHED = "42 ms on an H100"  # of the head alone, forward and backward, at 8,192 x 4,096 x 151,936


def parts(setting: Setting) -> list[Part]:
    """The head alone, the largest hidden size first, then the chunk sweep."""
    device = torch.device(setting.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    sizes = [Size(8192, hidden, QWEN3_VOCABULARY, dtype) for hidden in HIDDEN_SIZES]
    chunks = CHUNK_TOKENS
    if setting.tiny:
        sizes, chunks = [Size(64, hidden, 1000, dtype) for hidden in (32, 16)], (16, 64)
    largest, *others = sizes
    return [
        Part("head alone", "A bare head, forward and backward", partial(head_alone, largest, device)),
        _table_part(largest, device, setting.tiny),
        *(
            Part(f"chunks of {tokens}, {backend}", _chunk_title(largest), rows, CHUNK_NOTE)
            for tokens in chunks
            for backend in backends(device)
            for rows in (partial(chunked, largest, device, backend, tokens, setting.tiny),)
        ),
        *(_table_part(size, device, setting.tiny) for size in others),
    ]


def head_alone(size: Size, device: torch.device) -> Iterator[Row]:
    """The three products, beside the published figure where the size is the same."""
    calls = {"products": head_products(make_case(size, device), 3)}
    timing = time_alternately(calls, device, repeats=5, warmup=2)["products"]
    assert timing is not None
    taken = timing.times(max(1.0, size.num_tokens / FLOOR_TOKENS.get(device.type, 512)))
    is_published = (size.hidden_size, size.vocab_size) == (4096, QWEN3_VOCABULARY)
    yield {"size": str(size), "ms": 1000 * taken.median, "published": PUBLISHED if is_published else ""}


def _table_part(size: Size, device: torch.device, tiny: bool) -> Part:
    def rows() -> Iterator[Row]:
        found, refusals = tried(all_contenders(device), size, device)
        # Memory on a CPU takes a fresh process each, which `benchmarks.loss` has.
        memory = device.type == "cuda"
        yield from loss_table(found, size, device, repeats=1 if tiny else 5, memory=memory).rows
        yield from refusals

    return Part(f"D = {size.hidden_size}", f"Loss and gradients, {size}", rows, MEMORY_NOTE)


def tried(
    contenders: Sequence[Contender], size: Size, device: torch.device
) -> tuple[list[Contender], list[Row]]:
    """Return those that run at a small size, and a row for each that fails: a peer must not take ours with it."""
    case = make_case(Size(64, size.hidden_size, 1000, size.dtype), device)
    found, refusals = [], []
    for contender in contenders:
        try:
            loss_and_gradients(contender, case)
        except Exception as error:
            why = f"fails: {type(error).__name__}: {error}"[:120].replace("\n", " ")
            refusals.append({"loss": contender.name, "support": contender.support, "seconds": why})
        else:
            found.append(contender)
    return found, refusals


MEMORY_NOTE = (
    "x three, x four: time as a multiple of the matrix products that no such loss can do without, three for a support "
    "and four for the full vocabulary. GB beyond: the allocator's peak beyond inputs, gradients and a float32 "
    "accumulator of the head's gradient where the contender keeps one."
)
CHUNK_NOTE = (
    f"{TOPK}. The bound of the temporary memory is that of so many tokens' float32 logits; the other buffers come out "
    "of it, so that somewhat fewer tokens are taken at a time."
)


def _chunk_title(size: Size) -> str:
    return f"Chunks, {size}"


def chunked(size: Size, device: torch.device, backend: Backend, tokens: int, tiny: bool) -> Iterator[Row]:
    """Time and peak memory with the bound at so many tokens' logits."""
    bound = 4 * tokens * size.vocab_size
    contender = Contender(
        f"srpo_trl {backend}", TOPK, partial(srpo_losses, backend=backend, topk=100, chunk_bytes=bound)
    )
    case = make_case(size, device)
    calls = {"loss": partial(loss_and_gradients, contender, case), "floor": head_products(case, 3)}
    timings = time_alternately(calls, device, repeats=1 if tiny else 5, warmup=1 if tiny else 2)
    del case, calls
    free_memory(device)
    loss, floor = timings["loss"], timings["floor"]
    assert floor is not None
    floor = floor.times(max(1.0, size.num_tokens / FLOOR_TOKENS.get(device.type, 512)))
    row: Row = {"backend": backend, "bound, tokens": tokens, "bound, MiB": bound / 2**20}
    if loss is None:
        yield row | dict.fromkeys(("seconds", "x three", "GB beyond"), "does not fit")
        return
    memory = gigabytes(extra_bytes(contender, size, device)) if device.type == "cuda" else ""
    yield row | {"seconds": loss.median, "x three": loss.median / floor.median, "GB beyond": memory}
