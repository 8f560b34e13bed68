"""a: the card, its driver, the versions, and what rates it reaches."""

import platform
import subprocess
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version

import torch

from benchmarks.gpu.sections import Part, Row, Setting
from benchmarks.measure import free_memory, time_alternately
from benchmarks.peers import QWEN3_VOCABULARY

_PACKAGES = (
    "torch",
    "triton",
    "trl",
    "transformers",
    "accelerate",
    "peft",
    "liger-kernel",
    "vllm",
    "srpo-trl",
)
_ASKED_OF_THE_DRIVER = (
    "driver_version",
    "power.limit",
    "clocks.max.sm",
    "clocks.max.mem",
    "mig.mode.current",
)
RATES = "Measured rates"


def parts(setting: Setting) -> list[Part]:
    """What the machine is, then what it does."""
    device = torch.device(setting.device)
    side = 64 if setting.tiny else 8192
    head = (64, 32, 1000) if setting.tiny else (8192, 4096, QWEN3_VOCABULARY)
    note = "Medians of five calls after two; the logits' product in bfloat16 has the shape of a head."
    return [
        Part("machine", "Machine", lambda: machine(device)),
        Part("square product", RATES, lambda: product_rates(device, (side, side, side)), note),
        Part("product of a head", RATES, lambda: product_rates(device, head), note),
        Part("bandwidth", RATES, lambda: bandwidth(device, 2**16 if setting.tiny else 2**30), note),
    ]


def machine(device: torch.device) -> Iterator[Row]:
    """What the driver, torch and the packages say."""
    facts: dict[str, str] = {"Python": platform.python_version(), "system": platform.platform()}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "card": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "memory, GiB": f"{properties.total_memory / 2**30:.1f}",
            "multiprocessors": str(properties.multi_processor_count),
            "CUDA of torch": str(torch.version.cuda),
        }
        facts |= _driver_facts()
    for package in _PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "not installed"
    yield from ({"what": name, "value": value} for name, value in facts.items())


def _driver_facts() -> dict[str, str]:
    """What nvidia-smi says; a driver that does not know one of the questions is asked the others."""
    facts = {}
    for name in _ASKED_OF_THE_DRIVER:
        command = ["nvidia-smi", f"--query-gpu={name}", "--format=csv,noheader"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return {"driver": "nvidia-smi does not answer"}
        facts[name] = done.stdout.strip() if done.returncode == 0 else "not known"
    return facts


def product_rates(device: torch.device, shape: tuple[int, int, int]) -> Iterator[Row]:
    """TFLOP/s of (M, K) @ (K, N) in the precisions that the loss multiplies in."""
    rows, inner, columns = shape
    calls: dict[str, Callable[[], object]] = {}
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        left = torch.randn(rows, inner, device=device, dtype=dtype)
        right = torch.randn(columns, inner, device=device, dtype=dtype)
        out = torch.empty(rows, columns, device=device, dtype=dtype)
        calls[_name(dtype)] = _product(left, right, out)
    timings = time_alternately(calls, device, repeats=5, warmup=2)
    del calls, left, right, out
    free_memory(device)
    for name, timing in timings.items():
        row: Row = {"what": f"product {rows:,} x {inner:,} x {columns:,}, {name}"}
        if timing is None:
            yield row | {"seconds": "does not fit", "rate": ""}
        else:
            rate = 2 * rows * inner * columns / timing.median / 1e12
            yield row | {"seconds": timing.median, "rate": f"{rate:.3g} TFLOP/s"}


def _product(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor) -> Callable[[], object]:
    return lambda: torch.mm(left, right.T, out=out)


def bandwidth(device: torch.device, num_bytes: int) -> Iterator[Row]:
    """GB/s of a copy on the device, read and write counted, and of a sum, which reads."""
    source = torch.zeros(num_bytes // 4, device=device)
    target = torch.empty_like(source)
    calls = {"copy": (lambda: target.copy_(source), 2), "sum": (lambda: source.sum(), 1)}
    timings = time_alternately({name: call for name, (call, _) in calls.items()}, device, repeats=5, warmup=2)
    for name, (_, passes) in calls.items():
        timing = timings[name]
        assert timing is not None
        rate = passes * num_bytes / timing.median / 1e9
        yield {
            "what": f"{name} of {num_bytes:,} bytes",
            "seconds": timing.median,
            "rate": f"{rate:,.0f} GB/s",
        }


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
