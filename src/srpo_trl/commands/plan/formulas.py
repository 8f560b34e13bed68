"""Bytes of what lies still between the passes, by engine: each a formula of sizes, with its reason.

Legend: n processes.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

from srpo_trl.commands.plan.engines import Engine
from srpo_trl.commands.plan.shape import Parameter

FP64, FP32, MIXED = 8, 4, 2  # bytes of one number
# Bytes of optimizer state per parameter: fixed ones, and numbers in the parameter's own format.
OPTIMIZERS: dict[str, tuple[float, int]] = {
    "adamw_torch": (0, 2),
    "adamw_torch_fused": (0, 2),
    "adamw_torch_8bit": (2, 0),
    "adamw_bnb_8bit": (2, 0),
    "adamw_8bit": (2, 0),
    "paged_adamw_8bit": (2, 0),
    "paged_adamw_32bit": (8, 0),
    "lion_32bit": (4, 0),
    "lion_8bit": (1, 0),
    "paged_lion_32bit": (4, 0),
    "paged_lion_8bit": (1, 0),
    "adagrad": (0, 1),
    "rmsprop": (0, 1),
    "sgd": (0, 0),
}


class StorageDtypes(NamedTuple):
    """How an engine stores and computes parameters.

    Attributes:
        mixed: bf16 or fp16 training.
        engine: see `Engine`.
    """

    mixed: bool
    engine: Engine

    def stored(self, parameter: Parameter) -> float:
        """Bytes of one stored element.

        DeepSpeed converts the whole model to the mixed format. accelerate raises FSDP2's trainable parameters to fp32
        where training is mixed. Else a parameter stays as it was loaded.
        """
        if parameter.itemsize < MIXED:  # quantised
            return parameter.itemsize
        if self.mixed and self.engine.is_zero:
            return MIXED
        if self.mixed and self.engine.kind == "fsdp2" and parameter.is_trainable:
            return FP32
        return parameter.itemsize

    def computed(self, parameter: Parameter) -> float:
        """Bytes of one element of a gathered copy: FSDP2's mixed policy gathers in the mixed format."""
        stored = self.stored(parameter)
        return MIXED if self.mixed and self.engine.shards_parameters and stored >= MIXED else stored


def part(num_bytes: float, num_processes: int) -> int:
    """One process's part of something that all of them share out."""
    return math.ceil(num_bytes / num_processes)


def weight_bytes(parameters: Iterable[Parameter], formats: StorageDtypes) -> int:
    """The weights on one process: whole, or 1/n where the engine shards parameters."""
    total = sum(p.numel * formats.stored(p) for p in parameters)
    return part(total, formats.engine.num_processes if formats.engine.shards_parameters else 1)


def gradient_bytes(trainable: Iterable[Parameter], formats: StorageDtypes, accumulation: int) -> int:
    """Complete gradients on one process, in the format of the weights they belong to.

    ZeRO-2 and -3 keep 1/n. So does FSDP2, but with several micro-batches a step transformers switches its reduction off
    until the last one: until then each process adds up whole gradients, in the format of computation.
    """
    parameters, engine = tuple(trainable), formats.engine
    whole = sum(p.numel * formats.stored(p) for p in parameters)
    if engine.kind in ("single", "ddp", "zero1"):
        return part(whole, 1)
    own = part(whole, engine.num_processes)
    if engine.kind == "fsdp2" and accumulation > 1:
        return max(own, part(sum(p.numel * formats.computed(p) for p in parameters), 1))
    return own


def master_bytes(trainable: Iterable[Parameter], formats: StorageDtypes) -> int:
    """DeepSpeed's own fp32 copy of the weights, 1/n on each process; no other engine keeps one."""
    engine = formats.engine
    return part(FP32 * sum(p.numel for p in trainable), engine.num_processes) if engine.is_zero else 0


def optimizer_bytes(trainable: Iterable[Parameter], formats: StorageDtypes, optimizer: str) -> int:
    """The optimizer's state on one process: AdamW keeps two numbers per parameter, in the format of what it updates."""
    fixed, numbers = OPTIMIZERS[optimizer]
    engine = formats.engine
    total = sum(
        p.numel * (fixed + numbers * (FP32 if engine.is_zero else formats.stored(p))) for p in trainable
    )
    shards = engine.is_zero or engine.kind == "fsdp2"
    return part(total, engine.num_processes if shards else 1)


def teacher_bytes(trainable: Iterable[Parameter], formats: StorageDtypes, kind: str) -> int:
    """One tensor per trainable parameter, laid out like it (`srpo_trl.teacher.weights.TeacherWeights`).

    In fp32 for the moving average, in the weight's format for "base"; the live teacher is the student.
    """
    if kind == "live":
        return 0
    itemsize = {"ema": lambda p: max(FP32, formats.stored(p)), "base": formats.stored}[kind]
    total = sum(p.numel * itemsize(p) for p in trainable)
    return part(total, formats.engine.num_processes if formats.engine.shards_parameters else 1)


