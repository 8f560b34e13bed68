"""The teacher of a run: its weights, its passes, and the LM heads of the buffered rollout batches."""

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather
from torch import Tensor, nn
from transformers import PreTrainedModel

from srpo_trl.loss.head import STUDENT_HEAD, TeacherHead, lm_head_of
from srpo_trl.loss.ops import Head
from srpo_trl.seams.parameters import local_shard, release_gathered, shards_parameters
from srpo_trl.teacher.context import TeacherPrompt
from srpo_trl.teacher.heads import HeadsInUse, PastHead
from srpo_trl.teacher.images import VisionRow
from srpo_trl.teacher.packing import Layout
from srpo_trl.teacher.scoring import ShardedBackbone, TeacherScores, rescore_rollouts, teacher_head
from srpo_trl.teacher.weights import TeacherDistance, TeacherWeights


class TeacherInUse:
    """The self-teacher of a run.

    Args:
        model: returns the model that trains, with all its wrappers.
        student: returns the transformers model inside.
        accelerator: the engine.
        args: an `SRPOConfig`: the teacher's kind and rate, and how its passes are made.
        layout: of the rows of a pass.
        batch_number: returns the number of the rollout batch that the micro-batch in hand belongs to.
        num_steps: returns the optimizer steps counted so far.
        check_student: raises where the student's head cannot be followed; called again where parameters appear.
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
    ) -> None:
        self._model, self._student, self._accelerator = model, student, accelerator
        self._args, self._layout = args, layout
        self._batch_number, self._num_steps = batch_number, num_steps
        self._check_student = check_student
        self._heads = HeadsInUse()

    @functools.cached_property
    def weights(self) -> TeacherWeights:
        """Made at first use, which comes after the engine has sharded the model and before it has trained."""
        self._check_student(self._student())  # a callback can have added an adapter
        return TeacherWeights(
            self._model(),
            self._args.teacher_model_kind if self._args.method_record.scorers else "live",
            self._args.teacher_update_rate,
            self._args.teacher_update_interval,
            release_gathered=lambda: release_gathered(self._model(), self._accelerator),
            device=self._accelerator.device,
        )

    @property
    def _state(self) -> tuple[int, int]:
        """A name for the present weights; the live teacher's change with every optimizer step."""
        return self.weights.num_updates, self._num_steps() if self.weights.kind == "live" else 0

    # ---------------------------------------------------------------- passes and heads

    def score(
        self,
        prompts: Sequence[TeacherPrompt | None],
        completions: Sequence[tuple[int, ...]],
        distilled_BT: Tensor,
        vision: Sequence[VisionRow] | None,
        autocast: AbstractContextManager[Any],
    ) -> TeacherScores:
        """Return hidden states and entropies of a rollout batch's distilled tokens; keep the head beside them."""
        student, device = self._student(), self._accelerator.device
        is_sharded = shards_parameters(self._accelerator)
        scores = rescore_rollouts(
            student,
            self.weights,
            autocast,
            prompts,
            completions,
            distilled_BT,
            student=student,
            layout=self._layout,
            max_tokens=self._args.teacher_tokens_per_pass,
            temperature=self._args.temperature,
            on_cpu=self._args.teacher_states_on_cpu,
            vision=vision,
            sharded=ShardedBackbone(self._model(), student, device) if is_sharded else None,
            max_over_processes=lambda number: int(gather(torch.tensor([number], device=device)).max()),
        )
        self._heads.add(self._batch_number(), scores.head, self._state)
        return scores

    @property
    def head(self) -> TeacherHead:
        """The head of the micro-batch in hand."""
        return self._heads.of(self._batch_number())

    @property
    def whole_head(self) -> Head | None:
        """The same; None where it is the student's own, and sharded."""
        head = self.head
        if head is not STUDENT_HEAD:
            return head
        return None if shards_parameters(self._accelerator) else lm_head_of(self._student())

    # ---------------------------------------------------------------- steps

    def hold_trainable(self) -> None:
        """Take up what a callback has made trainable, before it moves; buffered rollouts keep their heads."""
        if not self.weights.hold_trainable():
            return
        student = self._student()
        self._check_student(student)
        own = lm_head_of(student)[:2]
        self._heads.keep_apart_from(local_shard(tensor) for tensor in own if tensor is not None)
        self._heads.give_own(teacher_head(student, self.weights, student))

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
        self.weights.save(folder, writes=writes)

    def load(self, folder: Path) -> None:
        """Read the weights."""
        self.weights.load(folder)

    def past_head(self) -> PastHead | None:
        """Return what a checkpoint must hold of the head of the buffered rollouts."""
        return self._heads.past(self._batch_number(), self._state)

    def restore_head(self, past: PastHead | None) -> None:
        """Take what `past_head` returned; weights and counters are restored."""
        student = self._student()
        head = teacher_head(student, self.weights, student)
        if head is STUDENT_HEAD and past is not None:  # frozen now, and not when they were scored
            head = lm_head_of(student)
        self._heads.restore(self._batch_number(), head, self._state, past)
