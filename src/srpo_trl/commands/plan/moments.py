"""Memory of one process at each moment of a step, component by component: formulas and passes put together."""

from collections.abc import Iterator
from typing import NamedTuple

from srpo_trl.commands.plan import formulas, heads
from srpo_trl.commands.plan.estimate import (
    BACKWARD,
    FORWARD,
    MOMENTS,
    SAMPLING,
    TEACHER,
    UPDATE,
    Component,
    Plan,
)
from srpo_trl.commands.plan.formulas import MIXED, StorageDtypes
from srpo_trl.commands.plan.passes import Passes
from srpo_trl.commands.plan.run import Run
from srpo_trl.commands.plan.shape import Parameter
from srpo_trl.commands.plan.simulation import Sampling, TeacherPass, TrainingPass
from srpo_trl.loss.ops import DistillationSpec


def plan_memory(run: Run, passes: Passes, micro_batch: int) -> Plan:
    """Return the plan with this micro-batch; the number of rollouts in an optimizer step stays the run's."""
    accumulation = run.rollouts_per_step // micro_batch
    sizes = _Sizes(run, passes)
    components = [*_lasting(sizes), *_of_teacher(sizes), *_of_passes(sizes, micro_batch, accumulation)]
    components.sort(key=lambda c: max(c.moments.values(), default=0), reverse=True)
    return Plan(micro_batch, accumulation, tuple(c for c in components if any(c.moments.values())))


class _Sizes:
    """What the components are computed from."""

    def __init__(self, run: Run, passes: Passes) -> None:
        self.run, self.engine, self.passes = run, run.engine, passes
        self.shape = passes.shape(run)
        self.trainable = self.shape.trainable
        self.formats = StorageDtypes(run.training.bf16 or run.training.fp16, run.engine)
        self.num_parts = run.engine.num_processes if run.engine.shards_parameters else 1

    @property
    def largest_outside(self) -> Parameter:
        """The largest parameter outside of the layers, of the LM head's size and format."""
        return max((p for p in self.shape.parameters if p.unit is None), key=lambda p: p.numel)

    def whole_weights(self, *, sampling: bool = False, backward: bool = False) -> int:
        """Weights that are gathered or restored for a pass."""
        return formulas.whole_bytes(self.shape.parameters, self.formats, sampling=sampling, backward=backward)

    def heads(self, hidden_itemsize: int) -> heads.HeadSizes:
        """The LM head's sizes."""
        uses_autocast = self.formats.mixed and not self.engine.is_zero
        return heads.HeadSizes(
            hidden_size=self.shape.hidden_size,
            vocab_size=self.shape.vocab_size,
            weight_itemsize=int(self.formats.computed(self.largest_outside)),
            hidden_itemsize=hidden_itemsize,
            product_itemsize=MIXED if uses_autocast else hidden_itemsize,
            is_trainable=self.shape.head_is_trainable,
            is_tied=self.shape.head_is_tied,
            on_gpu=self.run.on_gpu,
        )


def _at(moments: tuple[str, ...], num_bytes: int) -> dict[str, int]:
    return dict.fromkeys(moments, num_bytes)


def _lasting(s: _Sizes) -> Iterator[Component]:
    """Yield what lies there whatever pass runs."""
    engine, training = s.engine, s.run.training
    state_parts = engine.num_processes if engine.is_zero else s.num_parts
    weights = formulas.weight_bytes(s.shape.parameters, s.formats)
    yield Component("weights", s.num_parts, engine.parameters_on_cpu, _at(MOMENTS, weights))
    master = formulas.master_bytes(s.trainable, s.formats)
    yield Component("optimizer's fp32 weights", state_parts, engine.optimizer_on_cpu, _at(MOMENTS, master))
    state = formulas.optimizer_bytes(s.trainable, s.formats, s.run.optimizer)
    yield Component("optimizer state", state_parts, engine.optimizer_on_cpu, _at(MOMENTS, state))
    if s.run.has_reference:
        yield Component("reference model", s.num_parts, engine.parameters_on_cpu, _at(MOMENTS, weights))
    buckets = formulas.bucket_bytes(s.trainable, s.formats, s.shape.hidden_size)
    at = (BACKWARD,) if engine.kind in ("zero1", "zero2") else MOMENTS
    yield Component("gradient buckets", 1, False, _at(at, buckets))
    at = (SAMPLING,) if training.vllm_enable_sleep_mode else MOMENTS
    yield Component("vLLM", 1, False, _at(at, s.run.vllm_bytes))