def set_aside_bytes(trainable: Iterable[Parameter], formats: StorageDtypes, kind: str) -> int:
    """The student's values that wait while the teacher's are in its parameters.

    All of them where the moving average has another format than the parameters. Values of one format change places one
    parameter at a time, before the pass.
    """
    if kind != "ema":
        return 0
    aside = sum(p.numel * formats.stored(p) for p in trainable if formats.stored(p) < FP32)
    return part(aside, formats.engine.num_processes if formats.engine.shards_parameters else 1)


def bucket_bytes(trainable: Iterable[Parameter], formats: StorageDtypes, hidden_size: int) -> int:
    """Buffers in which gradients are reduced over processes.

    DDP copies all gradients into buckets that stay from the first backward on (torch's gradient_as_bucket_view is
    off). ZeRO-1 and -2 hold a bucket of `reduce_bucket` elements during backward, ZeRO-3 from the start.
    """
    engine = formats.engine
    if engine.kind == "ddp":
        return math.ceil(sum(p.numel * formats.stored(p) for p in trainable))
    if not engine.is_zero:
        return 0
    elements = hidden_size**2 if engine.reduce_bucket is None else engine.reduce_bucket
    return elements * (MIXED if formats.mixed else FP32)


def whole_bytes(
    parameters: Iterable[Parameter], formats: StorageDtypes, *, sampling: bool, backward: bool
) -> int:
    """Weights that a pass holds whole for a while, beside the parts or quantised values that lie there.

    FSDP2: the unit outside of the layers for the whole pass, and three times a layer: the one that computes, the one
    that is gathered ahead, and the flat buffer of its gather. In the backward a unit's whole gradient and the buffer
    that it is reduced from stand beside these. Without resharding, all layers and two times a layer.
    ZeRO-3: up to `max_live` elements stay gathered for reuse; TRL gathers the whole model to sample.
    Quantised weights: bitsandbytes restores one at a time.
    """
    engine, values = formats.engine, tuple(parameters)
    restored = MIXED if formats.mixed else FP32
    if not engine.shards_parameters:
        return max((p.numel * restored for p in values if p.itemsize < MIXED), default=0)
    units = {p.unit: 0.0 for p in values}
    gradients = dict(units)
    for p in values:
        units[p.unit] += p.numel * formats.computed(p)
        gradients[p.unit] += p.numel * formats.computed(p) * p.is_trainable
    total, outside = sum(units.values()), units.pop(None, 0.0)
    layer, gradient = max(units.values(), default=0.0), max(gradients.values()) * backward
    if engine.kind == "zero3":
        live = total if sampling else min(total, engine.max_live * restored + layer)
        return math.ceil(live + gradient)
    if not engine.reshards:
        return math.ceil(total + 2 * layer + 2 * gradient)
    return math.ceil(min(total, outside + 3 * layer) + 2 * gradient)


def hidden_state_bytes(num_tokens: int, hidden_size: int, itemsize: int) -> int:
    """The teacher's hidden states that travel with the rollouts: one vector per distilled token."""
    return num_tokens * hidden_size * itemsize


def teacher_head_bytes(
    vocab_size: int, hidden_size: int, itemsize: float, formats: StorageDtypes, kind: str
) -> int:
    """The teacher's own LM head, kept while its rollouts are trained on; only where the student's is trained.

    A view of the moving average where formats agree. A copy for the live teacher, whose head may move on, for a
    format of its own, and where the engine shards parameters, since the loss needs the head whole.
    """
    is_copy = kind == "live" or formats.engine.shards_parameters or (kind == "ema" and itemsize < FP32)
    return math.ceil(vocab_size * hidden_size * itemsize) if is_copy else 0


def sampling_bytes(num_rows: int, vocab_size: int) -> int:
    """What `generate` makes of the last logits, each (rows, vocabulary) in fp32: two copies, probabilities, a draw."""
    return 4 * num_rows * vocab_size * FP32


def update_bytes(trainable: Iterable[Parameter], formats: StorageDtypes, kind: str) -> int:
    """Temporaries of the teacher's update and distance, one parameter at a time: a square and its copy in float64.

    The square has the teacher's format; a student of another format is copied to it.
    """
    if kind == "live":
        return 0
    n = formats.engine.num_processes if formats.engine.shards_parameters else 1

    def of_one(p: Parameter) -> float:
        stored = formats.stored(p)
        teacher = max(FP32, stored) if kind == "ema" else stored
        return p.numel * (teacher + FP64 + teacher * (teacher != stored))

    return part(max(map(of_one, trainable), default=0), n)


def step_bytes(trainable: Iterable[Parameter], formats: StorageDtypes) -> int:
    """Temporaries of the optimizer's step: none where it is fused.

    ZeRO raises its part of the gradients to fp32, ZeRO-3 in groups of `sub_group` elements; in the host's memory it
    does so where the optimizer is.
    """
    engine = formats.engine
    if not engine.is_zero or engine.optimizer_on_cpu:
        return 0
    own = part(sum(p.numel for p in trainable), engine.num_processes)
    return FP32 * (min(own, engine.sub_group) if engine.kind == "zero3" else own)
