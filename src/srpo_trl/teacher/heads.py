"""The LM heads that project the teacher's hidden states of the buffered rollout batches.

Hidden states and head belong together, so a head stays as it was when its rollouts were scored, also where the teacher
moves while they are buffered: an optimizer step can end one rollout batch in the middle of the next.
"""

from collections.abc import Hashable, Iterable
from typing import NamedTuple

from torch import Tensor

from srpo_trl.loss.head import STUDENT_HEAD, TeacherHead

PastHead = tuple[Tensor, Tensor | None]  # weight and bias
_PAST = "of before a resume"


class ScoringHead(NamedTuple):
    """A head and the state of the teacher that it was taken from."""

    head: TeacherHead
    teacher_state: Hashable


class HeadsInUse:
    """The heads of the buffered rollout batches, by their numbers and the scorers' names.

    What was scored by one state of a teacher shares one head.
    """

    def __init__(self) -> None:
        self._heads: dict[tuple[int, str], ScoringHead] = {}

    def add(self, number: int, name: str, head: TeacherHead, teacher_state: Hashable) -> None:
        """Take the head that a rollout batch was scored with."""
        for known in self._heads.values():
            if known.teacher_state == teacher_state:
                head = known.head
        self._heads[number, name] = ScoringHead(head, teacher_state)

    def of(self, number: int, name: str) -> TeacherHead:
        """Return the head of a buffered rollout batch."""
        return self._heads[number, name].head

    def past(self, number: int, name: str, teacher_state: Hashable) -> PastHead | None:
        """Return what a checkpoint must hold of a head: nothing where the teacher's present one is the same."""
        head, scored_by = self._heads[number, name]
        return None if head is STUDENT_HEAD or scored_by == teacher_state else (head.weight_VD, head.bias_V)

    def restore(
        self, number: int, name: str, head: TeacherHead, teacher_state: Hashable, past: PastHead | None
    ) -> None:
        """Take the head of the one buffered rollout batch: what `past` returned, or else the teacher's present one."""
        self._heads = {key: known for key, known in self._heads.items() if key[0] == number}
        if head is not STUDENT_HEAD and past is not None:
            head, teacher_state = head._replace(weight_VD=past[0], bias_V=past[1]), (name, _PAST)
        self.add(number, name, head, teacher_state)

    def give_own(self, head: TeacherHead) -> None:
        """Let rollout batches that use the student's own head, which is about to train, use this one of its values."""
        for key, known in self._heads.items():
            if known.head is STUDENT_HEAD:
                self._heads[key] = known._replace(head=head)

    def forget_before(self, number: int) -> None:
        """Drop the heads of the rollout batches before this one, which have been trained on."""
        self._heads = {key: known for key, known in self._heads.items() if key[0] >= number}

    def keep_apart_from(self, tensors: Iterable[Tensor]) -> None:
        """Copy the heads that share memory with one of the tensors, which are about to change in place."""
        places = {tensor.untyped_storage().data_ptr() for tensor in tensors}
        states = {known.teacher_state: known for known in self._heads.values()}
        kept_apart = {state: _kept_apart(known, places) for state, known in states.items()}
        self._heads = {key: kept_apart[known.teacher_state] for key, known in self._heads.items()}


def _kept_apart(known: ScoringHead, places: set[int]) -> ScoringHead:
    if known.head is STUDENT_HEAD:
        return known

    def own(tensor: Tensor) -> Tensor:
        return tensor.clone() if tensor.untyped_storage().data_ptr() in places else tensor

    weight_VD, bias_V = known.head.weight_VD, known.head.bias_V
    head = known.head._replace(weight_VD=own(weight_VD), bias_V=None if bias_V is None else own(bias_V))
    return known._replace(head=head)
