"""Registers, spills and shared memory of the Triton kernels, for GPUs that need not be there.

python -m benchmarks.kernels [--arch 75 80 90 100] [--all] [--json PATH]

The operators run on tensors without data, their launches are recorded, and what was recorded is compiled: kernels,
types, blocks and warps are those of a training run, and a new kernel needs no entry here.
"""

import argparse
import contextlib
import importlib
import io
import os
import pkgutil
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.fx.experimental._config as meta_config
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from benchmarks.common import commit
from benchmarks.peers import QWEN3_VOCABULARY
from benchmarks.tables import Table, environment, report
from srpo_trl.loss import ops
from srpo_trl.loss.ops import fused, projection
from srpo_trl.loss.ops.interface import DistillationSpec, Head

# Compute capability, and shared memory that one block can have there, in bytes (CUDA C++ Programming Guide).
SHARED_MEMORY = {75: 64 * 1024, 80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
NAMES = {75: "Turing (T4)", 80: "Ampere (A100)", 90: "Hopper (H100)", 100: "Blackwell (B200)"}
_CHUNK_BYTES = 512 * 2**20
_SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS = re.compile(r"Used (\d+) registers")
_SHOWN = ("DIVERGENCE", "SUPPORT", "BLOCK", "GROUP", "HIDDEN")
_LARGE_TOPK = (200, 500, 1000, fused.MAX_TOPK - 1, fused.MAX_TOPK)
_OTHER_SIZES = (
    (4097, 20),
    (5, 1),
    *((v, k) for v in (50_257, 128_256, 262_144) for k in (20, 100, 1000, fused.MAX_TOPK)),
)


class Case(NamedTuple):
    """One call of the operators, forward and backward."""

    spec: DistillationSpec
    dtype: torch.dtype = torch.bfloat16
    vocab_size: int = QWEN3_VOCABULARY
    hidden_size: int = 1024
    bias: bool = False
    softcap: float | None = None
    with_gradient: bool = True


class Launch(NamedTuple):
    """A kernel and what it was launched with, tensors as `_Pointer`."""

    kernel: Any
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]


class Resources(NamedTuple):
    """What a compiled kernel needs, as the assembler reports it: spills in bytes a thread, shared in bytes a block.

    `choices` are the flags that are set, the kind of loss, the sizes, and the dtypes of tensors other than float32.
    """

    kernel: str
    choices: str
    num_warps: int
    registers: int
    spill_stores: int
    spill_loads: int
    shared: int


class Compiled(NamedTuple):
    """A launch with what it needs, and its code."""

    launch: Launch
    resources: Resources
    ptx: str


class _OnGpu(torch.Tensor):
    """A tensor without data that says it is on a GPU, as do its views and what is made like it."""

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True


class _Pointer:
    """What the compiler asks of a tensor: its dtype, and whether its address is a multiple of 16."""

    def __init__(self, tensor: Tensor) -> None:
        self.dtype = tensor.dtype
        self._offset = tensor.storage_offset() * tensor.itemsize

    def data_ptr(self) -> int:
        return self._offset

    @staticmethod
    def ptr_range() -> int:
        return 0


class _Target:
    """The driver of a GPU that is not there; each capability is a device of its own, with its own kernels."""

    def __init__(self, capability: int) -> None:
        self._capability = capability

    def get_current_device(self) -> int:
        return self._capability

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._capability, 32)


def usual_cases() -> list[Case]:
    """A training run's: every support and divergence at the size of Qwen3, and a small vocabulary."""
    tail = DistillationSpec()
    return [
        *(Case(DistillationSpec(alpha=alpha)) for alpha in (0.0, 0.5, 1.0)),
        *(Case(DistillationSpec(alpha=alpha, pointwise_clip=0.05)) for alpha in (0.0, 0.5, 1.0)),
        *(Case(DistillationSpec(topk=k, is_linear=True, pointwise_clip=0.05)) for k in (100, None)),
        Case(DistillationSpec(topk=None, pointwise_clip=0.05)),
        Case(DistillationSpec(topk=100, add_tail=False)),
        Case(DistillationSpec(topk=None)),
        Case(DistillationSpec(estimator="sampled")),
        Case(tail, torch.float16),
        Case(tail, bias=True, softcap=30.0),
        Case(DistillationSpec(topk=20), vocab_size=300, hidden_size=64),
    ]