def _of_teacher(s: _Sizes) -> Iterator[Component]:
    """Yield what there is because of the teacher, its pass aside."""
    scored = s.passes.teacher_pass(s.run)
    if scored is None:
        return
    run, shape, kind = s.run, s.shape, s.run.training.teacher_model_kind
    teacher = formulas.teacher_bytes(s.trainable, s.formats, kind)
    yield Component("teacher", s.num_parts, s.engine.parameters_on_cpu, _at(MOMENTS, teacher))
    aside = formulas.set_aside_bytes(s.trainable, s.formats, kind)
    yield Component("student's weights set aside", s.num_parts, s.engine.parameters_on_cpu, {TEACHER: aside})

    def states(num_rollouts: int) -> int:
        num_tokens = num_rollouts * run.completion_length
        return formulas.hidden_state_bytes(num_tokens, shape.hidden_size, scored.hidden_itemsize)

    # TRL lets go of the last rollouts when the new ones have been scored.
    held = _at(MOMENTS, states(run.rollouts_held))
    held[TEACHER] += states(run.rollouts_per_sampling)
    yield Component("teacher's hidden states", 1, run.training.teacher_states_on_cpu, held)
    if shape.head_is_trainable:
        itemsize = s.formats.stored(s.largest_outside)
        head = formulas.teacher_head_bytes(shape.vocab_size, shape.hidden_size, itemsize, s.formats, kind)
        yield Component("teacher's LM head", 1, False, _at(MOMENTS, head) | {TEACHER: 2 * head})


def _of_passes(s: _Sizes, micro_batch: int, accumulation: int) -> Iterator[Component]:
    """Yield what the passes, the losses and the update hold, and the gradients that they leave."""
    held: dict[str, _PassBytes] = {}
    sampled, scored = s.passes.sampling(s.run), s.passes.teacher_pass(s.run)
    if sampled is not None:
        held[SAMPLING] = _sampling(s, sampled)
    if scored is not None:
        held[TEACHER] = _teacher_pass(s, scored)
    gradients = _Gradients.of(s, accumulation)
    trained = s.passes.training(s.run, micro_batch, keep_gradients=gradients.grow)
    held[FORWARD] = _forward(s, trained, micro_batch)
    held[BACKWARD], in_backward = _backward(s, trained, micro_batch, gradients)
    held[UPDATE] = _PassBytes(buffers=_update(s, gradients.at_update))

    moments = {FORWARD: gradients.before, BACKWARD: in_backward, UPDATE: gradients.at_update}
    if s.engine.kind == "zero3":  # one buffer, made at the start
        moments = _at(MOMENTS, gradients.at_update)
    is_shared = s.engine.kind in ("zero2", "zero3") or (s.engine.kind == "fsdp2" and accumulation == 1)
    parts = s.engine.num_processes if is_shared else 1
    yield Component("gradients", parts, s.engine.parameters_on_cpu, moments)
    for name, values in zip(_PassBytes._fields, zip(*held.values(), strict=True), strict=True):
        yield Component(_PASS_NAMES[name], 1, False, dict(zip(held, values, strict=True)))


class _Gradients(NamedTuple):
    """Bytes of gradients on one process.

    Attributes:
        before: when the step's last micro-batch begins.
        complete: when its backward ends.
        at_update: when they have been reduced.
        grow: they come layer by layer while activations go, on a process that keeps all of them.
    """

    before: int
    complete: int
    at_update: int
    grow: bool

    @classmethod
    def of(cls, s: _Sizes, accumulation: int) -> "_Gradients":
        complete = formulas.gradient_bytes(s.trainable, s.formats, accumulation)
        return cls(
            before=complete if accumulation > 1 else 0,
            complete=complete,
            at_update=formulas.gradient_bytes(s.trainable, s.formats, 1),
            grow=accumulation == 1 and s.engine.kind in ("single", "ddp", "zero1"),
        )


class _PassBytes(NamedTuple):
    cache: int = 0
    weight_copies: int = 0
    whole_weights: int = 0
    activations: int = 0
    buffers: int = 0


