"""b: the loss's backends against the reference in float64, values and gradients, on the same rounded inputs."""

import importlib.util
import os
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from benchmarks.gpu.problems import (
    Outcome,
    Problem,
    exact,
    make_inputs,
    outcome,
    raised,
    relative_error,
    repeated,
)
from benchmarks.gpu.sections import Part, Row, Setting
from benchmarks.peers import QWEN3_VOCABULARY
from srpo_trl.loss.ops import Backend, DistillationSpec, token_statistics

TITLE = "Loss against the reference in float64"
# Largest relative norm of an error: of values, and of gradients, which are rounded to the dtype of their inputs.
TOLERANCES = {
    torch.float32: (1e-4, 1e-4),
    torch.bfloat16: (2e-3, 5e-3),
    torch.float16: (2e-3, 2e-3),
}
SUPPORTS = {
    "top K + tail": {"topk": 100},
    "top K renormalized": {"topk": 100, "add_tail": False},
    "sampled token": {"estimator": "sampled"},
    "full vocabulary": {"topk": None},
}
_AT_LARGE_LOGITS = 0.02  # float32 numbers there are 0.008 apart
NOTE = (
    "Relative norms of the errors, the largest over the values that are given of each token and over the gradients. "
    "The inputs are the same: rounded to the dtype and, for the reference, raised to float64."
)


def parts(setting: Setting) -> list[Part]:
    """Supports and dtypes first, then heads, numbers of tokens, float16's range and repetition."""
    device = torch.device(setting.device)
    found = []
    for backend in backends(device):
        for group, problems in grouped(setting.tiny).items():
            name, rows = f"{group}, {backend}", partial(compared, problems, backend, device)
            found.append(Part(name, TITLE, rows, NOTE))
        found += [
            Part(f"carried, {backend}", TITLE, partial(carried, backend, device, setting.tiny), NOTE),
            Part(f"statistics, {backend}", TITLE, partial(statistics, backend, device, setting.tiny), NOTE),
            Part(
                f"float16's range, {backend}",
                "Beyond what float16 holds",
                partial(beyond_float16, backend, device, setting.tiny),
            ),
            Part(
                f"twice the same, {backend}",
                "The same call twice",
                partial(repetitions, backend, device, setting.tiny),
            ),
        ]
    return found


def backends(device: torch.device) -> list[Backend]:
    """Those that run here, the kernels first."""
    runs = device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"
    has_kernels = runs and importlib.util.find_spec("triton") is not None
    return ["triton", "chunked"] if has_kernels else ["chunked"]


def grouped(tiny: bool) -> dict[str, list[Problem]]:
    """The problems, by part."""
    size = (7, 16, 1001) if tiny else (300, 256, 33_003)
    dtypes = (torch.bfloat16, torch.float16, torch.float32)
    groups = {
        _name(dtype): [
            Problem(f"{support}, alpha {alpha:g}", DistillationSpec(alpha=alpha, **options), dtype, size)
            for support, options in SUPPORTS.items()
            for alpha in _alphas(options, tiny and dtype != torch.float32)
        ]
        for dtype in (dtypes[::2] if tiny else dtypes)
    }
    spec = DistillationSpec()
    heads = {
        "bias": {"bias": True},
        "softcap": {"softcap": 5.0, "scale": 0.7},
        "bias and softcap": {"bias": True, "softcap": 4.0},
        "tied": {"tied": True},
        "frozen head, as under LoRA": {"frozen_head": True},
    }
    groups["heads"] = [
        Problem(f"{head}, {support}", DistillationSpec(**SUPPORTS[support]), torch.bfloat16, size, **options)
        for head, options in heads.items()
        for support in (("top K + tail",) if tiny else ("top K + tail", "full vocabulary"))
    ]
    divergences = {"mix": {"is_linear": True}, "clip": {}, "mix and clip": {"is_linear": True}}
    groups["mix and clip"] = [
        Problem(
            f"{name}, {support}",
            DistillationSpec(**options, **SUPPORTS[support], pointwise_clip=0.01 if "clip" in name else None),
            torch.bfloat16,
            size,
        )
        for name, options in divergences.items()
        for support in ("top K + tail", "full vocabulary")
    ]
    counts = (0, 1, 13) if tiny else (0, 1, 333)
    groups["numbers of tokens"] = [
        Problem(f"N = {count}", spec, torch.bfloat16, (count, *size[1:])) for count in counts
    ]
    if not tiny:
        whole = (8192, 1024, QWEN3_VOCABULARY)
        groups["N = 8,192"] = [Problem("N = 8,192", spec, torch.bfloat16, whole)]
    return groups


def _alphas(options: dict[str, Any], only_one: bool) -> tuple[float, ...]:
    if "estimator" in options:
        return (1.0,)  # which the sampled token does not depend on
    return (0.5,) if only_one else (0.5, 0.0, 1.0)


