"""Feedback, one text or None per rollout: what reward functions hand over with `log_extra("feedback", texts)`, and what
environments have as an attribute `feedback` once their rollouts are graded.
"""

from collections.abc import Sequence
from typing import Any

from srpo_trl.seams.messages import whole_characters

FEEDBACK_COLUMN = "feedback"  # of the completions table
_OF_FUNCTIONS = "log_extra('feedback', texts)"
_OF_ENVIRONMENTS = "An environment's attribute `feedback` (TRL makes a method a tool)"


class Feedback:
    """The feedback of one batch, joined over the functions that give any."""

    def __init__(self) -> None:
        self._texts: list[str | None] = []

    def add(self, texts: Sequence[str | None], num_rollouts: int, source: str = _OF_FUNCTIONS) -> None:
        """Join the feedback of one more function to that of those before it, line by line, rollout by rollout.

        Args:
            texts: of the function.
            num_rollouts: of the batch.
            source: what gives them, for the errors.
        Raises:
            ValueError: a value is neither text nor None, or there is not one for each rollout; none at all is taken.
        """
        for row, text in enumerate(texts):
            if not isinstance(text, str | None):
                raise ValueError(
                    f"{source} got {text!r} for rollout {row}; give text, or None, per completion."
                )
        if texts and len(texts) != num_rollouts:
            raise ValueError(
                f"{source} got {len(texts)} texts for {num_rollouts} rollouts; give one text, or None, per completion."
            )
        if self._texts and texts:
            texts = ["\n".join(filter(None, both)) for both in zip(self._texts, texts, strict=True)]
        self._texts = list(texts or self._texts)

    def read(self, environments: Sequence[Any]) -> None:
        """Join what the rollouts' environments say, after what functions said; one need not have the attribute.

        Raises:
            ValueError: what one says is neither text nor None.
        """
        # Not getattr with a default, which hides an AttributeError inside a property.
        said = [thing.feedback if "feedback" in dir(thing) else None for thing in environments]
        texts = [whole_characters(text) if isinstance(text, str) else text for text in said]
        if any(texts):  # else TRL's table would get an empty column
            self.add(texts, len(environments), _OF_ENVIRONMENTS)

    def take(self) -> list[str | None] | None:
        """Return the joined feedback and begin anew; None where no function gave any."""
        texts, self._texts = self._texts, []
        return texts or None
