"""The teacher of a run and the heads of the rollouts in use; no trainer."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from harness import tiny_model
from srpo_trl.loss.head import STUDENT_HEAD, lm_head_of
from srpo_trl.loss.ops import Head
from srpo_trl.methods.record import Scorer
from srpo_trl.teacher.context import TeacherInformation, TeacherPrompt
from srpo_trl.teacher.in_use import TeacherInUse

PROMPT, COMPLETION = TeacherPrompt((6, 7, 8, 9), 0, TeacherInformation("4")), (10, 11, 12)


class Run:
    """A student, its teacher and the counts of where its run is; the head trains only if it is said so."""

    def __init__(self, kind="live", head_trains=False):
        self.batch_number = self.num_steps = self.num_checks = 0
        self.student = tiny_model(tie_word_embeddings=False)
        self.student.lm_head.requires_grad_(head_trains)
        args = SimpleNamespace(
            teacher_model_kind=kind,
            method_record=SimpleNamespace(scorers=(Scorer(),)),
            teacher_update_rate=0.5,
            teacher_update_interval=1,
            teacher_tokens_per_pass=100,
            temperature=1.0,
            teacher_states_on_cpu=False,
        )
        self.teacher = TeacherInUse(
            lambda: self.student,
            lambda: self.student,
            Accelerator(cpu=True),
            args,
            "shared",
            batch_number=lambda: self.batch_number,
            num_steps=lambda: self.num_steps,
            check_student=self.check,
        )

    def check(self, student):
        assert student is self.student
        self.num_checks += 1

    def score(self):
        """Score one rollout, as the rollout batch at hand."""
        scored_BT = torch.ones(1, 3, dtype=torch.bool)
        return self.teacher.score("teacher", [PROMPT], [COMPLETION], scored_BT, None, nullcontext())

    def step(self):
        """Move every weight."""
        self.num_steps += 1
        with torch.no_grad():
            for parameter in self.student.parameters():
                parameter.add_(1.0)


def test_the_whole_head_is_the_students_where_that_never_trained():
    run = Run()
    run.score()
    assert run.teacher.head("teacher") is STUDENT_HEAD
    assert run.teacher.whole_head("teacher").weight_VD is run.student.lm_head.weight
    trained = Run(head_trains=True)
    trained.score()
    assert trained.teacher.whole_head("teacher") is trained.teacher.head("teacher")
    assert isinstance(trained.teacher.head("teacher"), Head)


def test_a_head_that_begins_to_train_is_taken_up_before_it_moves():
    run = Run()
    run.score()
    run.teacher.hold_trainable()
    assert run.num_checks == 1  # of the student as it is at the first use
    before = run.student.lm_head.weight.detach().clone()
    run.student.lm_head.requires_grad_(True)
    run.teacher.hold_trainable()
    assert run.num_checks == 2
    run.step()
    assert torch.equal(run.teacher.head("teacher").weight_VD, before)


def test_a_head_that_is_frozen_since_is_the_one_that_was_saved():
    """A live teacher has no values, and so a resumed one cannot know what has trained."""
    run = Run(head_trains=True)
    run.score()
    before = run.student.lm_head.weight.detach().clone()
    run.step()
    past = run.teacher.past_heads()
    assert torch.equal(past["teacher"][0], before)
    resumed = Run(head_trains=False)
    resumed.student.load_state_dict(run.student.state_dict())
    resumed.num_steps = run.num_steps
    resumed.teacher.restore_heads(past)
    assert torch.equal(resumed.teacher.head("teacher").weight_VD, before)
    resumed.teacher.restore_heads({"teacher": None})
    assert resumed.teacher.head("teacher") is STUDENT_HEAD


@pytest.mark.parametrize("kind", ["ema", "base", "live"])
def test_a_rollout_batch_keeps_its_head_until_it_is_used(kind):
    run = Run(kind, head_trains=True)
    run.score()
    first = run.teacher.head("teacher").weight_VD.detach().clone()
    run.step()
    run.teacher.update(1)
    run.batch_number = 1
    run.score()
    second = run.teacher.head("teacher").weight_VD
    now = lm_head_of(run.student).weight_VD.detach()
    expected = {"ema": (first + now) / 2, "base": first, "live": now}[kind]
    torch.testing.assert_close(second.detach(), expected)
    run.batch_number = 0
    assert torch.equal(run.teacher.head("teacher").weight_VD, first)
    run.batch_number = 1
    run.teacher.forget_used()
    run.batch_number = 0
    with pytest.raises(KeyError):
        _ = run.teacher.head("teacher")
