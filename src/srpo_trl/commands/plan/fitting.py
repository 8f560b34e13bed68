"""Which micro-batch fits, and what helps where none does: every proposal is planned before it is made."""

import copy
import dataclasses
from bisect import bisect_right
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from srpo_trl.commands.plan.engines import Engine
from srpo_trl.commands.plan.estimate import Plan
from srpo_trl.commands.plan.moments import plan_memory
from srpo_trl.commands.plan.passes import Passes
from srpo_trl.commands.plan.run import Run

# A remedy that saves less than one part in so many of the peak is not worth a line.
_WORTHWHILE = 100


class Remedy(NamedTuple):
    """A change of the run, together with all proposed before it.

    Attributes:
        change: what to set.
        plan: of the changed run, with micro-batches of one row.
    """

    change: str
    plan: Plan


class Findings(NamedTuple):
    """What was found for a GPU's memory.

    Attributes:
        largest: the plan of the largest micro-batch that fits; None where none does, or no memory was given.
        remedies: changes that help where none does.
    """

    largest: Plan | None = None
    remedies: tuple[Remedy, ...] = ()


def judge(run: Run, passes: Passes, room: int) -> Findings:
    """Return what fits in `room` bytes of a GPU."""
    largest = largest_micro_batch(run, passes, room)
    return Findings(largest, () if largest else tuple(remedies(run, passes, room)))


def micro_batches(run: Run) -> list[int]:
    """Return the micro-batches that leave the optimizer step and the rollouts sampled at a time as they are."""
    return [
        rows
        for rows in range(1, run.rollouts_per_step + 1)
        if run.rollouts_per_step % rows == 0 and run.rollouts_per_sampling % rows == 0
    ]


def largest_micro_batch(run: Run, passes: Passes, room: int) -> Plan | None:
    """Return the plan of the largest micro-batch whose peak is at most `room` bytes, or None."""
    candidates = micro_batches(run)
    # A peak never falls with the micro-batch.
    num_fitting = bisect_right(candidates, room, key=lambda rows: plan_memory(run, passes, rows).peak)
    return plan_memory(run, passes, candidates[num_fitting - 1]) if num_fitting else None


def one_row_at_a_time(run: Run) -> Run:
    """Return the run with micro-batches of one row; steps and rollouts sampled at a time stay."""
    return _with_options(
        run,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=run.rollouts_per_step,
        steps_per_generation=run.rollouts_per_sampling,
    )


def remedies(run: Run, passes: Passes, room: int) -> Iterator[Remedy]:
    """Yield changes that lower the peak of micro-batches of one row, the cheapest first, until it fits in `room` bytes.

    Each is proposed on top of those before it, and only where it saves something.
    """
    run = one_row_at_a_time(run)
    peak = plan_memory(run, passes, 1).peak
    for change, changed in _changes(run):
        if peak <= room:
            return
        candidate = changed(run)
        plan = plan_memory(candidate, passes, 1)
        if plan.peak < peak - peak // _WORTHWHILE:
            run, peak = candidate, plan.peak
            yield Remedy(change, plan)


def _changes(run: Run) -> Iterator[tuple[str, Callable[[Run], Run]]]:
    """Yield what can be set in this run and what it changes."""
    training, engine = run.training, run.engine
    if not training.gradient_checkpointing:
        yield "gradient_checkpointing: true", lambda r: _with_options(r, gradient_checkpointing=True)
    if run.vllm_bytes and not training.vllm_enable_sleep_mode:
        yield (
            "vllm_enable_sleep_mode: true (vLLM gives its memory back while the model trains)",
            lambda r: _with_options(r, vllm_enable_sleep_mode=True),
        )
    fewest = _fewest_steps_per_generation(run)
    if not training.use_vllm and fewest < (training.steps_per_generation or 1):
        yield (
            f"steps_per_generation: {fewest} (fewer rollouts are sampled at a time)",
            lambda r: _with_options(r, steps_per_generation=fewest),
        )
    longest = run.teacher_prompt_length + run.completion_length
    if run.has_teacher and training.teacher_tokens_per_pass > longest:
        yield (
            f"teacher_tokens_per_pass: {longest} (one of the longest rollouts a pass)",
            lambda r: _with_options(r, teacher_tokens_per_pass=longest),
        )
    if run.has_teacher and not training.teacher_states_on_cpu:
        yield "teacher_states_on_cpu: true", lambda r: _with_options(r, teacher_states_on_cpu=True)
    if engine.num_processes > 1 and not engine.shards_parameters:
        yield (
            f"--accelerate_config configs/accelerate/fsdp2.yaml --num_processes {engine.num_processes}",
            lambda r: dataclasses.replace(r, engine=_sharded(r.engine, "fsdp2")),
        )
    if not run.model_config.use_peft:
        yield (
            "use_peft: true, dtype: bfloat16 (LoRA on a bf16 base)",
            lambda r: dataclasses.replace(
                r, model_config=dataclasses.replace(r.model_config, use_peft=True, dtype="bfloat16")
            ),
        )
    if not engine.parameters_on_cpu:
        yield (
            f"--accelerate_config configs/accelerate/zero3_offload.yaml --num_processes {engine.num_processes}",
            lambda r: dataclasses.replace(r, engine=_sharded(r.engine, "zero3", on_cpu=True)),
        )


def _fewest_steps_per_generation(run: Run) -> int:
    """Return the fewest micro-batches of one row whose rollouts, over all processes, are whole groups."""
    rollouts, group = run.rollouts_per_sampling, run.num_generations
    return next(
        steps
        for steps in range(1, rollouts + 1)
        if rollouts % steps == 0 and steps * run.engine.num_processes % group == 0
    )


def _with_options(run: Run, **options: Any) -> Run:
    """Return the run with other options of the trainer; the rest was checked when the run was read."""
    training = copy.copy(run.training)
    for name, value in options.items():
        setattr(training, name, value)
    return dataclasses.replace(run, training=training)


def _sharded(engine: Engine, kind: Any, *, on_cpu: bool = False) -> Engine:
    return dataclasses.replace(
        engine, kind=kind, reshards=True, parameters_on_cpu=on_cpu, optimizer_on_cpu=on_cpu
    )
