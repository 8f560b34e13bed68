"""Feedback that reward functions hand over with `log_extra("feedback", texts)`, one text or None per rollout."""

from collections.abc import Sequence

FEEDBACK_COLUMN = "feedback"  # of the completions table
_OPTION = "log_extra('feedback', texts)"


class Feedback:
    """The feedback of one batch, joined over the functions that give any."""

    def __init__(self) -> None:
        self._texts: list[str | None] = []

    def add(self, texts: Sequence[str | None], num_rollouts: int) -> None:
        """Join the feedback of one more function to that of those before it, line by line, rollout by rollout.

        Raises:
            ValueError: a value is neither text nor None, or there is not one for each rollout; none at all is taken.
        """
        for row, text in enumerate(texts):
            if not isinstance(text, str | None):
                raise ValueError(
                    f"{_OPTION} got {text!r} for rollout {row}; give text, or None, per completion."
                )
        if texts and len(texts) != num_rollouts:
            raise ValueError(
                f"{_OPTION} got {len(texts)} texts for {num_rollouts} rollouts; give one text, or None, per completion."
            )
        if self._texts and texts:
            texts = ["\n".join(filter(None, both)) for both in zip(self._texts, texts, strict=True)]
        self._texts = list(texts or self._texts)

    def take(self) -> list[str | None] | None:
        """Return the joined feedback and begin anew; None where no function gave any."""
        texts, self._texts = self._texts, []
        return texts or None
