"""What scores the rollouts of a run: weights, passes, and the LM heads of the buffered rollout batches."""

import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import gather
from torch import Tensor, nn
from transformers import PreTrainedModel

from srpo_trl.loss.head import STUDENT_HEAD, TeacherHead, lm_head_of
from srpo_trl.loss.ops import DistillationSpec, Head, distillation_loss, hellinger
from srpo_trl.seams.parameters import local_shard, release_gathered, shards_parameters
from srpo_trl.teacher.context import TeacherPrompt
from srpo_trl.teacher.external import ExternalTeacher, TeacherIdentities
from srpo_trl.teacher.heads import HeadsInUse, PastHead
from srpo_trl.teacher.images import VisionRow
from srpo_trl.teacher.packing import Layout
from srpo_trl.teacher.scoring import (
    ShardedBackbone,
    TeacherScores,
    gathered_head,
    rescore_rollouts,
    teacher_head,
)
from srpo_trl.teacher.weights import TEACHER_FILE, TeacherDistance, TeacherWeights

INITIAL_FILE = "srpo_initial.safetensors"


class _Source(NamedTuple):
    """A model with the values that it scores with; `state` names these values."""

    model: PreTrainedModel
    wrapped: nn.Module
    weights: TeacherWeights
    layout: Layout
    state: Hashable


