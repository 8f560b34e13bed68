"""Scorers that several methods name."""

from srpo_trl.methods.record import OWN_CONTEXT, Scorer

EXTERNAL = Scorer(
    weights="external", context=OWN_CONTEXT, distils=False
)  # `teacher_model`, after the same prompt
STUDENT = Scorer("student", weights="student", context=OWN_CONTEXT, distils=False)
INITIAL = Scorer("initial", weights="initial", context=OWN_CONTEXT, distils=False)


def teacher(*, is_self: bool, distils: bool = False) -> Scorer:
    """Return the scorer "teacher": the self-teacher with what it is shown, or `teacher_model` after the same prompt."""
    return Scorer(distils=distils) if is_self else EXTERNAL._replace(distils=distils)