def compared(problems: list[Problem], backend: Backend, device: torch.device) -> Iterator[Row]:
    """One row a problem."""
    for problem in problems:
        inputs = make_inputs(problem, device)
        found, true = outcome(inputs, problem.spec, backend), exact(inputs, problem.spec)
        yield _row(problem, backend) | verdict(found, true, problem.dtype)


def verdict(found: Outcome, true: Outcome, dtype: torch.dtype) -> Row:
    """The largest errors of values and of gradients, and whether they are small enough."""
    values, gradients = (
        max(relative_error(ours, theirs) for ours, theirs in zip(*sides, strict=True))
        for sides in ((found.result, true.result), (found.gradients, true.gradients))
    )
    most_of_values, most_of_gradients = TOLERANCES[dtype]
    is_right = values <= most_of_values and gradients <= most_of_gradients
    return {"values": values, "gradients": gradients, "verdict": "ok" if is_right else "OFF"}


def _row(problem: Problem, backend: str) -> Row:
    num_tokens, hidden_size, vocab_size = problem.sizes
    return {
        "backend": backend,
        "problem": problem.name,
        "dtype": _name(problem.dtype),
        "N, D, V": f"{num_tokens:,}, {hidden_size:,}, {vocab_size:,}",
    }


def statistics(backend: Backend, device: torch.device, tiny: bool) -> Iterator[Row]:
    """The teacher's pass: entropy and log-sum-exp."""
    size = (7, 16, 1001) if tiny else (300, 256, 33_003)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        problem = Problem("teacher's statistics", DistillationSpec(), dtype, size, bias=True, softcap=6.0)
        inputs = make_inputs(problem, device)
        sides = ((inputs, backend), (raised(inputs), "reference"))
        found, true = (
            token_statistics(side.teacher_hidden_ND, side.teacher_head, 0.7, backend=name)
            for side, name in sides
        )
        error = max(relative_error(ours, theirs) for ours, theirs in zip(found, true, strict=True))
        is_right = error <= TOLERANCES[dtype][0]
        yield _row(problem, backend) | {"values": error, "verdict": "ok" if is_right else "OFF"}


def carried(backend: Backend, device: torch.device, tiny: bool) -> Iterator[Row]:
    """The loss with the teacher's log-sum-exp from its own pass, as in training, and with both heads' products."""
    size = (7, 16, 1001) if tiny else (300, 256, 33_003)
    for support, options in SUPPORTS.items():
        problem = Problem(
            f"log-sum-exp carried, {support}", DistillationSpec(**options), torch.bfloat16, size
        )
        inputs = make_inputs(problem, device)
        temperature = problem.spec.temperature
        log_sum_exp_N = token_statistics(
            inputs.teacher_hidden_ND, inputs.teacher_head, temperature, backend=backend
        ).log_sum_exp_N
        found = outcome(inputs, problem.spec, backend, teacher_log_sum_exp_N=log_sum_exp_N)
        yield _row(problem, backend) | verdict(found, exact(inputs, problem.spec), problem.dtype)


def beyond_float16(backend: Backend, device: torch.device, tiny: bool) -> Iterator[Row]:
    """Logits above float16's largest number are no trouble; gradients above it must show, for the scaler to see."""
    size = (7, 16, 1001) if tiny else (300, 256, 33_003)
    problem = Problem("logits above 65,504", DistillationSpec(), torch.float16, size, offset=76_800.0)
    inputs = make_inputs(problem, device)
    found, true = outcome(inputs, problem.spec, backend), exact(inputs, problem.spec)
    largest = float(
        (inputs.hidden_ND.detach().double() @ inputs.head.weight_VD.detach().double().T).abs().max()
    )
    error = relative_error(found.result.loss, true.result.loss)
    yield _row(problem, backend) | {
        "what": f"largest logit {largest:,.0f}; relative error of the loss {error:.1e}",
        "verdict": "ok" if largest > 65_504 and error <= 0.01 else "OFF",
    }
    problem = Problem("loss scaled by 2^40", DistillationSpec(), torch.float16, size)
    inputs = make_inputs(problem, device)
    scaled = inputs._replace(coefficient_N=inputs.coefficient_N * 2.0**40)
    gradients = outcome(scaled, problem.spec, backend).gradients
    shows = all(not gradient.isfinite().all() for gradient in gradients)
    yield _row(problem, backend) | {
        "what": "gradients overflow to infinity" if shows else "gradients stay finite, which a scaler misses",
        "verdict": "ok" if shows else "OFF",
    }


def repetitions(backend: Backend, device: torch.device, tiny: bool) -> Iterator[Row]:
    """Equal bits of values and gradients in two calls."""
    size = (7, 16, 1001) if tiny else (1000, 256, 33_003)
    for support, options in SUPPORTS.items():
        problem = Problem(support, DistillationSpec(**options), torch.bfloat16, size, bias=True)
        make = partial(outcome, make_inputs(problem, device), problem.spec, backend)
        yield _row(problem, backend) | {"verdict": "bit-equal" if repeated(make) else "DIFFERS"}


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
