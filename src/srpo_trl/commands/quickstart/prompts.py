"""Token ids of the two prompts of a question: the student's, and the teacher's with a right solution shown."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerFast

from srpo_trl.commands.quickstart.task import Question
from srpo_trl.config import FEEDBACK_TEMPLATE, REPROMPT_TEMPLATE, SOLUTION_TEMPLATE
from srpo_trl.teacher.context import TeacherPromptEncoder
from srpo_trl.teacher.templates import ContextTemplates, TeacherInformation

TEMPLATES = ContextTemplates(REPROMPT_TEMPLATE, SOLUTION_TEMPLATE, FEEDBACK_TEMPLATE)


def student_prompts(tokenizer: PreTrainedTokenizerFast, questions: Sequence[Question]) -> list[list[int]]:
    """Return the prompts that the student answers: the question alone."""
    chats = [[{"role": "user", "content": question.prompt}] for question in questions]
    texts = [
        tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False) for chat in chats
    ]
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return ids


def teacher_prompts(tokenizer: PreTrainedTokenizerFast, questions: Sequence[Question]) -> list[list[int]]:
    """Return the prompts that the trainer's teacher reads, each with its question's demonstration.

    They come from the trainer's own encoder, so the warm-up teaches exactly what training shows.
    """
    encoder = TeacherPromptEncoder(
        tokenizer,
        TEMPLATES,
        max_length=tokenizer.model_max_length,
        chat_template=None,
        chat_template_kwargs={},
    )
    prompts = []
    for question in questions:
        prompt = encoder.encode(
            [{"role": "user", "content": question.prompt}],
            TeacherInformation(solution=question.demonstration),
        )
        assert prompt is not None, "the demonstration fits"
        prompts.append(list(prompt.ids))
    return prompts
