"""Feedback that reward functions hand over with `log_extra("feedback", texts)`, one text or None per rollout."""

from collections.abc import Sequence

_OPTION = "log_extra('feedback', texts)"


def joined_feedback(earlier: Sequence[str | None] | None, values: Sequence[str | None]) -> list[str | None]:
    """Return the feedback of one more function joined to that of those before it, line by line, rollout by rollout.

    Args:
        earlier: of the functions before; None or empty where there is none.
        values: of this one.
    Raises:
        ValueError: a value is neither text nor None, or the numbers of rollouts differ.
    """
    for row, value in enumerate(values):
        if not isinstance(value, str | None):
            raise ValueError(
                f"{_OPTION} got {value!r} for rollout {row}; give text, or None, per completion."
            )
    if not earlier:
        return list(values)
    return ["\n".join(filter(None, texts)) for texts in zip(earlier, values, strict=True)]


def feedback_texts(feedback: Sequence[str | None] | None, num_rollouts: int) -> list[str]:
    """Return the feedback of each rollout, empty where there is none.

    Raises:
        ValueError: there is feedback, and not for as many rollouts.
    """
    if feedback and len(feedback) != num_rollouts:
        raise ValueError(
            f"{_OPTION} got {len(feedback)} texts for {num_rollouts} rollouts; give one text, or None, per completion."
        )
    return [text or "" for text in feedback or [None] * num_rollouts]
