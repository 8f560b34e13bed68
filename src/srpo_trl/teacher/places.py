"""Whether the prompts of a dataset can show a teacher anything, told by the first of them."""

import warnings
from typing import Any

from srpo_trl.seams.messages import last_user_position
from srpo_trl.teacher.context import TeacherPromptEncoder


def check_first_prompt(prompt: Any, encoder: TeacherPromptEncoder) -> None:
    """Refuse a chat template that gives no row a teacher, and warn where rows like the first one have none.

    Raises:
        ValueError: the chat template does not render a user's text exactly once.
    """
    if not prompt or encoder.has_place(prompt):
        if isinstance(prompt, str) and encoder.turn_in_text(prompt) is None:
            _warn_of_markers(encoder.markers_in(prompt))
        return
    if last_user_position(prompt) is not None:
        raise ValueError(
            "The chat template does not render the text of the last user turn exactly once, as the teacher's re-prompt "
            "needs it. Give the tokenizer another chat template, or set method='grpo'."
        )
    roles = ", ".join(repr(message["role"]) for message in prompt)
    warnings.warn(
        f"The first prompt of train_dataset has no user turn; its roles are {roles}. Rows like it have no teacher and "
        "train by GRPO (srpo/teacher/prompts_without_turn counts them). Give the task as a user turn.",
        stacklevel=2,
    )


def _warn_of_markers(markers: list[str]) -> None:
    if not markers:
        return
    warnings.warn(
        f"The first prompt of train_dataset is text with the marker(s) {', '.join(markers)}, but not as the "
        "tokenizer's chat template writes a user's turn: what the teacher is shown will stand at the end of the "
        "prompt. Give conversations (lists of messages), or set tokenizer.chat_template to the template that the texts "
        "were made with.",
        stacklevel=3,
    )
