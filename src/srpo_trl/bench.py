"""`srpo-trl bench`: the distillation loss beside its peers on the user's own device.

Problems, contenders, timing and tables are shared with the repository's `benchmarks/`.

Shapes: N packed scored tokens, C of them in a chunk, D hidden, V vocabulary.
"""

import argparse
import gc
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor

from srpo_trl.ops import Backend, DistillationSpec, Head, distillation_loss

QWEN3_VOCABULARY = 151_936
NEAR, FAR = 0.022, 1.0  # see make_problem: a divergence of about 1e-3 and of about 0.5 nats
_LOGIT_DEVIATION = 4.0  # entropy of a few nats, as of a language model
_FLOOR_TOKENS = {"cuda": 8192, "cpu": 512}  # enough for a product's best rate; more would only need memory
_VERSIONS_OF = ("srpo-trl", "torch", "triton", "trl", "transformers", "liger-kernel")

TOPK, FULL = "top 100 + tail", "full vocabulary"


# ---------------------------------------------------------------- problems


class Problem(NamedTuple):
    """Inputs of one distillation loss; the student's receive a gradient."""

    student_hidden_ND: Tensor
    student_weight_VD: Tensor
    teacher_hidden_ND: Tensor
    teacher_weight_VD: Tensor
    token_ids_N: Tensor
    coefficient_N: Tensor

    @property
    def gradient_bytes(self) -> int:
        """Bytes of both gradients in the dtype of their inputs."""
        return self.student_hidden_ND.nbytes + self.student_weight_VD.nbytes

    @property
    def accumulator_bytes(self) -> int:
        """Bytes of a float32 accumulator of the head's gradient; 0 where the gradient itself is float32."""
        is_wide = self.student_weight_VD.dtype == torch.float32
        return 0 if is_wide else 4 * self.student_weight_VD.numel()


class Size(NamedTuple):
    """Of a problem."""

    num_tokens: int
    hidden_size: int
    vocab_size: int
    dtype: torch.dtype

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"N={self.num_tokens:,} D={self.hidden_size:,} V={self.vocab_size:,} {dtype}"


def make_problem(size: Size, device: torch.device, distance: float = NEAR, seed: int = 0) -> Problem:
    """Return random inputs with peaked distributions, coefficients 1 / N.

    Args:
        size: of the problem.
        device: that everything is made on.
        distance: from the student's hidden states to the teacher's, in units of their deviation.
        seed: of all random numbers.
    """
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=size.dtype)

    hidden_ND = normal(size.num_tokens, size.hidden_size)
    weight_VD = normal(size.vocab_size, size.hidden_size).mul_(_LOGIT_DEVIATION / size.hidden_size**0.5)
    return Problem(
        student_hidden_ND=hidden_ND.clone().requires_grad_(),
        student_weight_VD=weight_VD.clone().requires_grad_(),
        teacher_hidden_ND=hidden_ND + distance * normal(size.num_tokens, size.hidden_size),
        teacher_weight_VD=weight_VD,
        token_ids_N=torch.randint(size.vocab_size, (size.num_tokens,), generator=generator, device=device),
        coefficient_N=torch.full((size.num_tokens,), 1 / size.num_tokens, device=device),
    )


# ---------------------------------------------------------------- contenders


class Losses(NamedTuple):
    """The weighted sum, which makes the gradients, and each token's divergence where the contender gives it."""

    loss: Tensor
    divergence_N: Tensor | None


class Contender(NamedTuple):
    """One way to compute the loss.

    Attributes:
        name: unique.
        support: `TOPK` or `FULL`.
        losses: of a problem.
        has_accumulator: whether it sums the head's gradient in float32 where its inputs are narrower.
    """

    name: str
    support: str
    losses: Callable[[Problem], Losses]
    has_accumulator: bool = True