class TeacherInUse:
    """The self-teacher of a run, and the other weights that score beside it.

    Args:
        model: returns the model that trains, with all its wrappers.
        student: returns the transformers model inside.
        accelerator: the engine.
        args: an `SRPOConfig`: the teacher's kind and rate, and how passes are made.
        layout: of the rows of a pass.
        batch_number: returns the number of the rollout batch that the micro-batch in hand belongs to.
        num_steps: returns the optimizer steps counted so far.
        check_student: raises where the student's head cannot be followed; called again where parameters appear.
        external: teachers that are models of their own, by name.
    """

    def __init__(
        self,
        model: Callable[[], nn.Module],
        student: Callable[[], PreTrainedModel],
        accelerator: Accelerator,
        args: Any,
        layout: Layout,
        *,
        batch_number: Callable[[], int],
        num_steps: Callable[[], int],
        check_student: Callable[[PreTrainedModel], None] = lambda student: None,
        external: Mapping[str, ExternalTeacher] = MappingProxyType({}),
    ) -> None:
        self._model, self._student, self._accelerator = model, student, accelerator
        self._args, self._layout = args, layout
        self._batch_number, self._num_steps = batch_number, num_steps
        self._check_student = check_student
        self._external = external
        self._heads = HeadsInUse()
        self._scorers = {scorer.name: scorer for scorer in args.method_record.scorers}

    @property
    def external_names(self) -> list[str]:
        """Of the teachers that are models of their own."""
        return list(self._external)

    @functools.cached_property
    def weights(self) -> TeacherWeights:
        """The self-teacher's; made at first use, after the engine has sharded the model and before it has trained."""
        self._check_student(self._student())  # a callback can have added an adapter
        return self._made(self._args.teacher_model_kind if self._uses("teacher") else "live", TEACHER_FILE)

    @functools.cached_property
    def _initial(self) -> TeacherWeights:
        """Those before training, where a scorer asks for them: the self-teacher's own, if it has these."""
        return self.weights if self.weights.kind == "base" else self._made("base", INITIAL_FILE)

    def _made(self, kind: str, file: str) -> TeacherWeights:
        return TeacherWeights(
            self._model(),
            kind,
            self._args.teacher_update_rate,
            self._args.teacher_update_interval,
            release_gathered=lambda: release_gathered(self._model(), self._accelerator),
            device=self._accelerator.device,
            file=file,
        )

    def _uses(self, weights: str) -> bool:
        return any(scorer.weights == weights for scorer in self._scorers.values())

    def _source(self, scorer: Any, model: str = "") -> _Source:
        if scorer.weights == "external":
            name = model or scorer.model or next(iter(self._external))
            external = self._external[name]
            own = TeacherWeights(external.model, "live", 1.0, device=self._accelerator.device)
            return _Source(external.model, external.wrapped, own, external.layout, (scorer.weights, name))
        held = {"teacher": lambda: self.weights, "initial": lambda: self._initial}.get(scorer.weights)
        values = self._made("live", TEACHER_FILE) if held is None else held()
        state = (scorer.weights, *self._state(values))
        return _Source(self._student(), self._model(), values, self._layout, state)

    def _state(self, weights: TeacherWeights) -> tuple[int, int]:
        """A name for the present values; live ones change with every optimizer step."""
        return weights.num_updates, self._num_steps() if weights.kind == "live" else 0

    # ---------------------------------------------------------------- passes and heads

    def score(
        self,
        name: str,
        prompts: Sequence[TeacherPrompt | None],
        completions: Sequence[tuple[int, ...]],
        scored_BT: Tensor,
        vision: Sequence[VisionRow] | None,
        autocast: AbstractContextManager[Any],
        model: str = "",
    ) -> TeacherScores:
        """Return a scorer's hidden states and statistics of a rollout batch's tokens; keep its head if it distils.

        A collective where parameters are sharded: all ranks must call it.

        Args:
            name: of the scorer.
            prompts: of each row that is scored.
            completions: token ids of each row, without padding.
            scored_BT: bool, tokens to score.
            vision: what each row's student reads beside token ids; None for a text model.
            autocast: the mixed precision that the student trains in.
            model: which of the external teachers; empty: the scorer's own.
        """
        scorer, device = self._scorers[name], self._accelerator.device
        source = self._source(scorer, model)
        is_sharded = shards_parameters(self._accelerator)
        scores = rescore_rollouts(
            source.model,
            source.weights,
            autocast,
            prompts,
            completions,
            scored_BT,
            student=self._student(),
            layout=source.layout,
            max_tokens=self._args.teacher_tokens_per_pass,
            temperature=self._args.temperature,
            on_cpu=self._args.teacher_states_on_cpu and scorer.distils,
            with_logps=scorer.gives_logps,
            vision=vision,
            sharded=ShardedBackbone(source.wrapped, source.model, device, self._most) if is_sharded else None,
        )
        if scorer.distils:
            self._heads.add(self._batch_number(), name, scores.head, source.state)
        return scores

    def _most(self, number: int) -> int:
        return int(gather(torch.tensor([number], device=self._accelerator.device)).max())

    def head(self, name: str) -> TeacherHead:
        """The head of a scorer for the micro-batch in hand."""
        return self._heads.of(self._batch_number(), name)

    def whole_head(self, name: str) -> Head | None:
        """The same; None where it is the student's own, and sharded."""
        head = self.head(name)
        if head is not STUDENT_HEAD:
            return head
        return None if shards_parameters(self._accelerator) else lm_head_of(self._student())

    @torch.no_grad()
    def divergence(self, this: TeacherScores, that: TeacherScores, distance: str = "kl") -> Tensor:
        """Return KL(this || that) in nats, or the Hellinger distance, of the tokens that both have scored, (N,).

        Over the whole vocabulary.
        """
        device = self._accelerator.device
        (hidden_ND, head), other = (
            (
                torch.cat(scores.hidden).to(device),
                gathered_head(lm_head_of(self._student()), device)
                if scores.head is STUDENT_HEAD
                else scores.head,
            )
            for scores in (this, that)
        )
        if distance == "hellinger":
            return hellinger(hidden_ND, head, *other, self._args.temperature, refuse_nonfinite=False)
        nothing_N = torch.zeros(len(hidden_ND), device=device)
        spec = DistillationSpec(alpha=1.0, topk=None, temperature=self._args.temperature)
        result = distillation_loss(
            hidden_ND, head, *other, nothing_N.long(), nothing_N, spec=spec, refuse_nonfinite=False
        )
        return result.divergence_N

    # ---------------------------------------------------------------- steps

    def hold_trainable(self) -> None:
        """Take up what a callback has made trainable, before it moves; buffered rollouts keep their heads."""
        if not any([weights.hold_trainable() for weights in self._held]):
            return
        student = self._student()
        self._check_student(student)
        own = lm_head_of(student)[:2]
        self._heads.keep_apart_from(local_shard(tensor) for tensor in own if tensor is not None)
        self._heads.give_own(teacher_head(student, self.weights, student))

    @property
    def _held(self) -> list[TeacherWeights]:
        """All values that are held, each once."""
        own = self._uses("initial") and self._initial is not self.weights
        return [self.weights, self._initial] if own else [self.weights]

    def forget_used(self) -> None:
        """Drop the heads of rollout batches that have been trained on."""
        self._heads.forget_before(self._batch_number())

    def update(self, num_batches: int) -> TeacherDistance | None:
        """Count one update per completed rollout batch; buffered rollouts keep their heads."""
        self._heads.keep_apart_from(self.weights.state_dict().values())
        return self.weights.update(num_batches)

    # ---------------------------------------------------------------- checkpoints

    def save(self, folder: Path, writes: bool) -> None:
        """Write the weights; a collective."""
        for weights in self._held:
            weights.save(folder, writes=writes)

    def load(self, folder: Path) -> None:
        """Read the weights."""
        for weights in self._held:
            weights.load(folder)

    def states(self) -> dict[str, TeacherIdentities]:
        """Return small states that a checkpoint must hold, by name."""
        return {"external_teachers": TeacherIdentities(self._external)} if self._external else {}

    def past_heads(self) -> dict[str, PastHead | None]:
        """Return what a checkpoint must hold of the heads of the buffered rollouts, by the scorers' names."""
        sources = {name: self._source(self._scorers[name]) for name in self._distilling}
        return {
            name: self._heads.past(self._batch_number(), name, source.state)
            for name, source in sources.items()
        }

    def restore_heads(self, past: Mapping[str, PastHead | None]) -> None:
        """Take what `past_heads` returned; weights and counters are restored."""
        student, self._heads = self._student(), HeadsInUse()
        for name in self._distilling:
            source = self._source(self._scorers[name])
            head = teacher_head(source.model, source.weights, student)
            if head is STUDENT_HEAD and past[name] is not None:  # frozen now, and not when they were scored
                head = lm_head_of(student)
            self._heads.restore(self._batch_number(), name, head, source.state, past[name])

    @property
    def _distilling(self) -> list[str]:
        return [name for name, scorer in self._scorers.items() if scorer.distils]
