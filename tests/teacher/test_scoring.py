"""Which LM head projects the teacher's hidden states: the student's only where the student itself was scored."""

from contextlib import nullcontext

import pytest
import torch

from harness import tiny_model
from srpo_trl.loss.head import STUDENT_HEAD, head_logits
from srpo_trl.loss.ops import Head
from srpo_trl.teacher.context import TeacherPrompt
from srpo_trl.teacher.scoring import rescore_rollouts, teacher_head
from srpo_trl.teacher.templates import TeacherInformation
from srpo_trl.teacher.weights import TeacherWeights

PROMPT, COMPLETION = (6, 7, 8, 9), (10, 11, 12)


def rescore(model, teacher, student):
    return rescore_rollouts(
        model,
        teacher,
        nullcontext(),
        [TeacherPrompt(PROMPT, 0, TeacherInformation("4")), None],
        [COMPLETION, (13,)],
        torch.tensor([[True, True, True], [False, False, False]]),
        student=student,
        layout="shared",
        max_tokens=100,
        temperature=1.0,
    )


def frozen_model(**options):
    return tiny_model(seed=1, tie_word_embeddings=False, **options).requires_grad_(False)


def test_a_frozen_teacher_of_its_own_keeps_its_head():
    """Hidden states of another model are projected by that model's head, though it has never trained."""
    student, model = tiny_model(tie_word_embeddings=False), frozen_model()
    student.lm_head.requires_grad_(False)
    scores = rescore(model, TeacherWeights(model, "base", 0.05), student)
    assert isinstance(scores.head, Head)
    with torch.no_grad():
        expected = model(torch.tensor([PROMPT + COMPLETION])).logits[0, 3:6]
    torch.testing.assert_close(head_logits(scores.hidden[0], scores.head), expected, rtol=1e-4, atol=1e-4)
    entropy = -(expected.softmax(-1) * expected.log_softmax(-1)).sum(-1)
    torch.testing.assert_close(scores.statistics.entropy_N, entropy, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(scores.statistics.log_sum_exp_N, expected.logsumexp(-1), rtol=1e-4, atol=1e-4)
    assert scores.hidden[1].shape == (0, student.config.hidden_size)


@pytest.mark.parametrize("is_trainable", [True, False])
def test_the_students_own_pass_has_its_head_only_where_that_never_trained(is_trainable):
    student = tiny_model(tie_word_embeddings=False)
    student.lm_head.requires_grad_(is_trainable)
    teacher = TeacherWeights(student, "ema", 0.05)
    for head in (rescore(student, teacher, student).head, teacher_head(student, teacher, student)):
        assert (head is STUDENT_HEAD) == (not is_trainable)


@pytest.mark.parametrize("kind", ["ema", "base", "live"])
def test_a_teacher_without_trainable_parameters_stays_as_it_is(kind):
    model = frozen_model()
    teacher = TeacherWeights(model, kind, 0.05)
    before = rescore(model, teacher, tiny_model())
    for _ in range(2):
        teacher.update()
    after = rescore(model, teacher, tiny_model())
    assert torch.equal(after.hidden[0], before.hidden[0])
    assert torch.equal(after.head.weight_VD, before.head.weight_VD)
    assert teacher.state_dict() == {}
