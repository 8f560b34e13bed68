"""Where the last user turn stands in a prompt of text to which a chat template has already been applied."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple
from uuid import uuid4

from srpo_trl.seams.messages import ROW_ERRORS

_THINKING = re.compile(r"\s*<think>.*\Z", re.DOTALL)  # some templates open or skip the thinking themselves
_FIRST, _ANSWER, _LAST = (f"srpo-{name}-{uuid4().hex}" for name in ("first", "answer", "last"))


class TurnFormat(NamedTuple):
    """How a chat template writes a user's turn; texts are empty where it writes nothing.

    Attributes:
        header: what stands before the user's text.
        closings: what may follow it, the likeliest first: with the assistant's header, and without.
    """

    header: str
    closings: tuple[str, ...]


def turn_format(
    render: Callable[[list[dict[str, Any]], bool], str], bos_token: str | None, eos_token: str | None
) -> TurnFormat | None:
    """Return how a chat template writes a user's turn; None where it cannot be told.

    Args:
        render: the template, of messages and whether to open the assistant's turn.
        bos_token, eos_token: of the tokenizer, which stand beside turns and belong to none.
    """
    last = {"role": "user", "content": _LAST}
    try:
        asked, open_ = render([last], True), render([last], False)
    except ROW_ERRORS:
        return None
    if asked.count(_LAST) != 1 or open_.count(_LAST) != 1:
        return None
    before, after = asked.split(_LAST)
    opening, closing = _THINKING.sub("", after), open_.split(_LAST)[1]
    closings = dict.fromkeys([opening, opening.strip(), closing, closing.strip()])
    found = tuple(text for text in closings if text.strip())
    if not found:
        return None
    return TurnFormat(_header(render, before, [closing, bos_token, eos_token]), found)


def _header(
    render: Callable[[list[dict[str, Any]], bool], str], before_first: str, between: list[str | None]
) -> str:
    """Return what a first user turn and a later one both have before their text."""
    turns = [
        {"role": "user", "content": _FIRST},
        {"role": "assistant", "content": _ANSWER},
        {"role": "user", "content": _LAST},
    ]
    try:
        conversation = render(turns, True)
    except ROW_ERRORS:
        return ""
    if conversation.count(_ANSWER) != 1 or conversation.count(_LAST) != 1:
        return ""
    marks = [text.strip() for text in between if text and text.strip()]

    def without_marks(text: str) -> str:
        while mark := next((mark for mark in marks if text.lstrip().startswith(mark)), None):
            text = text.lstrip().removeprefix(mark)
        return text

    first = without_marks(before_first)
    later = without_marks(conversation.split(_ANSWER)[1].split(_LAST)[0])
    length = 0
    while length < min(len(first), len(later)) and first[-1 - length] == later[-1 - length]:
        length += 1
    return without_marks(first[len(first) - length :]).lstrip("\n")


def last_user_turn(prompt: str, form: TurnFormat) -> tuple[int, int] | None:
    """Return where the last user's text starts and ends in a rendered prompt; None where it is not one.

    Without a header that is found, everything before the assistant's last header counts as the user's text.
    """
    header = prompt.rfind(form.header) if form.header else -1
    if header < 0:
        ends = [prompt.rfind(text) for text in (form.closings[0], form.closings[0].strip())]
        return next(((0, end) for end in ends if end > 0), None)
    start = header + len(form.header)
    ends = [end for closing in form.closings if (end := prompt.find(closing, start)) >= 0]
    return (start, ends[0]) if ends else None
