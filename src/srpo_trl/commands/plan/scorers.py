"""What a method's scorers hold: whose weights score, in which passes, and which LM heads stay with the scores."""

from collections.abc import Mapping
from typing import NamedTuple

from srpo_trl.commands.plan.model import ModelShape, Parameter
from srpo_trl.commands.plan.run import RunSpec
from srpo_trl.commands.plan.step import FakeModels, TeacherPass
from srpo_trl.commands.plan.storage import Storage
from srpo_trl.methods.record import Scorer


class PlannedModel(NamedTuple):
    """A model and how an engine stores it."""

    shape: ModelShape
    storage: Storage

    @property
    def head(self) -> Parameter:
        """The LM head's weight: the largest parameter outside of the layers has its size and format."""
        return max((p for p in self.shape.parameters if p.unit is None), key=lambda p: p.numel)

    @property
    def head_bytes(self) -> int:
        """Bytes of the whole LM head as it is stored."""
        return int(self.shape.vocab_size * self.shape.hidden_size * self.storage.stored(self.head))


class PlannedScorer(NamedTuple):
    """One scorer with one model.

    Attributes:
        scorer: as the method has it.
        model: that scores.
        external: name of the external teacher; None: the student's parameters score, with whatever values.
        head_copy: bytes of an LM head that belongs to the scores alone.
        scored: its largest pass.
    """

    scorer: Scorer
    model: PlannedModel
    external: str | None
    head_copy: int
    scored: TeacherPass

    @property
    def values(self) -> tuple[str, str | None]:
        """Whose values score: scorers with the same share one LM head."""
        return self.scorer.weights, self.external

    @property
    def head_can_move(self) -> bool:
        """Whether a later rollout batch may be scored by another LM head, or another copy of it."""
        return self.head_copy > 0 if self.external is not None else self.model.shape.head_is_trainable


def planned_model(run: RunSpec, models: FakeModels, *, trains: bool = True) -> PlannedModel:
    """Return the model of a run; one that does not train has no trainable parameter."""
    shape, mixed = models.of(run).shape, run.mixed_dtype is not None
    shape = shape if trains else shape.frozen()
    return PlannedModel(
        shape, Storage(shape.parameters, run.engine, mixed=mixed, teacher_kind=run.teacher_kind)
    )


def planned_teachers(run: RunSpec, models: FakeModels) -> dict[str, PlannedModel]:
    """Return the external teachers by name."""
    return {name: planned_model(run.of_teacher(name), models, trains=False) for name in run.teachers}


def planned_scorers(
    run: RunSpec, models: FakeModels, student: PlannedModel, teachers: Mapping[str, PlannedModel]
) -> list[PlannedScorer]:
    """Return the scorers of a run; of one that takes a row's teacher from a column, one for each teacher."""

    def planned(scorer: Scorer, name: str | None) -> PlannedScorer:
        of_model = run if name is None else run.of_teacher(name)
        model = student if name is None else teachers[name]
        kind = {"teacher": run.teacher_kind, "student": "live"}.get(scorer.weights, "base")
        # A frozen head of the student is read where it lies.
        is_copied = (name is not None or model.shape.head_is_trainable) and model.storage.head_is_copied(
            model.head, kind
        )
        scored = models.of(of_model).teacher_pass(
            run.rollouts_per_sampling,
            run.rollouts_per_teacher_prompt(scorer),
            run.teacher_prompt_length(scorer),
            run.completion_length,
            run.training.teacher_tokens_per_pass,
        )
        return PlannedScorer(scorer, model, name, model.head_bytes * is_copied, scored)

    return [
        planned(scorer, name)
        for scorer in run.scorers
        for name in (
            ([scorer.model] if scorer.model else teachers) if scorer.weights == "external" else [None]
        )
    ]
