"""The strings that make the teacher's last user turn, and what they are filled with."""

from dataclasses import dataclass
from typing import NamedTuple

from srpo_trl.teacher.prompt_pieces import Piece, filled


class TeacherInformation(NamedTuple):
    """f_i of one rollout: what the teacher is shown. Empty string: absent."""

    solution: str = ""
    feedback: str = ""

    def __bool__(self) -> bool:
        """Whether there is anything to show."""
        return bool(self.solution or self.feedback)


@dataclass(frozen=True)
class ContextTemplates:
    """The three strings that make the re-prompt; `{name}` fields are filled, other braces are text."""

    reprompt: str
    solution: str
    feedback: str

    def pieces(self, prompt: str, information: TeacherInformation) -> list[Piece]:
        """Return the teacher's last user turn, in which nothing but the information is untrusted."""
        solution = [Piece(information.solution, is_trusted=False)]
        feedback = [Piece(information.feedback, is_trusted=False)]
        return filled(
            self.reprompt,
            prompt=[Piece(prompt)],
            solution=filled(self.solution, successful_previous_attempt=solution)
            if information.solution
            else [],
            feedback=filled(self.feedback, feedback_raw=feedback) if information.feedback else [],
        )

    def user_turn(self, prompt: str, information: TeacherInformation) -> str:
        """Return the teacher's last user turn as text."""
        return "".join(piece.text for piece in self.pieces(prompt, information))


def fill_template(template: str, **values: str) -> str:
    """Return the template with each `{name}` replaced once; braces inside the values are never interpreted."""
    return "".join(
        piece.text for piece in filled(template, **{name: [Piece(text)] for name, text in values.items()})
    )
