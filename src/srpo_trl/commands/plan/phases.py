"""Memory of one process in each phase of a step, component by component: storage, passes and losses put together."""

import functools
import sys
from collections.abc import Iterator
from typing import NamedTuple

from transformers.training_args import OptimizerNames

from srpo_trl.commands.plan.estimate import (
    BACKWARD,
    FORWARD,
    PHASES,
    SAMPLING,
    TEACHER,
    UPDATE,
    Component,
    MemoryEstimate,
)
from srpo_trl.commands.plan.losses import LossBytes, LossSizes
from srpo_trl.commands.plan.run import RunSpec
from srpo_trl.commands.plan.scorers import (
    PlannedModel,
    PlannedScorer,
    planned_model,
    planned_scorers,
    planned_teachers,
)
from srpo_trl.commands.plan.step import FakeModels
from srpo_trl.commands.plan.storage import FP32, MIXED
from srpo_trl.loss.ops import DistillationSpec
from srpo_trl.loss.ops.chunk_size import MARGIN
from srpo_trl.loss.student import distillation_spec

_PASS_NAMES = (
    "key-value cache",
    "weights copied by autocast",
    "weights gathered, restored",
    "activations",
    "buffers of loss, sampling, update",
)


class _PassBytes(NamedTuple):
    cache: int = 0
    weight_copies: int = 0
    gathered: int = 0
    activations: int = 0
    buffers: int = 0


def estimate_memory(run: RunSpec, models: FakeModels, micro_batch: int) -> MemoryEstimate:
    """Return the estimate with this micro-batch; the number of rollouts in an optimizer step stays the run's."""
    accounts = _Accounts(run, models, micro_batch)
    components = [*accounts.lasting(), *accounts.of_scorers(), *accounts.of_passes()]
    components.sort(key=lambda c: max(c.phases.values(), default=0), reverse=True)
    present = tuple(c for c in components if any(c.phases.values()))
    return MemoryEstimate(micro_batch, accounts.accumulation, present)


def _at(phases: tuple[str, ...], num_bytes: int) -> dict[str, int]:
    return dict.fromkeys(phases, num_bytes)


