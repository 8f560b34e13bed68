"""What all graders share: reading a completion's text, and turning a grader of one row into a TRL reward.

A grader is a pure function `(text, answer) -> Grade`; `GradedReward` runs it over a batch as TRL calls it.
"""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

logger = logging.getLogger(__name__)

SHOWN_CHARACTERS = 80

# What an odd text can make of a pure function. Anything else (memory, files, network, interrupts) stops the run.
GRADER_ERRORS: tuple[type[BaseException], ...] = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RecursionError,
    SystemExit,  # a parser of arguments or a script that grades ends so
    TypeError,
    ValueError,
)


class Grade(NamedTuple):
    """The judgment of one completion.

    Attributes:
        reward: the score; None where nothing can be said: the row's reference answer is unusable, or the grader
            broke on it.
        feedback: what is wrong, for the teacher's prompt; empty where the completion is correct or ungraded.
        answer_problem: why there is no score; empty where there is one.
    """

    reward: float | None
    feedback: str = ""
    answer_problem: str = ""


class GradedReward:
    """A TRL reward function that grades each completion against the dataset column `answer`.

    An object and not a closure because TRL sends reward functions to other processes, and closures do not
    pickle. Its options live in `grade`, out of reach of dataset columns that have an option's name.

    Attributes:
        grade: judges one completion.
        extract_answer: text -> the answer in it, None where there is none; answers that are equal count as one in a
            majority vote.
        follows_format: text -> whether it is written strictly as the prompt asks, whatever its answer.
        num_threads: rows that are graded at once, for a grader that waits for other processes.
    """

    def __init__(
        self,
        name: str,
        grade: Callable[[str, Any], Grade],
        *,
        extract_answer: Callable[[str], str | None],
        follows_format: Callable[[str], bool],
        num_threads: int = 1,
    ) -> None:
        self.__name__ = name  # TRL names the metrics and the column of the completions table after it
        self.grade = grade
        self.extract_answer = extract_answer
        self.follows_format = follows_format
        self.num_threads = num_threads

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.__name__!r}, {self.grade!r})"

    def __call__(
        self,
        completions: list[Any],
        answer: list[Any],
        log_extra: Callable[[str, list[Any]], None] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **kwargs: Any,
    ) -> list[float | None]:
        """Rewards of a batch; its feedback goes to `log_extra("feedback", ...)`.

        Args:
            completions: one string or one list of messages per row; the last assistant message is graded.
            answer: the reference answer of each row.
            log_extra: receives one feedback text per row, empty for rows that are correct or ungraded.
            log_metric: receives the fraction of rows without a reward.
            kwargs: everything else that TRL passes; not used.
        Returns:
            One reward per row; None where the reference answer is unusable or the grader raised one of
            `GRADER_ERRORS` (a warning is logged).
        Raises:
            ValueError: `completions` and `answer` differ in length.
            Exception: what the grader raised, where it did so on every one of several rows: then it is broken.
        """
        if len(completions) != len(answer):
            raise ValueError(
                f"{self.__name__} was given {len(completions)} completions and {len(answer)} answers; "
                "pass one reference answer per completion."
            )
        if self.num_threads == 1:  # graders may need the main thread
            judged = list(map(self._judge, completions, answer))
        else:
            with ThreadPoolExecutor(self.num_threads) as threads:
                judged = list(threads.map(self._judge, completions, answer))
        grades = [grade for grade, _ in judged]
        errors = [error for _, error in judged if error is not None]
        if len(errors) == len(grades) > 1:
            raise errors[0]
        problems = [(row, grade.answer_problem) for row, grade in enumerate(grades) if grade.reward is None]
        if problems:
            first_row, first_problem = problems[0]
            logger.warning(
                "%s: %d of %d rows cannot be graded and get no reward, first row %d: %s",
                self.__name__,
                len(problems),
                len(grades),
                first_row,
                first_problem,
            )
        if log_metric is not None and grades:
            log_metric(f"rewards/{self.__name__}/unscorable_frac", len(problems) / len(grades))
        if log_extra is not None:
            log_extra("feedback", [grade.feedback for grade in grades])
        return [grade.reward for grade in grades]

    def _judge(self, completion: Any, answer: Any) -> tuple[Grade, BaseException | None]:
        try:
            return self.grade(completion_text(completion), answer), None
        except GRADER_ERRORS as error:
            return Grade(None, answer_problem=f"the grader raised {shorten(repr(error))}"), error


def completion_text(completion: Any) -> str:
    """Text that the assistant said last: a plain completion itself, or the last assistant message's content.

    A message without a role counts as the assistant's. Content in parts (`{"type": "text", "text": ...}`) is
    joined. Anything else reads as the empty string, which is graded like any completion.
    """
    if isinstance(completion, str):
        return completion
    messages = completion if isinstance(completion, list) else []
    for message in reversed(messages):
        if isinstance(message, dict) and message.get("role", "assistant") == "assistant":
            return _content_text(message.get("content"))
    return ""


def shorten(text: str) -> str:
    """`text` on one line, at most `SHOWN_CHARACTERS` long, for messages that quote a model or a file."""
    line = " ".join(text.split())
    return line if len(line) <= SHOWN_CHARACTERS else line[: SHOWN_CHARACTERS - 3] + "..."


def _content_text(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = [part.get("text") for part in parts if isinstance(part, dict) and part.get("type") == "text"]
    return "".join(text for text in texts if isinstance(text, str))
