"""Which micro-batch fits, and what helps where none does: every proposal is estimated before it is made."""

import copy
import dataclasses
from bisect import bisect_right
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from srpo_trl.commands.plan.engines import Engine, Kind
from srpo_trl.commands.plan.estimate import MemoryEstimate
from srpo_trl.commands.plan.phases import estimate_memory
from srpo_trl.commands.plan.run import RunSpec
from srpo_trl.commands.plan.step import FakeModels

# A remedy that saves less than one part in so many of the peak is not worth a line.
_WORTHWHILE = 100


Tell = Callable[[str], None]


def _silent(text: str) -> None:
    """Say nothing."""


class Remedy(NamedTuple):
    """What to set, and the estimate with it and all remedies before it, for micro-batches of one row."""

    change: str
    estimate: MemoryEstimate


class Fit(NamedTuple):
    """What fits in a GPU's memory.

    Attributes:
        largest: the estimate of the largest micro-batch that fits; None where none does, or no memory was given.
        remedies: changes that help where none does.
    """

    largest: MemoryEstimate | None = None
    remedies: tuple[Remedy, ...] = ()


def find_fit(run: RunSpec, models: FakeModels, room: int, tell: Tell = _silent) -> Fit:
    """Return what fits in `room` bytes of a GPU; `tell` is told what is estimated."""
    largest = largest_micro_batch(run, models, room, tell)
    return Fit(largest, () if largest else tuple(_remedies(run, models, room, tell)))


def micro_batches(run: RunSpec) -> list[int]:
    """Return the micro-batches that leave the optimizer step and the rollouts sampled at a time as they are."""
    return [
        rows
        for rows in range(1, run.rollouts_per_step + 1)
        if run.rollouts_per_step % rows == 0 and run.rollouts_per_sampling % rows == 0
    ]


def largest_micro_batch(
    run: RunSpec, models: FakeModels, room: int, tell: Tell = _silent
) -> MemoryEstimate | None:
    """Return the estimate of the largest micro-batch whose peak is at most `room` bytes, or None."""
    candidates = micro_batches(run)

    def peak(rows: int) -> int:
        tell(f"Trying micro-batches of {rows}")
        return estimate_memory(run, models, rows).peak

    # A peak never falls with the micro-batch.
    num_fitting = bisect_right(candidates, room, key=peak)
    return estimate_memory(run, models, candidates[num_fitting - 1]) if num_fitting else None


def _remedies(run: RunSpec, models: FakeModels, room: int, tell: Tell) -> Iterator[Remedy]:
    """Yield changes that lower the peak of micro-batches of one row, the cheapest first, until it fits in `room` bytes.

    Each is proposed on top of those before it, and only where it saves something.
    """
    run = _changed(
        run,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=run.rollouts_per_step,
        steps_per_generation=run.rollouts_per_sampling,
    )
    peak = estimate_memory(run, models, 1).peak
    for change, values in _changes(run):
        if peak <= room:
            return
        candidate = _changed(run, **values)
        tell(f"Trying {change}")
        estimate = estimate_memory(candidate, models, 1)
        if estimate.peak < peak - peak // _WORTHWHILE:
            run, peak = candidate, estimate.peak
            yield Remedy(change, estimate)


def _changes(run: RunSpec) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what can be set in this run, as text and as values."""
    training, engine, fewest = run.training, run.engine, _fewest_steps_per_generation(run)
    longest = max((run.teacher_prompt_length(s) for s in run.scorers), default=0) + run.completion_length
    with_engine = f"--accelerate_config {{}} --num_processes {engine.num_processes}"
    if not training.gradient_checkpointing:
        yield "gradient_checkpointing: true", {"gradient_checkpointing": True}
    if run.vllm_bytes and not training.vllm_enable_sleep_mode:
        sleep = "vllm_enable_sleep_mode: true (vLLM gives its memory back while the model trains)"
        yield sleep, {"vllm_enable_sleep_mode": True}
    if not training.use_vllm and fewest < (training.steps_per_generation or 1):
        fewer = f"steps_per_generation: {fewest} (fewer rollouts are sampled at a time)"
        yield fewer, {"steps_per_generation": fewest}
    if run.scorers and training.teacher_tokens_per_pass > longest:
        shorter = f"teacher_tokens_per_pass: {longest} (one of the longest rollouts a pass)"
        yield shorter, {"teacher_tokens_per_pass": longest}
    if training.method_record.distilling and not training.teacher_states_on_cpu:
        yield "teacher_states_on_cpu: true", {"teacher_states_on_cpu": True}
    if engine.num_processes > 1 and not engine.shards_parameters:
        yield with_engine.format("fsdp2"), {"engine": _sharded(engine, "fsdp2", on_cpu=False)}
    if not run.model_config.use_peft:
        adapter = dataclasses.replace(run.model_config, use_peft=True, dtype="bfloat16")
        yield "use_peft: true, dtype: bfloat16 (LoRA on a bf16 base)", {"model_config": adapter}
    if not engine.parameters_on_cpu:
        yield with_engine.format("zero3_offload"), {"engine": _sharded(engine, "zero3", on_cpu=True)}


def _fewest_steps_per_generation(run: RunSpec) -> int:
    """Return the fewest micro-batches of one row whose rollouts, over all processes, are whole groups."""
    rollouts, group = run.rollouts_per_sampling, run.training.num_generations or 1
    return next(
        steps
        for steps in range(1, rollouts + 1)
        if rollouts % steps == 0 and steps * run.engine.num_processes % group == 0
    )


def _changed(run: RunSpec, **values: Any) -> RunSpec:
    """Return the run with other values of its own or of the trainer's options."""
    own = {name: values.pop(name) for name in ("engine", "model_config") if name in values}
    training = copy.copy(run.training)
    for name, value in values.items():
        setattr(training, name, value)
    return dataclasses.replace(run, training=training, **own)


def _sharded(engine: Engine, kind: Kind, *, on_cpu: bool) -> Engine:
    return dataclasses.replace(
        engine, kind=kind, reshards=True, parameters_on_cpu=on_cpu, optimizer_on_cpu=on_cpu
    )