def all_cases() -> list[Case]:
    """Every combination of support, divergence, dtype and head, and sizes at the edges."""
    specs = [
        DistillationSpec(alpha=alpha, topk=topk, add_tail=add_tail, importance_clip=clip)
        for alpha in (0.0, 0.5, 1.0)
        for topk, add_tail in ((100, True), (100, False), (20, True), (None, True))
        for clip in (2.0, None)
    ]
    specs += [
        DistillationSpec(alpha=alpha, topk=k, add_tail=tail, is_linear=is_linear, pointwise_clip=clip)
        for alpha, is_linear in ((0.0, False), (0.5, False), (1.0, False), (0.5, True))
        for k, tail in ((100, True), (100, False), (None, True))
        for clip in (0.05, None)
        if is_linear or clip
    ]
    specs.append(DistillationSpec(estimator="sampled"))
    heads = ((False, None), (True, None), (False, 30.0), (True, 30.0))
    cases = [
        Case(spec, dtype, bias=bias, softcap=softcap)
        for spec in specs
        for dtype in (torch.bfloat16, torch.float16, torch.float32)
        for bias, softcap in heads
    ]
    for k in _LARGE_TOPK:
        cases += [Case(DistillationSpec(topk=k), bias=bias, softcap=softcap) for bias, softcap in heads]
        cases += [
            Case(DistillationSpec(topk=k, alpha=alpha, add_tail=tail), softcap=30.0)
            for alpha in (0.0, 0.5, 1.0)
            for tail in (True, False)
        ]
    cases += [Case(DistillationSpec(topk=k), vocab_size=v) for v, k in _OTHER_SIZES]
    cases += [Case(DistillationSpec(), hidden_size=size) for size in (64, 2560, 4096)]
    cases += [Case(spec, with_gradient=False) for spec in specs]
    return usual_cases() + cases


def kernels() -> dict[str, JITFunction]:
    """All kernels of the operators, by name: compiled functions that ask which program they are."""
    found = {}
    for module in pkgutil.iter_modules(ops.__path__, f"{ops.__name__}."):
        for name, value in vars(importlib.import_module(module.name)).items():
            if isinstance(value, JITFunction) and "program_id" in value.src:
                found[name] = value
    return found


def recorded(cases: Sequence[Case]) -> list[Launch]:
    """What the operators launch in the given cases; nothing is computed."""
    launches = []

    def record(kernel: Any, *arguments: Any, grid: Any, warmup: bool, **keywords: Any) -> None:
        held = tuple(_Pointer(each) if isinstance(each, Tensor) else each for each in arguments)
        launches.append(Launch(kernel, held, keywords))

    with (
        mock.patch.object(JITFunction, "run", record),
        mock.patch.object(fused, "_device_of", return_value=contextlib.nullcontext()),
        mock.patch.object(projection, "_mixed_mm"),  # no kernel of ours; torch 2.11 has none without data
        meta_config.patch(meta_nonzero_assume_all_nonzero=True),
    ):
        for case in cases:
            _run(case)
    return launches


def _run(case: Case) -> None:
    """The teacher's pass and the loss, two chunks of each or more."""

    def tensor(*shape: int, dtype: torch.dtype = case.dtype) -> Tensor:
        return torch.empty(*shape, dtype=dtype, device="meta").as_subclass(_OnGpu)

    num_tokens, bias = 1000, tensor(case.vocab_size) if case.bias else None
    hidden, weight = (
        tensor(size, case.hidden_size).requires_grad_(case.with_gradient)
        for size in (num_tokens, case.vocab_size)
    )
    head, teacher = Head(weight, bias, 1.0, case.softcap), tensor(num_tokens, case.hidden_size)
    teacher_head = head._replace(weight_VD=weight.detach())
    statistics = fused.token_statistics(teacher, teacher_head, case.spec.temperature, _CHUNK_BYTES)
    fused.distillation_loss(
        hidden,
        head,
        teacher,
        teacher_head,
        tensor(num_tokens, dtype=torch.int64),
        tensor(num_tokens, dtype=torch.float32),
        tensor(num_tokens, dtype=torch.float32),
        statistics.log_sum_exp_N,
        case.spec,
        _CHUNK_BYTES,
    )