class _Accounts:
    """The components of one run with one micro-batch."""

    def __init__(self, run: RunSpec, models: FakeModels, micro_batch: int) -> None:
        self.run, self.engine, self.training, self.micro_batch = run, run.engine, run.training, micro_batch
        self.accumulation = run.rollouts_per_step // micro_batch
        model = models.of(run)
        self.student = planned_model(run, models)
        self.shape, self.storage = self.student.shape, self.student.storage
        self.mixed = run.mixed_dtype is not None
        self.teachers = planned_teachers(run, models)
        self.scorers = planned_scorers(run, models, self.student, self.teachers)
        self.distilling = [planned for planned in self.scorers if planned.scorer.distils]
        self.observers = [planned for planned in self.scorers if not planned.scorer.distils]
        # What was scored with the same values shares one LM head.
        self.heads = {planned.values: planned for planned in self.distilling}
        self.head_copies = sum(planned.head_copy for planned in self.heads.values())
        lengths = (run.prompt_length, run.completion_length)
        rollouts = run.rollouts_per_sampling
        self.sampled = None if run.training.use_vllm else model.sampling(rollouts, *lengths)
        # Complete gradients come layer by layer while activations go, on a process that keeps all of them.
        self.gradients_grow = self.accumulation == 1 and run.engine.kind in ("single", "ddp", "zero1")
        self.gradients = self.storage.gradients(self.accumulation)
        self.gradients_before = self.gradients if self.accumulation > 1 else 0
        self.trained = model.training_pass(
            micro_batch, sum(lengths), bool(run.training.gradient_checkpointing), self.gradients_grow
        )

    def lasting(self) -> Iterator[Component]:
        """Yield what lies there whatever pass runs."""
        engine, storage, training = self.engine, self.storage, self.training
        weights, on_cpu, shards = storage.weights(), engine.parameters_on_cpu, storage.num_shards
        yield Component("weights", shards, on_cpu, _at(PHASES, weights))
        if self.run.has_reference:
            yield Component("reference model", shards, on_cpu, _at(PHASES, weights))
        state, shards = (
            storage.optimizer_state(OptimizerNames(training.optim).value),
            storage.num_state_shards,
        )
        masters, on_cpu = storage.master_weights(), engine.optimizer_on_cpu
        yield Component("optimizer's fp32 weights", shards, on_cpu, _at(PHASES, masters))
        yield Component("optimizer state", shards, on_cpu, _at(PHASES, state))
        at = (BACKWARD,) if engine.kind in ("zero1", "zero2") else PHASES
        buckets = storage.gradient_buckets(self.shape.hidden_size)
        yield Component("gradient buckets", 1, False, _at(at, buckets))
        at = (SAMPLING,) if training.vllm_enable_sleep_mode else PHASES
        yield Component("vLLM", 1, False, _at(at, self.run.vllm_bytes))

    def of_scorers(self) -> Iterator[Component]:
        """Yield what there is because of the scorers, their passes aside."""
        run, storage, on_cpu = self.run, self.storage, self.engine.parameters_on_cpu
        yield Component("teacher", storage.num_shards, on_cpu, _at(PHASES, storage.teacher()))
        initial = storage.initial() * run.holds_initial
        yield Component("initial weights", storage.num_shards, on_cpu, _at(PHASES, initial))
        aside = storage.set_aside()
        yield Component("student's weights set aside", storage.num_shards, on_cpu, {TEACHER: aside})
        for name, (_, of_it) in self.teachers.items():
            which = f" {name}" * (len(self.teachers) > 1)
            on_it = on_cpu and of_it.num_shards > 1
            yield Component(f"external teacher{which}", of_it.num_shards, on_it, _at(PHASES, of_it.weights()))
        states = sum(map(self._states_of_rollout, self.distilling))
        held = _at(PHASES, states * run.rollouts_held)
        # TRL lets go of the last rollouts when the new ones have been scored.
        held[TEACHER] += states * run.rollouts_per_sampling
        yield Component("teacher's hidden states", 1, self.training.teacher_states_on_cpu, held)
        # Of teachers that share the rows, the largest may have all of them.
        observed: dict[str, int] = {}
        for name, of_rollout in ((p.scorer.name, self._states_of_rollout(p)) for p in self.observers):
            observed[name] = max(observed.get(name, 0), of_rollout)
        # What a later scorer is held against waits for it.
        waiting = sum(observed.pop(str(p.scorer.against), 0) for p in self.scorers)
        seen = (waiting + max(observed.values(), default=0)) * run.rollouts_per_sampling
        yield Component("observers' hidden states", 1, False, {TEACHER: seen})
        # Until all optimizer steps on its rollouts have been taken. A step that ends one rollout batch in the
        # middle of the next leaves a copy of the head that scored this next one.
        movable = sum(p.model.head_bytes for p in self.heads.values() if p.head_can_move)
        held = _at(PHASES, self.head_copies + movable * run.steps_straddle)
        held[SAMPLING] -= self.head_copies
        held[TEACHER] += sum(p.head_copy for p in self.scorers) - self.head_copies
        yield Component("teacher's LM head", 1, False, held)

    def _states_of_rollout(self, planned: PlannedScorer) -> int:
        return self.run.completion_length * planned.model.shape.hidden_size * planned.scored.hidden_itemsize

    def of_passes(self) -> Iterator[Component]:
        """Yield what the passes, the losses and the update hold, and the gradients that they leave."""
        engine, at_update = self.engine, self.storage.gradients(1)
        backward, in_backward = self._backward()
        update = self.storage.update_temporaries(freed=at_update + self.head_copies)
        passes = (
            self._sampling(),
            max([*map(self._scoring, self.scorers), *self._comparisons()], key=sum, default=_PassBytes()),
            self._forward(),
            backward,
            _PassBytes(buffers=update),
        )
        phases = {FORWARD: self.gradients_before, BACKWARD: in_backward, UPDATE: at_update}
        if engine.kind == "zero3":  # one buffer, made at the start
            phases = _at(PHASES, at_update)
        is_sharded = engine.kind in ("zero2", "zero3") or (engine.kind == "fsdp2" and self.accumulation == 1)
        shards = engine.num_processes if is_sharded else 1
        yield Component("gradients", shards, engine.parameters_on_cpu, phases)
        for name, held in zip(_PASS_NAMES, zip(*passes, strict=True), strict=True):
            yield Component(name, 1, False, {p: n for p, n in zip(PHASES, held, strict=True) if n})

    def _sampling(self) -> _PassBytes:
        """The model's calls, or after them the draw from the last logits: whichever holds more.

        `generate` makes of these, each (rows, vocabulary) in fp32: two copies, probabilities, a draw.
        """
        if self.sampled is None:
            return _PassBytes()
        cache, (peak, copies) = self.sampled
        draw = cache + 4 * self.run.rollouts_per_sampling * self.shape.vocab_size * FP32
        gathered = self.storage.gathered(sampling=True)
        return _PassBytes(cache, copies, gathered, peak - copies - cache, max(0, draw - peak))

    def _scoring(self, planned: PlannedScorer) -> _PassBytes:
        """The backbone's calls, or after them the entropy of what came out: whichever holds more."""
        model, scored = planned.model, planned.scored
        copies, num_tokens = scored.after.weight_copies, scored.num_tokens
        activations = scored.peak.total - copies
        losses = self._losses(model, scored.hidden_itemsize)
        # Hidden states as the pass returns them, those of scored tokens, and these in one piece.
        entropy = 3 * num_tokens * model.shape.hidden_size * scored.hidden_itemsize
        entropy += losses.temporaries(num_tokens, None)
        return _PassBytes(0, copies, model.storage.gathered(), activations, max(0, entropy - activations))

    def _comparisons(self) -> Iterator[_PassBytes]:
        """Yield what each KL of two scorers holds: hidden states of all rollouts, of both in one piece."""
        rollouts = self.run.rollouts_per_sampling
        pairs = [(this, that) for this in self.scorers for that in self.scorers]
        for this, that in (pair for pair in pairs if pair[0].scorer.against == pair[1].scorer.name):
            losses = self._losses(this.model, this.scored.hidden_itemsize)
            temporaries = losses.temporaries(
                rollouts * self.run.completion_length, DistillationSpec(alpha=1.0, topk=None)
            )
            yield _PassBytes(buffers=rollouts * sum(map(self._states_of_rollout, (this, that))) + temporaries)

    def _free_at_loss(self) -> int:
        """What is left when the forward reaches the losses, which choose their chunks by it; enough where not known."""
        if self.run.memory is None:
            return sys.maxsize
        held = [*self.lasting(), *self.of_scorers()]
        lasting = sum(c.phases.get(FORWARD, 0) for c in held if not c.on_cpu)
        return (
            int(self.run.memory * (1 - MARGIN))
            - lasting
            - self.gradients_before
            - self.trained.after_forward.total
        )

    def _losses(self, model: PlannedModel, hidden_itemsize: int, free: int = sys.maxsize) -> LossSizes:
        return LossSizes(
            hidden_size=model.shape.hidden_size,
            vocab_size=model.shape.vocab_size,
            weight_itemsize=int(model.storage.computed(model.head)),
            hidden_itemsize=hidden_itemsize,
            product_itemsize=MIXED if self.mixed and not self.engine.is_zero else hidden_itemsize,
            is_trainable=model.shape.head_is_trainable,
            on_gpu=self.run.on_gpu,
            free=free,
            teacher_hidden_sizes=tuple(p.model.shape.hidden_size for p in self.distilling),
        )

    @functools.cached_property
    def _loss(self) -> LossBytes:
        run, training = self.run, self.training
        completion = self.micro_batch * run.completion_length
        # Without Triton, TRL's head scores every position; but for plain GRPO it is given the policy's tokens alone.
        scores_all = training.method_record.is_plain and not run.on_gpu
        scored = completion + self.micro_batch * (run.prompt_length - 1) * scores_all
        spec = distillation_spec(training, step=0)
        losses = self._losses(self.student, self.trained.hidden_itemsize, self._free_at_loss())
        return losses.both(scored, completion, spec if self.distilling else None)

    def _forward(self) -> _PassBytes:
        """The forward ends in the losses, with autocast's copies of all weights still there."""
        loss, (after, copies) = self._loss.forward, self.trained.after_forward
        total = max(after + loss, self.trained.forward_peak.total)
        return _PassBytes(0, copies, self.storage.gathered(), total - loss - copies, loss)

    def _backward(self) -> tuple[_PassBytes, int]:
        """Return what the backward holds through the heads, or else through the layers, and the gradients at that time.

        Through the layers the head's gradient waits for the embedding's where both are one weight. Gradients that grow
        are part of what the simulated backward held.
        """
        through_heads = _PassBytes(
            gathered=self.storage.gathered(), activations=self.trained.kept, buffers=self._loss.backward
        )
        head_waits = self.shape.head_is_tied or self.gradients_grow
        through_layers = _PassBytes(
            gathered=self.storage.gathered(backward=True),
            activations=self.trained.backward_peak.total - self.gradients * self.gradients_grow,
            buffers=self._losses(self.student, self.trained.hidden_itemsize).gradient * head_waits,
        )
        through = ((through_heads, self.gradients_before), (through_layers, self.gradients))
        return max(through, key=lambda held: sum(held[0]) + held[1])
