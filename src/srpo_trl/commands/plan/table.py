"""A plan as text and as JSON."""

from collections.abc import Iterator
from typing import Any

from rich.table import Table

from srpo_trl.commands.plan.estimate import MOMENTS, Component, Plan
from srpo_trl.commands.plan.fitting import Findings
from srpo_trl.commands.plan.run import Run
from srpo_trl.commands.plan.shape import ModelShape

GIB = 2**30
_NAMES = {
    "single": "one process",
    "ddp": "DDP",
    "fsdp2": "FSDP2",
    "zero1": "ZeRO-1",
    "zero2": "ZeRO-2",
    "zero3": "ZeRO-3",
}


def gibibytes(num_bytes: int) -> str:
    """Return the number as text in GiB; a tiny model's in MiB."""
    return f"{num_bytes / GIB:.2f} GiB" if num_bytes >= GIB // 10 else f"{num_bytes / 2**20:.1f} MiB"


def headline(run: Run, shape: ModelShape) -> str:
    """Return what is planned, in a few lines."""
    training, engine = run.training, run.engine
    trainable = sum(p.numel for p in shape.trainable)
    processes = "" if engine.kind == "single" else f" on {engine.num_processes} processes"
    mixed = "bf16" if training.bf16 else "fp16" if training.fp16 else None
    formats = f"{run.model_config.dtype} weights" + (f", computed in {mixed}" if mixed else "")
    return (
        f"{run.model_config.model_name_or_path}: {shape.num_parameters:,} parameters, {trainable:,} trained; "
        f"{formats}; {_NAMES[engine.kind]}{processes}\n"
        f"longest prompt {run.prompt_length} tokens, completion {run.completion_length}"
        + (f", teacher's prompt {run.teacher_prompt_length}" if run.has_teacher else "")
        + f"; {run.rollouts_per_sampling} rollouts sampled at a time, {run.rollouts_per_step} in a step, per process"
    )


def table(plan: Plan, run: Run) -> Table:
    """Return the components at each moment, for one process, with totals."""
    where = "GPU" if run.on_gpu else "process"
    title = (
        f"per_device_train_batch_size {plan.micro_batch}, gradient_accumulation_steps {plan.accumulation}: "
    )
    made = Table(title=title + f"memory of one {where}, GiB", title_justify="left", caption_justify="left")
    made.add_column("", no_wrap=True)
    made.add_column("part", no_wrap=True)
    for moment in MOMENTS:
        made.add_column(moment, justify="right", no_wrap=True)
    on_cpu = [c for c in plan.components if c.on_cpu]
    for component in plan.components:
        if not component.on_cpu:
            made.add_row(component.name, _held(component), *_cells(component.moments))
    made.add_section()
    totals = {moment: plan.total(moment) for moment in MOMENTS}
    made.add_row(f"total of one {where}", "", *_cells(totals, peak=plan.peak_moment), style="bold")
    if on_cpu:
        made.add_section()
        for component in on_cpu:
            made.add_row(component.name, "on the host, " + _held(component), *_cells(component.moments))
        count = run.engine.processes_per_machine
        host = {moment: count * plan.total(moment, on_cpu=True) for moment in MOMENTS}
        made.add_row("total of one host", f"{count} processes", *_cells(host), style="bold")
    return made


def _held(component: Component) -> str:
    return f"1/{component.num_parts}" if component.num_parts > 1 else "whole"


def _cells(moments: dict[str, int], peak: str | None = None) -> list[str]:
    numbers = [moments.get(moment, 0) / GIB for moment in MOMENTS]
    digits = 2 if max(numbers) >= 0.1 else 4
    return [
        (f"{number:.{digits}f}" if number else "") + (" *" if moment == peak else "")
        for moment, number in zip(MOMENTS, numbers, strict=True)
    ]


def verdict(plan: Plan, findings: Findings, run: Run, room: int) -> Iterator[str]:
    """Yield what follows from the plan, line by line.

    Args:
        plan: of the run as it is.
        findings: see `Findings`.
        run: its memory may be unknown.
        room: bytes of one GPU that may be used.
    """
    peak = f"Peak: {gibibytes(plan.peak)}, {plan.peak_moment} (*)."
    if run.memory is None:
        yield f"{peak} Give --gpu_memory to see what fits."
        return
    answer = "It fits in" if plan.peak <= room else "It does not fit in"
    yield f"{peak} {answer} {gibibytes(room)}: {gibibytes(run.memory)} less the margin."
    if findings.largest is not None:
        yield f"Largest micro-batch that fits, same optimizer step ({gibibytes(findings.largest.peak)}):"
        yield f"  per_device_train_batch_size: {findings.largest.micro_batch}"
        yield f"  gradient_accumulation_steps: {findings.largest.accumulation}"
        yield f"  steps_per_generation: {run.rollouts_per_sampling // findings.largest.micro_batch}"
        return
    yield "No micro-batch fits, not even one row. What helps, each on top of those before it:"
    for remedy in findings.remedies:
        fits = ", which fits" if remedy.plan.peak <= room else ""
        yield f"  {remedy.change}: {gibibytes(remedy.plan.peak)}, {remedy.plan.peak_moment}{fits}"
    if not findings.remedies or findings.remedies[-1].plan.peak > room:
        yield "That is not enough: take more or larger GPUs, shorter lengths, or a smaller model."


def as_json(text: str, plan: Plan, findings: Findings, run: Run) -> dict[str, Any]:
    """Return everything that is printed, in bytes."""
    return {
        "headline": text,
        "memory_bytes": run.memory,
        "plan": _plan_as_json(plan),
        "largest_micro_batch": findings.largest and _plan_as_json(findings.largest),
        "remedies": [{"change": r.change, "peak_bytes": r.plan.peak} for r in findings.remedies],
    }


def _plan_as_json(plan: Plan) -> dict[str, Any]:
    return {
        "per_device_train_batch_size": plan.micro_batch,
        "gradient_accumulation_steps": plan.accumulation,
        "peak_moment": plan.peak_moment,
        "peak_bytes": plan.peak,
        "host_bytes": plan.host_peak,
        "totals": {moment: plan.total(moment) for moment in MOMENTS},
        "components": [c._asdict() for c in plan.components],
    }
