"""Multiple-choice questions: the letter in the last `<answer>` element against the key.

Difference from the grader that the paper's runs used, which `strict_paper=True` brings back: that one takes
what follows the last `<answer>` tag, closed or not, and the whole text where there is no tag. So it counts a
completion that is only the letter, or an element that was cut off before its closing tag.
"""

import functools
import re
from typing import Any

from srpo_trl.rewards.grading import Grade, GradedReward, shorten
from srpo_trl.rewards.shape import has_elements

# The innermost of elements opened twice, so that a stray opening tag does not swallow the answer after it.
_ANSWER_ELEMENT = re.compile(r"<answer>((?:(?!</?answer>).)*)</answer>", re.DOTALL)
_LETTER = re.compile(r"[A-Z]")
_STRICT_FORMAT = re.compile(
    r"\s*(?:<think>.*?</think>\s*)?<reasoning>.*</reasoning>\s*<answer>\s*[A-Z]\s*</answer>\s*", re.DOTALL
)


def get_multiple_choice_reward(*, strict_paper: bool = False, reveal_answer: bool = False) -> GradedReward:
    """Reward 1 where the letter in the last `<answer>` element is the key, else 0; no penalty for the format.

    The key comes from the dataset column `answer`: one capital letter; anything else is unusable and rewarded
    None.

    Args:
        strict_paper: grade exactly as the paper's runs did (see the module's docstring).
        reveal_answer: let the feedback name the correct letter.
    Returns:
        A TRL reward function named `multiple_choice_reward`.
    """
    grade = functools.partial(grade_multiple_choice, strict_paper=strict_paper, reveal_answer=reveal_answer)
    return GradedReward(
        "multiple_choice_reward",
        grade,
        extract_answer=functools.partial(extract_choice, strict_paper=strict_paper),
        follows_format=follows_choice_format,
    )


def grade_multiple_choice(
    text: str, answer: Any, *, strict_paper: bool = False, reveal_answer: bool = False
) -> Grade:
    """Grade of one completion; the letter must match in case, with only white space beside it."""
    key = answer.strip() if isinstance(answer, str) else ""
    if not _LETTER.fullmatch(key):
        problem = f"{shorten(repr(answer))} is not one capital letter"
        return Grade(reward=None, answer_problem=problem)
    choice = _paper_choice(text) if strict_paper else _last_element(text)
    if choice == key:
        return Grade(reward=1.0)
    feedback = _feedback(choice if "<answer>" in text else None)
    if reveal_answer:
        feedback += f" The correct option is {key}."
    return Grade(reward=0.0, feedback=feedback)


def extract_choice(text: str, *, strict_paper: bool = False) -> str | None:
    """What the last `<answer>` element holds, None where there is none or it is empty."""
    return (_paper_choice(text) if strict_paper else _last_element(text)) or None


def follows_choice_format(text: str) -> bool:
    """Whether `text` is one `<reasoning>` and one `<answer>` element, as the paper's prompts ask, and nothing else.

    The answer is one capital letter; white space is free, and a thinking block may come first.
    """
    return has_elements(text, ("reasoning", "answer")) and bool(_STRICT_FORMAT.fullmatch(text))


def _last_element(text: str) -> str | None:
    elements = _ANSWER_ELEMENT.findall(text)
    return elements[-1].strip() if elements else None


def _paper_choice(text: str) -> str:
    return text.split("<answer>")[-1].split("</answer>")[0].strip()


def _feedback(choice: str | None) -> str:
    if choice is None:
        return "The response has no complete <answer>...</answer> element with the chosen option's letter."
    if not choice:
        return "The last <answer> element is empty: it must hold the letter of the chosen option."
    if not _LETTER.fullmatch(choice):
        return f"The last <answer> element holds {shorten(choice)!r}, which is not one option's letter alone."
    return f"The chosen option {choice} is wrong."


multiple_choice_reward = get_multiple_choice_reward()