def _srpo(problem: Problem, backend: Backend, topk: int | None) -> Losses:
    result = distillation_loss(
        problem.student_hidden_ND,
        Head(problem.student_weight_VD),
        problem.teacher_hidden_ND,
        Head(problem.teacher_weight_VD),
        problem.token_ids_N,
        problem.coefficient_N,
        spec=DistillationSpec(alpha=0.5, topk=topk),
        backend=backend,
    )
    return Losses(result.loss, result.divergence_N)


def _trl_chunked(problem: Problem, function: Any) -> Losses:
    divergence_N, _ = function.apply(
        problem.student_hidden_ND,
        problem.student_weight_VD,
        None,
        problem.teacher_hidden_ND,
        problem.teacher_weight_VD,
        None,
        0.5,
    )
    return Losses((problem.coefficient_N * divergence_N).sum(), divergence_N.detach())


def _liger_fused(problem: Problem, function: Any, accumulator: torch.dtype | None) -> Losses:
    inputs = problem[:4]
    return Losses(function.apply(*inputs, None, 0.5, -100, 1.0, accumulator), None)


def _liger_chunked(problem: Problem, function: Any) -> Losses:
    weights_hard_soft, beta, ignored, temperature, compiled = (0.0, 1.0), 0.5, -100, 1.0, False
    labels_and_biases = (problem.token_ids_N, None, None)
    options = (*weights_hard_soft, beta, ignored, temperature, compiled)
    return Losses(function.apply(*problem[:4], *labels_and_biases, *options), None)


def _peer(module: str, name: str) -> Any:
    """Something of another package that is only measured; None where the installed version has no such thing."""
    try:
        return getattr(importlib.import_module(module), name, None)
    except ImportError:
        return None


def contenders(device: torch.device) -> list[Contender]:
    """Return ours, one of each backend that runs on `device`, the dense form, and the peers installed here."""
    on_gpu = device.type == "cuda"
    has_kernels = importlib.util.find_spec("triton") is not None
    has_kernels &= on_gpu or os.environ.get("TRITON_INTERPRET") == "1"
    fused = [
        b for b in get_args(Backend) if b not in ("auto", "reference") and (has_kernels or b != "triton")
    ]
    found = [
        Contender(f"srpo_trl {backend}", support, partial(_srpo, backend=backend, topk=topk))
        for support, topk in ((TOPK, 100), (FULL, None))
        for backend in fused
    ]
    dense = partial(_srpo, backend="reference", topk=100)
    found.append(Contender("dense, float32 logits (srpo_trl reference)", TOPK, dense))
    if chunked := _peer("trl.kernels.chunked_divergence", "ChunkedDivergenceFunction"):
        found.append(Contender("TRL chunked_divergence", FULL, partial(_trl_chunked, function=chunked)))
    if on_gpu:
        if liger := _peer("liger_kernel.ops.fused_linear_jsd", "LigerFusedLinearJSDFunction"):
            name = "Liger fused linear JSD"
            plain = partial(_liger_fused, function=liger, accumulator=None)
            wide = partial(_liger_fused, function=liger, accumulator=torch.float32)
            found += [
                Contender(name, FULL, plain, has_accumulator=False),
                Contender(f"{name}, float32 accumulator", FULL, wide),
            ]
    elif liger := _peer("liger_kernel.chunked_loss.jsd_loss", "LigerFusedLinearJSDFunction"):
        plain = partial(_liger_chunked, function=liger)
        found.append(Contender("Liger chunked JSD (torch)", FULL, plain, has_accumulator=False))
    return found


def loss_and_gradients(contender: Contender, problem: Problem) -> None:
    """Run the contender once, backward included, and drop what it made."""
    try:
        contender.losses(problem).loss.backward()
    finally:
        problem.student_hidden_ND.grad = problem.student_weight_VD.grad = None


def four_products(problem: Problem) -> Callable[[], None]:
    """Return what makes the four products of every contender on the first C tokens: the floor, by N / C."""
    rows = slice(0, _FLOOR_TOKENS.get(problem.student_hidden_ND.device.type, 512))
    hidden_CD, weight_VD = problem.student_hidden_ND.detach()[rows], problem.student_weight_VD.detach()
    teacher_CD, teacher_VD = problem.teacher_hidden_ND[rows], problem.teacher_weight_VD

    def products() -> None:
        logits_CV = hidden_CD @ weight_VD.T
        teacher_CD @ teacher_VD.T
        logits_CV @ weight_VD
        logits_CV.T @ hidden_CD

    return products


