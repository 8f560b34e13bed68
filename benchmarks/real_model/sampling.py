"""Samples at temperature 1 for measuring: of the student, and of the teacher in the trainer's own re-prompt."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from benchmarks.real_model.task import Question
from srpo_trl.commands.quickstart.held_out import sample_completions
from srpo_trl.commands.quickstart.prompts import TEMPLATES
from srpo_trl.teacher.context import TeacherPromptEncoder
from srpo_trl.teacher.templates import TeacherInformation

TEMPLATE_OPTIONS = {"enable_thinking": False}  # templates without thinking do not look at it
_MOST_TOKENS = 4096  # of a prompt


class Prompts(NamedTuple):
    """Writes prompts as token ids."""

    tokenizer: Any
    encoder: TeacherPromptEncoder

    @classmethod
    def of(cls, tokenizer: Any) -> "Prompts":
        """With the trainer's defaults."""
        encoder = TeacherPromptEncoder(
            tokenizer,
            TEMPLATES,
            max_length=_MOST_TOKENS,
            chat_template=None,
            chat_template_kwargs=TEMPLATE_OPTIONS,
        )
        return cls(tokenizer, encoder)

    def student(self, question: Question) -> list[int]:
        """Return the question alone."""
        text = self.tokenizer.apply_chat_template(
            question.chat, add_generation_prompt=True, tokenize=False, **TEMPLATE_OPTIONS
        )
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def teacher(self, question: Question, solution: str) -> list[int]:
        """Return the question with a solution shown."""
        prompt = self.encoder.encode(question.chat, TeacherInformation(solution=solution))
        assert prompt is not None, "the solution fits"
        return list(prompt.ids)


def completion_tokens(tokenizer: Any, questions: Sequence[Question]) -> int:
    """Return how long a completion may be: the longest answer, and room for its end and for a word before it."""
    return 4 + max(len(ids) for ids in tokenizer([q.answer for q in questions])["input_ids"])


def sample(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int, batch_size: int = 64
) -> list[str]:
    """Return one completion for each prompt; the same each time on one machine."""
    with torch.autocast(model.device.type, torch.bfloat16):
        return sample_completions(model, tokenizer, prompts, 0, max_new_tokens, batch_size)
