"""The encoder of teacher prompts that routing uses; no trainer."""

from types import SimpleNamespace

import pytest

from harness import tiny_tokenizer
from srpo_trl.config import FEEDBACK_TEMPLATE, REPROMPT_TEMPLATE, SOLUTION_TEMPLATE
from srpo_trl.rollout.router import prompt_encoder
from srpo_trl.teacher.templates import TeacherInformation

OPTIONS = SimpleNamespace(
    reprompt_template=REPROMPT_TEMPLATE,
    solution_template=SOLUTION_TEMPLATE,
    feedback_template=FEEDBACK_TEMPLATE,
    max_reprompt_length=200,
)


@pytest.mark.parametrize(("room", "fits"), [(None, True), (200, True), (10, False), (0, False)])
def test_a_teacher_prompt_has_the_room_that_the_models_context_leaves(room, fits):
    encoder = prompt_encoder(
        OPTIONS,
        None,
        max_length=room,
        tokenizer=tiny_tokenizer(),
        chat_template=None,
        chat_template_kwargs={},
        processor=None,
    )
    prompt = encoder.encode([{"role": "user", "content": "1+1"}], TeacherInformation(solution="2"))
    assert (prompt is not None) is fits