_PASS_NAMES = {
    "cache": "key-value cache",
    "weight_copies": "weights copied by autocast",
    "whole_weights": "weights gathered, restored",
    "activations": "activations",
    "buffers": "buffers of loss, sampling, update",
}


def _sampling(s: _Sizes, sampled: Sampling) -> _PassBytes:
    """The model's calls, or after them the draw from the last logits: whichever holds more."""
    peak = sampled.peak
    draw = sampled.cache + formulas.sampling_bytes(s.run.rollouts_per_sampling, s.shape.vocab_size)
    return _PassBytes(
        cache=sampled.cache,
        weight_copies=peak.weight_copies,
        whole_weights=s.whole_weights(sampling=True),
        activations=peak.total - peak.weight_copies - sampled.cache,
        buffers=max(0, draw - peak.total),
    )


def _teacher_pass(s: _Sizes, scored: TeacherPass) -> _PassBytes:
    """The backbone's calls, or after them the entropy of what came out: whichever holds more."""
    copies = scored.after.weight_copies
    activations = scored.peak.total - copies
    # Hidden states as the pass returns them, those of scored tokens, and these in one piece.
    states = formulas.hidden_state_bytes(3 * scored.num_tokens, s.shape.hidden_size, scored.hidden_itemsize)
    entropy = states + heads.temporary_bytes(s.heads(scored.hidden_itemsize), scored.num_tokens, None)
    return _PassBytes(
        weight_copies=copies,
        whole_weights=s.whole_weights(),
        activations=activations,
        buffers=max(0, entropy - activations),
    )


def _loss(s: _Sizes, trained: TrainingPass, micro_batch: int) -> heads.Loss:
    run, training = s.run, s.run.training
    completion = micro_batch * run.completion_length
    # Without Triton, TRL's head scores every position.
    everywhere = micro_batch * (run.prompt_length + run.completion_length - 1)
    spec = DistillationSpec(
        topk=training.distillation_topk,
        add_tail=training.distillation_add_tail,
        estimator=training.distillation_estimator,
    )
    return heads.loss_bytes(
        s.heads(trained.hidden_itemsize),
        policy_tokens=completion if run.on_gpu else everywhere,
        distilled_tokens=completion if run.has_teacher else 0,
        spec=spec if run.has_teacher else None,
    )


def _forward(s: _Sizes, trained: TrainingPass, micro_batch: int) -> _PassBytes:
    """The forward ends in the losses, with autocast's copies of all weights still there."""
    loss = _loss(s, trained, micro_batch).forward
    total = max(trained.after_forward.total + loss, trained.forward_peak.total)
    copies = trained.after_forward.weight_copies
    return _PassBytes(
        weight_copies=copies, whole_weights=s.whole_weights(), activations=total - loss - copies, buffers=loss
    )


def _backward(
    s: _Sizes, trained: TrainingPass, micro_batch: int, gradients: _Gradients
) -> tuple[_PassBytes, int]:
    """Return what the backward holds through the heads, or else through the layers, and the gradients at that time.

    Through the layers the head's gradient waits for the embedding's where both are one weight. Gradients that grow
    are part of what the simulated backward held.
    """
    head = s.heads(trained.hidden_itemsize)
    through_heads = _PassBytes(
        whole_weights=s.whole_weights(),
        activations=trained.kept,
        buffers=_loss(s, trained, micro_batch).backward,
    )
    grown = gradients.complete if gradients.grow else 0
    through_layers = _PassBytes(
        whole_weights=s.whole_weights(backward=True),
        activations=trained.backward_peak.total - grown,
        buffers=head.gradient if head.is_tied or gradients.grow else 0,
    )
    if sum(through_heads) + gradients.before >= sum(through_layers) + gradients.complete:
        return through_heads, gradients.before
    return through_layers, gradients.complete


def _update(s: _Sizes, gradients: int) -> int:
    """The optimizer's step has the gradients beside it, the teacher's update after it has not."""
    kind = s.run.training.teacher_model_kind if s.run.has_teacher else "live"
    update = 0 if s.engine.parameters_on_cpu else formulas.update_bytes(s.trainable, s.formats, kind)
    return max(formulas.step_bytes(s.trainable, s.formats), update - gradients)
