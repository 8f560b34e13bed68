"""Bytes of parameters, and of what belongs to each of them, on one process of an engine."""

import math
from collections.abc import Callable, Iterable

from srpo_trl.commands.plan.engines import Engine
from srpo_trl.commands.plan.model import Parameter

FP32, MIXED = 4, 2  # bytes of one number
# Bytes of optimizer state per parameter: fixed ones, and numbers in the parameter's own format.
OPTIMIZERS: dict[str, tuple[float, int]] = {
    **dict.fromkeys(("adamw_torch", "adamw_torch_fused"), (0, 2)),
    **dict.fromkeys(("adamw_torch_8bit", "adamw_bnb_8bit", "adamw_8bit", "paged_adamw_8bit"), (2, 0)),
    **{"paged_adamw_32bit": (8, 0), "adagrad": (0, 1), "rmsprop": (0, 1), "sgd": (0, 0)},
    **dict.fromkeys(("lion_32bit", "paged_lion_32bit"), (4, 0)),
    **dict.fromkeys(("lion_8bit", "paged_lion_8bit"), (1, 0)),
}


class Storage:
    """How an engine stores parameters, gradients, optimizer state and teacher; all sizes are bytes of one process.

    Args:
        parameters: of the model.
        engine: see `Engine`.
        mixed: whether training is in bf16 or fp16.
        teacher_kind: "ema", "base", "live" or None.
    """

    def __init__(
        self, parameters: Iterable[Parameter], engine: Engine, *, mixed: bool, teacher_kind: str | None
    ) -> None:
        self._parameters = tuple(parameters)
        self._trainable = tuple(p for p in self._parameters if p.is_trainable)
        self._engine, self._mixed, self._teacher_kind = engine, mixed, teacher_kind
        self.num_shards = engine.num_processes if engine.shards_parameters else 1
        self.num_state_shards = engine.num_processes if engine.is_zero else self.num_shards

    def stored(self, parameter: Parameter) -> float:
        """Bytes of one stored element.

        DeepSpeed converts the whole model to the mixed format. accelerate upcasts FSDP2's trainable parameters to fp32
        where training is mixed. Else a parameter stays as it was loaded.
        """
        if parameter.itemsize < MIXED or not self._mixed:  # quantized, or in one precision
            return parameter.itemsize
        if self._engine.is_zero:
            return MIXED
        return FP32 if self._engine.kind == "fsdp2" and parameter.is_trainable else parameter.itemsize

    def computed(self, parameter: Parameter) -> float:
        """Bytes of one element of a gathered copy: FSDP2's mixed policy gathers in the mixed format."""
        stored = self.stored(parameter)
        return MIXED if self._mixed and self._engine.shards_parameters and stored >= MIXED else stored

    def _of_teacher(self, parameter: Parameter) -> float:
        if self._teacher_kind == "ema":
            return max(FP32, self.stored(parameter))
        return self.stored(parameter) if self._teacher_kind == "base" else 0

    def _of_trainable(self, itemsize: Callable[[Parameter], float], num_shards: int) -> int:
        return math.ceil(sum(p.numel * itemsize(p) for p in self._trainable) / num_shards)

    def weights(self) -> int:
        """The weights: whole, or 1/n where the engine shards parameters."""
        return math.ceil(sum(p.numel * self.stored(p) for p in self._parameters) / self.num_shards)

    def master_weights(self) -> int:
        """DeepSpeed's own fp32 copy of the trained weights; no other engine keeps one."""
        return self._of_trainable(lambda p: FP32, self.num_state_shards) if self._engine.is_zero else 0

    def optimizer_state(self, optimizer: str) -> int:
        """The optimizer's state: AdamW keeps two numbers per parameter, in the format of what it updates."""
        fixed, numbers = OPTIMIZERS[optimizer]
        of_zero = self._engine.is_zero
        return self._of_trainable(
            lambda p: fixed + numbers * (FP32 if of_zero else self.stored(p)), self.num_state_shards
        )

    def gradients(self, accumulation: int) -> int:
        """Complete gradients, in the format of the weights they belong to.

        ZeRO-2 and -3 keep 1/n. So does FSDP2, but with several micro-batches a step transformers switches its reduction
        off until the last one: until then each process adds up whole gradients, in the format of computation.
        """
        kind = self._engine.kind
        if kind in ("single", "ddp", "zero1"):
            return self._of_trainable(self.stored, 1)
        own = self._of_trainable(self.stored, self._engine.num_processes)
        adds_up_whole = kind == "fsdp2" and accumulation > 1
        return max(own, self._of_trainable(self.computed, 1)) if adds_up_whole else own

    def gradient_buckets(self, hidden_size: int) -> int:
        """Buffers in which gradients are reduced over processes.

        DDP copies all gradients into buckets that stay from the first backward on (torch's gradient_as_bucket_view is
        off). ZeRO holds one of `reduce_bucket` elements.
        """
        if self._engine.kind == "ddp":
            return self._of_trainable(self.stored, 1)
        elements = hidden_size**2 if self._engine.reduce_bucket is None else self._engine.reduce_bucket
        return elements * (MIXED if self._mixed else FP32) if self._engine.is_zero else 0

    def teacher(self) -> int:
        """One tensor per trainable parameter, laid out like it (`srpo_trl.teacher.weights.TeacherWeights`).

        In fp32 for the moving average, in the weight's format for "base"; the live teacher is the student.
        """
        return self._of_trainable(self._of_teacher, self.num_shards)

    def initial(self) -> int:
        """The values before training, one tensor per trainable parameter in its format."""
        return self._of_trainable(self.stored, self.num_shards)

    def set_aside(self) -> int:
        """The student's values that wait while the teacher's are in its parameters.

        All of them where the moving average has another format. Else values are swapped one parameter at a time,
        before the pass.
        """
        differs = self._teacher_kind == "ema"
        return self._of_trainable(
            lambda p: self.stored(p) if differs and self.stored(p) < FP32 else 0, self.num_shards
        )

    def head_is_copied(self, head: Parameter, kind: str | None) -> bool:
        """Whether a scorer's LM head is a copy while its rollouts are trained on, not a view of its values.

        It is for live values, whose head may move on, for a format of its own, and where the engine shards
        parameters, since the loss needs the head whole.
        """
        differs = kind == "ema" and self.stored(head) < FP32
        return kind == "live" or self._engine.shards_parameters or differs

    def gathered(self, *, sampling: bool = False, backward: bool = False) -> int:
        """Weights that a pass holds whole for a while, beside the shards or quantized values that lie there.

        FSDP2: the unit outside of the layers for the whole pass, and three times a layer: the one that computes, the
        one that is gathered ahead, and the flat buffer of its gather. In the backward a unit's whole gradient and the
        buffer that it is reduced from stand beside these. Without resharding, all layers and two times a layer.
        ZeRO-3: up to `max_live` elements stay gathered for reuse; TRL gathers the whole model to sample.
        Quantized weights: bitsandbytes restores one at a time.
        """
        engine, restored = self._engine, MIXED if self._mixed else FP32
        if not engine.shards_parameters:
            return max((p.numel * restored for p in self._parameters if p.itemsize < MIXED), default=0)
        units = {p.unit: 0.0 for p in self._parameters}
        gradients = dict(units)
        for p in self._parameters:
            units[p.unit] += p.numel * self.computed(p)
            gradients[p.unit] += p.numel * self.computed(p) * p.is_trainable
        total, outside = sum(units.values()), units.pop(None, 0.0)
        layer, gradient = max(units.values(), default=0.0), max(gradients.values()) * backward
        if engine.kind == "zero3":
            live = total if sampling else min(total, engine.max_live * restored + layer)
            return math.ceil(live + gradient)
        whole = min(total, outside + 3 * layer) if engine.reshards else total + 2 * layer
        return math.ceil(whole + 2 * gradient)

    def update_temporaries(self, freed: int) -> int:
        """Temporaries of the optimizer's step, or of the teacher's update and distance, before which `freed` is let go.

        A fused optimizer's step has none. ZeRO upcasts its part of the gradients to fp32, ZeRO-3 in groups of
        `sub_group` elements; in CPU memory it does so where the optimizer is. The teacher is compared one
        parameter at a time, its squares in fp32; a student of another format is copied first.
        """
        engine, step = self._engine, 0
        if engine.is_zero and not engine.optimizer_on_cpu:
            own = self._of_trainable(lambda p: 1, engine.num_processes)
            step = FP32 * (min(own, engine.sub_group) if engine.kind == "zero3" else own)
        if engine.parameters_on_cpu or self._teacher_kind not in ("ema", "base"):
            return step

        def of_one(p: Parameter) -> float:
            teacher = self._of_teacher(p)
            return p.numel * (teacher + FP32 * (teacher < FP32) + teacher * (teacher != self.stored(p)))

        update = math.ceil(max(map(of_one, self._trainable), default=0) / self.num_shards)
        return max(step, update - freed)
