"""d: whole training steps of SRPO, GRPO and TRL's trainers on replayed rollouts, beside `srpo-trl plan`'s forecast."""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from functools import partial
from multiprocessing import get_context

import torch

from benchmarks.gpu.sections import Part, Row, Setting
from benchmarks.measure import free_memory
from benchmarks.step_measure import Run, medians, train
from benchmarks.step_rollouts import Case
from benchmarks.step_trainers import TRL_GRPO, TRL_SDPO
from benchmarks.tables import DOES_NOT_FIT
from srpo_trl.methods import METHODS

SHAPES = ("Qwen3-0.6B", "Qwen3-1.7B")
CONTENDERS = ("srpo", "grpo", TRL_SDPO, TRL_GRPO, "sdpo")  # in order of worth
MICRO_BATCHES = (8, 4, 2, 1)  # the first that fits
NOTE = (
    "Seconds of an optimizer step and of its parts, medians after one step that warms up: 64 rollouts of 1,024 tokens "
    "in groups of 8, of which 3 have failed. Rows at once: of a micro-batch, as many as fit. GB: the allocator's peak "
    "above the model's weights; planned: what `srpo-trl plan` says of the same. Every trainer has a fresh model. What "
    "is equal among them and what is not: `benchmarks.step`."
)


def parts(setting: Setting) -> list[Part]:
    """One part for each trainer and shape."""
    device = torch.device(setting.device)
    shapes = ("tiny",) if setting.tiny else SHAPES
    return [
        Part(
            f"{shape}, {contender}",
            f"Training step, {shape}, gradient checkpointing",
            partial(measured, shape, contender, device, setting.tiny),
            NOTE,
        )
        for shape in shapes
        for contender in CONTENDERS
    ]


def _case(shape: str, micro_batch: int, tiny: bool) -> Case:
    if tiny:
        return Case(shape, 24, 40, 16, micro_batch, num_generations=8, prompt_tokens=96)
    return Case(shape, 1024, 40, 64, micro_batch, num_generations=8, prompt_tokens=256)


def measured(shape: str, contender: str, device: torch.device, tiny: bool) -> Iterator[Row]:
    """The trainer with the largest micro-batch that fits; the forecast is made beside it, on another core."""
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as beside:
        forecasts = {}
        if contender in METHODS and device.type == "cuda":
            first = _case(shape, MICRO_BATCHES[0], tiny)
            forecasts[first] = beside.submit(forecast_gigabytes, contender, first, device)
        case, run = _largest_run(shape, contender, device, tiny)
        row: Row = {"trainer": contender, "rows at once": case.micro_batch}
        if run is None:
            yield row | {"seconds": DOES_NOT_FIT}
            return
        planned: float | str = ""
        if contender in METHODS:
            made = forecasts.get(case)
            planned = made.result() if made else forecast_gigabytes(contender, case, device)
        # A CPU's peak is that of the whole process.
        peak = run.peak_bytes / 1e9 if device.type == "cuda" else ""
        yield row | {"seconds": run.seconds} | medians([run]) | {"GB": peak, "GB planned": planned}


def _largest_run(shape: str, contender: str, device: torch.device, tiny: bool) -> tuple[Case, Run | None]:
    """Return what was run, and nothing where not even one row at a time fits."""
    for micro_batch in MICRO_BATCHES:
        case, run = _case(shape, micro_batch, tiny), None
        with suppress(torch.OutOfMemoryError):
            run = train(contender, case, device, 1 if tiny else 3)
        free_memory(device)  # only now, as the error held on to what the step had made
        if run is not None:
            break
    return case, run


def forecast_gigabytes(method: str, case: Case, device: torch.device) -> float | str:
    """Return the planned peak above the weights, or why there is none: what was measured must not be lost with it."""
    try:
        from benchmarks.gpu.planned import forecast

        return forecast(method, case, device) / 1e9
    except Exception as error:
        return f"fails: {type(error).__name__}: {error}"[:120].replace("\n", " ")