def compiled(launches: Sequence[Launch], capability: int) -> list[Compiled]:
    """Each kernel that these launches need on a GPU of that capability, compiled here, once."""
    driver, found = triton.runtime.driver, {}
    for launch in launches:
        launch.kernel.device_caches.pop(capability, None)  # of a former call, which has taken the report
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.dict(os.environ, TRITON_CACHE_DIR=folder),
        mock.patch.object(driver, "_active", _Target(capability)),
        mock.patch.object(triton.knobs.nvidia, "dump_ptxas_log", True),
    ):
        for launch in launches:
            log = io.StringIO()
            with contextlib.redirect_stdout(log):
                binary = JITFunction.run(
                    launch.kernel, *launch.arguments, grid=(1,), warmup=True, **launch.keywords
                )
            if binary not in found:
                resources = _resources(launch, binary, log.getvalue())
                found[binary] = Compiled(launch, resources, binary.asm["ptx"])
    return list(found.values())


def _resources(launch: Launch, binary: Any, log: str) -> Resources:
    registers, spills = _REGISTERS.search(log), _SPILLS.search(log)
    if registers is None or spills is None:
        raise RuntimeError(f"The assembler does not say what {launch.kernel} needs: {log!r}")
    return Resources(
        kernel=launch.kernel.fn.__name__,
        choices=_choices(launch),
        num_warps=launch.keywords["num_warps"],
        registers=int(registers[1]),
        spill_stores=int(spills[1]),
        spill_loads=int(spills[2]),
        shared=binary.metadata.shared,
    )


def _choices(launch: Launch) -> str:
    """As in `Resources`."""
    names, keywords = launch.kernel.arg_names, launch.keywords
    words = [name.removeprefix("HAS_").lower() for name, value in keywords.items() if value is True]
    words += [f"{name.lower()}={keywords[name]}" for name in _SHOWN if name in keywords]
    words += [
        f"{name.removesuffix('_ptr')}:{str(value.dtype).removeprefix('torch.')}"
        for name, value in zip(names, launch.arguments, strict=False)
        if isinstance(value, _Pointer) and value.dtype not in (torch.float32, torch.int32)
    ]
    return " ".join(words)


def tables(capabilities: Sequence[int], cases: Sequence[Case]) -> Iterator[Table]:
    """One table for each capability."""
    launches = recorded(cases)
    for capability in capabilities:
        start = time.perf_counter()
        found = sorted(each.resources for each in compiled(launches, capability))
        seconds = time.perf_counter() - start
        spilling = sum(each.spill_stores + each.spill_loads > 0 for each in found)
        yield Table(
            f"sm_{capability}, {NAMES.get(capability, 'another')}",
            [each._asdict() for each in found],
            f"{len(found)} kernels compiled in {seconds:.0f} s; {spilling} of them spill. Shared memory: at most "
            f"{max(each.shared for each in found):,} of {SHARED_MEMORY[capability]:,} bytes.",
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__)
    options.add_argument("--arch", type=int, nargs="+", default=list(SHARED_MEMORY), choices=SHARED_MEMORY)
    options.add_argument("--all", action="store_true", help="every combination of flags (minutes)")
    options.add_argument("--json", type=Path, help="write the figures to this file, too")
    given = options.parse_args(argv)
    cases = all_cases() if given.all else usual_cases()
    header = environment(torch.device("cpu")) | {"commit": commit()}
    report(tables(given.arch, cases), header, given.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
