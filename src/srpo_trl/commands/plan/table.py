"""An estimate as text and as JSON."""

from collections.abc import Iterator
from typing import Any

from rich.table import Table

from srpo_trl.commands.plan.estimate import PHASES, MemoryEstimate
from srpo_trl.commands.plan.fitting import Fit
from srpo_trl.commands.plan.model import ModelShape
from srpo_trl.commands.plan.published import PublishedSizes
from srpo_trl.commands.plan.run import RunSpec

GIB = 2**30
_NAMES = {"single": "one process", "ddp": "DDP", "fsdp2": "FSDP2"} | {
    f"zero{i}": f"ZeRO-{i}" for i in (1, 2, 3)
}


def _gibibytes(num_bytes: int) -> str:
    """Return the number as text in GiB; a tiny model's in MiB."""
    return f"{num_bytes / GIB:.2f} GiB" if num_bytes >= GIB // 10 else f"{num_bytes / 2**20:.1f} MiB"


def headline(run: RunSpec, shape: ModelShape) -> str:
    """Return what is planned, in a few lines."""
    trainable = sum(p.numel for p in shape.parameters if p.is_trainable)
    processes = "" if run.engine.kind == "single" else f" on {run.engine.num_processes} processes"
    mixed = "bf16" if run.training.bf16 else "fp16" if run.training.fp16 else None
    unread = [
        str(c.name_or_path) for c in (run.model, *run.teachers.values()) if isinstance(c, PublishedSizes)
    ]
    formats = f"{run.model_config.dtype} weights" + (f", computed in {mixed}" if mixed else "")
    return (
        f"{run.model_config.model_name_or_path}: {shape.num_parameters:,} parameters, {trainable:,} trained; "
        f"{formats}; {_NAMES[run.engine.kind]}{processes}\n"
        f"longest prompt {run.prompt_length} tokens, completion {run.completion_length}"
        + (f", teacher's prompt {shown}" if (shown := run.longest_teacher_prompt) else "")
        + f"; {run.rollouts_per_sampling} rollouts sampled at a time, {run.rollouts_per_step} in a step, per process"
        + (
            f"\nNo config.json of {', '.join(unread)} could be read: the published sizes are taken."
            if unread
            else ""
        )
    )


def memory_table(estimate: MemoryEstimate, run: RunSpec) -> Table:
    """Return the components in each phase, for one process, with totals."""
    where = "GPU" if run.on_gpu else "process"
    sizes = f"per_device_train_batch_size {estimate.micro_batch}, gradient_accumulation_steps {estimate.accumulation}"
    made = Table(title=f"{sizes}: memory of one {where}, GiB", title_justify="left", caption_justify="left")
    for name in ("", "part"):
        made.add_column(name, no_wrap=True)
    for phase in PHASES:
        made.add_column(phase, justify="right", no_wrap=True)

    def add_rows(total_name: str, part: str, count: int, *, on_cpu: bool) -> None:
        for c in (c for c in estimate.components if c.on_cpu == on_cpu):
            shard = f"1/{c.num_shards}" if c.num_shards > 1 else "whole"
            made.add_row(c.name, "in CPU memory, " * on_cpu + shard, *_cells(c.phases))
        made.add_section()
        totals = {phase: count * estimate.total(phase, on_cpu=on_cpu) for phase in PHASES}
        peak = None if on_cpu else estimate.peak_phase
        made.add_row(total_name, part, *_cells(totals, peak), style="bold")

    add_rows(f"total of one {where}", "", 1, on_cpu=False)
    if estimate.cpu_peak:
        count = run.engine.processes_per_machine
        add_rows("total of one machine", f"{count} processes", count, on_cpu=True)
    return made


def _cells(phases: dict[str, int], peak: str | None = None) -> list[str]:
    numbers = [phases.get(phase, 0) / GIB for phase in PHASES]
    digits = 2 if max(numbers) >= 0.1 else 4
    return [
        (f"{number:.{digits}f}" if number else "") + " *" * (phase == peak)
        for phase, number in zip(PHASES, numbers, strict=True)
    ]


def verdict(estimate: MemoryEstimate, fit: Fit, run: RunSpec, room: int) -> Iterator[str]:
    """Yield what follows from the estimate of the run as it is, line by line.

    Args:
        estimate: of the run as it is.
        fit: what fits in `room`.
        run: its memory may be unknown.
        room: bytes of one GPU that may be used.
    """
    peak = f"Peak: {_gibibytes(estimate.peak)}, {estimate.peak_phase} (*)."
    if run.memory is None:
        yield f"{peak} Give --gpu_memory to see what fits."
        return
    answer = "It fits in" if estimate.peak <= room else "It does not fit in"
    yield f"{peak} {answer} {_gibibytes(room)}: {_gibibytes(run.memory)} less the margin."
    if fit.largest is not None:
        yield f"Largest micro-batch that fits, same optimizer step ({_gibibytes(fit.largest.peak)}):"
        yield f"  per_device_train_batch_size: {fit.largest.micro_batch}"
        yield f"  gradient_accumulation_steps: {fit.largest.accumulation}"
        yield f"  steps_per_generation: {run.rollouts_per_sampling // fit.largest.micro_batch}"
        return
    yield "No micro-batch fits, not even one row. What helps, each on top of those before it:"
    for change, remedied in fit.remedies:
        fits = ", which fits" if remedied.peak <= room else ""
        yield f"  {change}: {_gibibytes(remedied.peak)}, {remedied.peak_phase}{fits}"
    if not fit.remedies or fit.remedies[-1].estimate.peak > room:
        yield "That is not enough: take more or larger GPUs, shorter lengths, or a smaller model."


def plan_as_json(text: str, estimate: MemoryEstimate, fit: Fit, memory: int | None) -> dict[str, Any]:
    """Return everything that is printed, in bytes."""
    return {
        "headline": text,
        "memory_bytes": memory,
        "plan": _estimate_as_json(estimate),
        "largest_micro_batch": fit.largest and _estimate_as_json(fit.largest),
        "remedies": [{"change": r.change, "peak_bytes": r.estimate.peak} for r in fit.remedies],
    }


def _estimate_as_json(estimate: MemoryEstimate) -> dict[str, Any]:
    return {
        "per_device_train_batch_size": estimate.micro_batch,
        "gradient_accumulation_steps": estimate.accumulation,
        "peak_phase": estimate.peak_phase,
        "peak_bytes": estimate.peak,
        "cpu_bytes": estimate.cpu_peak,
        "totals": {phase: estimate.total(phase) for phase in PHASES},
        "components": [c._asdict() for c in estimate.components],
    }