# ---------------------------------------------------------------- measuring


class Timing(NamedTuple):
    """Seconds of one call."""

    median: float
    low: float
    high: float

    def times(self, factor: float) -> "Timing":
        """The same of `factor` calls."""
        return Timing(*(factor * value for value in self))


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(device: torch.device) -> float:
    """Read the clock once the device has done what it was given; only differences mean something.

    On a CPU with one thread it is the process's own time, which other processes do not stretch.
    """
    synchronize(device)
    if device.type == "cpu" and torch.get_num_threads() == 1:
        return time.process_time()
    return time.perf_counter()


def time_alternately(
    calls: Mapping[str, Callable[[], object]], device: torch.device, *, repeats: int, warmup: int
) -> dict[str, Timing | None]:
    """Time A B C A B C ..., so that a slow moment of the machine meets all alike; None: it ran out of memory."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    too_large = set()
    for turn in range(warmup + repeats):
        for name, call in calls.items():
            if name in too_large:
                continue
            try:
                start = seconds(device)
                call()
                elapsed = seconds(device) - start
                if turn >= warmup:
                    taken[name].append(elapsed)
            except torch.OutOfMemoryError:
                too_large.add(name)
            if name in too_large:  # only now, as the error held on to what the call had made
                free_memory(device)
    return {
        name: None if name in too_large else Timing(statistics.median(s), min(s), max(s))
        for name, s in taken.items()
    }


def free_memory(device: torch.device) -> None:
    """Give back what nothing refers to any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def extra_bytes(contender: Contender, size: Size, device: torch.device) -> int | None:
    """Return the peak memory of one loss beyond inputs, gradients and the head gradient's float32 accumulator.

    On CUDA from the allocator's peak. Elsewhere from the growth of a fresh process's resident memory.

    Args:
        contender: what to run; sent to a new process where it is not CUDA.
        size: of the problem.
        device: to run on.

    Returns:
        Bytes; negative where the contender needs less than counted off. None: it ran out of memory.
    """
    if device.type == "cuda":
        problem = make_problem(size, device)
        free_memory(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        try:
            loss_and_gradients(contender, problem)
        except torch.OutOfMemoryError:
            return None
        peak = torch.cuda.max_memory_allocated(device) - before
        return peak - _counted_off(contender, problem)
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as fresh_process:
        return fresh_process.submit(_resident_growth, contender, size, device).result()


def _resident_growth(contender: Contender, size: Size, device: torch.device) -> int:
    loss_and_gradients(contender, make_problem(Size(8, 8, 256, size.dtype), device))  # loads what it needs
    problem = make_problem(size, device)
    free_memory(device)
    before = _resident_bytes("VmRSS")
    loss_and_gradients(contender, problem)
    return _resident_bytes("VmHWM") - before - _counted_off(contender, problem)


def _counted_off(contender: Contender, problem: Problem) -> int:
    return problem.gradient_bytes + (problem.accumulator_bytes if contender.has_accumulator else 0)


def _resident_bytes(field: str) -> int:
    """VmRSS: now; VmHWM: at the most since the process began. Without Linux's /proc, both are the latter.

    Linux's own `ru_maxrss` counts the parent's memory at the moment it started this process.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS, else KiB
        return peak if sys.platform == "darwin" else 1024 * peak
    line = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])


# ---------------------------------------------------------------- tables

DOES_NOT_FIT = "does not fit"


class Table(NamedTuple):
    """Rows with the same keys, which are the columns."""

    title: str
    rows: list[dict[str, Any]]
    note: str = ""


def loss_table(
    found: Sequence[Contender], size: Size, device: torch.device, *, repeats: int, memory: bool
) -> Table:
    """Return seconds, ratio over the floor and peak memory of every contender at one size."""
    problem = make_problem(size, device)
    calls: dict[str, Callable[[], object]] = {"floor": four_products(problem)}
    calls |= {_key(c): partial(loss_and_gradients, c, problem) for c in found}
    timings = time_alternately(calls, device, repeats=repeats, warmup=3 if device.type == "cuda" else 1)
    del problem, calls
    free_memory(device)
    floor = timings.pop("floor")
    assert floor is not None
    floor = floor.times(max(1.0, size.num_tokens / _FLOOR_TOKENS.get(device.type, 512)))
    rate = 8 * size.num_tokens * size.hidden_size * size.vocab_size / floor.median / 1e12
    rows = [_timing_row("floor: four matrix products", "", floor, floor)]
    rows += [_timing_row(c.name, c.support, timings[_key(c)], floor) for c in found]
    if memory:
        extras = [extra_bytes(c, size, device) for c in found]
        for row, text in zip(rows, ["", *map(gigabytes, extras)], strict=True):
            row["GB beyond"] = text
    note = f"Floor at {rate:.3g} TFLOP/s, measured in the same run."
    return Table(f"Loss and gradients, {size}", rows, note)


def gigabytes(num_bytes: int | None) -> str:
    """Return the number as text in 10^9 bytes; None is what did not fit."""
    return DOES_NOT_FIT if num_bytes is None else f"{num_bytes / 1e9:.3f}"


def _key(contender: Contender) -> str:
    return f"{contender.name}, {contender.support}"


def _timing_row(name: str, support: str, timing: Timing | None, floor: Timing) -> dict[str, Any]:
    row = {"loss": name, "support": support}
    if timing is None:
        return row | {"seconds": DOES_NOT_FIT, "min-max": "", "x floor": ""}
    return row | {
        "seconds": timing.median,
        "min-max": f"{timing.low:.3g}-{timing.high:.3g}",
        "x floor": timing.median / floor.median,
    }


def markdown(table: Table) -> str:
    """Return the table as Markdown, its title above and its note below."""
    columns = list(table.rows[0])
    lines = [f"### {table.title}", "", "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(_text(row[column]) for column in columns) + " |" for row in table.rows]
    return "\n".join(lines + (["", table.note] if table.note else [])) + "\n"


def _text(value: Any) -> str:
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def environment(device: torch.device) -> dict[str, str]:
    """Return when, on what and with which versions something is measured."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        hardware = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
    else:
        num_threads = torch.get_num_threads()
        clock = "1 thread, seconds of the process" if num_threads == 1 else f"{num_threads} threads"
        hardware = f"{os.cpu_count()} CPU cores, {_processor()}; {clock}"
    versions = {}
    for name in _VERSIONS_OF:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": hardware,
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items())
        + f", Python {platform.python_version()}",
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"{platform.machine()} {model}".strip()


# ---------------------------------------------------------------- the command


def parser(description: str, prog: str | None = None) -> argparse.ArgumentParser:
    """Return a parser with the options that all benchmarks have."""
    options = argparse.ArgumentParser(prog=prog, description=description)
    default = "cuda" if torch.cuda.is_available() else "cpu"
    options.add_argument("--device", type=torch.device, default=torch.device(default), help=default)
    options.add_argument("--quick", action="store_true", help="tiny sizes: whether it runs, not how fast")
    options.add_argument("--json", type=Path, help="write the figures to this file, too")
    return options


def report(tables: Iterable[Table], header: Mapping[str, str], json_path: Path | None) -> None:
    """Print header and tables as Markdown, each as soon as it is made; with `json_path`, keep both there, too."""
    print("\n".join(f"{name}: {value}  " for name, value in header.items()), end="\n\n", flush=True)
    made: list[dict[str, Any]] = []
    for table in tables:
        print(markdown(table), flush=True)
        made.append(table._asdict())
        if json_path is not None:
            content = {"environment": dict(header), "tables": made}
            json_path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Print the loss table for this machine."""
    options = parser("The distillation loss on this machine, beside its peers.", prog="srpo-trl bench")
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
