"""Tool use in the `Action:` / `Action Input:` format, against a reference list of calls.

Correct means: the multiset of action names equals the reference's, and all action inputs merged in order into
one object (later keys win) equal the reference's merged inputs. A block that is not a JSON object contributes
nothing.

Differences from the grader that the paper's runs used, which `strict_paper=True` brings back. That one:
- ends every JSON block at its first `}`, and so loses inputs with nested objects or a `}` inside a string;
- reads an action's name as word characters only, and so misses the label of a reference action such as
  `[Optional]update`, and names with `.`, `-` or `/`;
- reads `Action:` and `Action Input:` inside the JSON's own strings as further calls;
- takes a reference `Action_Input` that is not a JSON object for an empty one; ours rewards such a row None.
"""

import functools
import json
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

from srpo_trl.rewards.grading import Grade, GradedReward, shorten

_ACTION = re.compile(r"Action:\s*(?!Action Input:)((?:\[\w+\])?\w+(?:[./-]\w+)*)")
_ACTION_INPUT = re.compile(r"Action Input:\s*")
_PAPER_ACTION = re.compile(r"Action:\s*(\w+)")
_PAPER_ACTION_INPUT = re.compile(r"Action Input:\s*\{")

# `json` raises a plain ValueError for integers beyond Python's digit limit, RecursionError for deep nesting.
_JSON_ERRORS = (ValueError, RecursionError)

_MAX_PREFIX = 4096  # characters that have been read and still stand before the next block


class ToolCalls(NamedTuple):
    """Calls read from a completion or from a reference.

    Attributes:
        actions: names, in order.
        inputs: all inputs merged, later keys winning.
        problems: one sentence per block that could not be read.
        num_blocks: of inputs, those that could not be read included.
    """

    actions: list[str]
    inputs: dict[str, Any]
    problems: list[str]
    num_blocks: int


def get_tool_use_reward(*, strict_paper: bool = False, reveal_answer: bool = False) -> GradedReward:
    """Reward 1 where action names and merged inputs both equal the reference's, else 0.

    The reference comes from the dataset column `answer`: a JSON list of objects with `Action` (a name) and
    `Action_Input` (a JSON object, or one as a string). Anything else is unusable and rewarded None.

    Args:
        strict_paper: grade exactly as the paper's runs did (see the module's docstring).
        reveal_answer: give the paper's feedback, which prints predicted and expected actions and inputs.
    Returns:
        A TRL reward function named `tool_use_reward`.
    """
    grade = functools.partial(grade_tool_use, strict_paper=strict_paper, reveal_answer=reveal_answer)
    return GradedReward(
        "tool_use_reward",
        grade,
        extract_answer=functools.partial(extract_calls, strict_paper=strict_paper),
        follows_format=follows_call_format,
    )


def grade_tool_use(
    text: str, answer: Any, *, strict_paper: bool = False, reveal_answer: bool = False
) -> Grade:
    """Grade of one completion against one reference list of calls."""
    try:
        expected = _read_reference(answer, strict_paper=strict_paper)
    except ValueError as error:
        return Grade(reward=None, answer_problem=str(error))
    predicted = _read_paper_calls(text) if strict_paper else _read_calls(text)
    actions_match = Counter(predicted.actions) == Counter(expected.actions)
    inputs_match = predicted.inputs == expected.inputs
    if actions_match and inputs_match:
        return Grade(reward=1.0)
    feedback = _revealing_feedback if reveal_answer else _feedback
    return Grade(reward=0.0, feedback=feedback(predicted, expected))


def extract_calls(text: str, *, strict_paper: bool = False) -> str | None:
    """All that the grader compares, as JSON: sorted action names and merged inputs; None where there is neither."""
    calls = _read_paper_calls(text) if strict_paper else _read_calls(text)
    if not calls.actions and not calls.inputs:
        return None
    try:
        return json.dumps([sorted(calls.actions), calls.inputs], sort_keys=True)
    except RecursionError:  # nested a little less deep than what cannot be read
        return None


def follows_call_format(text: str) -> bool:
    """Whether `text` has at least one call, and every `Action:` its own `Action Input:` that is a JSON object."""
    calls = _read_calls(text)
    return 0 < len(calls.actions) == calls.num_blocks and not calls.problems


def parse_reference(answer: Any) -> list[dict[str, Any]]:
    """The calls of a reference answer, `Action_Input` left as it was given.

    Args:
        answer: a JSON list as text, or the list itself; each call an object with `Action` (a name that is not
            empty) and `Action_Input` (text or an object).
    Raises:
        ValueError: it is none of these; the message says what was found.
    """
    calls = answer
    if isinstance(answer, str):
        try:
            calls = json.loads(answer)
        except _JSON_ERRORS as error:
            raise ValueError(f"{shorten(repr(answer))} is not JSON ({error})") from error
    if not isinstance(calls, list) or not calls:
        raise ValueError(f"{shorten(repr(calls))} is not a list of at least one call")
    for number, call in enumerate(calls, start=1):
        if not isinstance(call, dict):
            raise ValueError(f"call {number} is {shorten(repr(call))}, not an object")
        if not isinstance(call.get("Action"), str) or not call["Action"]:
            raise ValueError(f"call {number} has no action name under the key 'Action'")
        if not isinstance(call.get("Action_Input"), str | dict):
            raise ValueError(f"call {number} has neither text nor an object under the key 'Action_Input'")
    return calls


def _read_reference(answer: Any, *, strict_paper: bool) -> ToolCalls:
    calls = parse_reference(answer)
    inputs: dict[str, Any] = {}
    for number, call in enumerate(calls, start=1):
        action_input = call["Action_Input"]
        try:
            action_input = json.loads(action_input) if isinstance(action_input, str) else action_input
        except _JSON_ERRORS as error:
            if not strict_paper:
                raise ValueError(f"the 'Action_Input' of call {number} is not JSON ({error})") from error
            continue
        if isinstance(action_input, dict):
            inputs.update(action_input)
        elif not strict_paper:
            raise ValueError(f"the 'Action_Input' of call {number} is not a JSON object")
    return ToolCalls(
        actions=[call["Action"] for call in calls], inputs=inputs, problems=[], num_blocks=len(calls)
    )


def _read_calls(text: str) -> ToolCalls:
    inputs: dict[str, Any] = {}
    problems: list[str] = []
    outside_json: list[str] = []
    decoder = json.JSONDecoder()
    position, block = 0, 0
    while match := _ACTION_INPUT.search(text, position):
        if position > _MAX_PREFIX:  # an error of json counts the lines of all that was read before it
            text, position = text[position:], 0
            continue
        block += 1
        outside_json.append(text[position : match.end()])
        position = match.end()
        if not text.startswith("{", position):
            problems.append(f"Action Input {block} is not a JSON object.")
            continue
        try:
            action_input, position = decoder.raw_decode(text, position)
        except _JSON_ERRORS as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else "too deep or too large a value"
            problems.append(f"Action Input {block} is not valid JSON ({reason}).")
            continue
        inputs.update(action_input)
    outside_json.append(text[position:])
    return ToolCalls(_ACTION.findall("\n".join(outside_json)), inputs, problems, block)


def _read_paper_calls(text: str) -> ToolCalls:
    inputs: dict[str, Any] = {}
    problems: list[str] = []
    blocks = _paper_blocks(text)
    for number, block in enumerate(blocks, start=1):
        try:
            inputs.update(json.loads(block))
        except _JSON_ERRORS:
            problems.append(f"Action Input {number} could not be read as one flat JSON object.")
    return ToolCalls(_PAPER_ACTION.findall(text), inputs, problems, len(blocks))


def _paper_blocks(text: str) -> list[str]:
    """Return what stands from each input's `{` to the first `}` after it, in time linear in the text's length."""
    blocks: list[str] = []
    position = 0
    while (match := _PAPER_ACTION_INPUT.search(text, position)) is not None:
        start, end = match.end() - 1, text.find("}", match.end())
        if end < 0:
            break
        position = end + 1
        blocks.append(text[start:position])
    return blocks


def _feedback(predicted: ToolCalls, expected: ToolCalls) -> str:
    """What is wrong, in the completion's own names only: nothing that stands in the reference alone."""
    sentences = list(predicted.problems)
    surplus_actions = Counter(predicted.actions) - Counter(expected.actions)
    missing_actions = Counter(expected.actions) - Counter(predicted.actions)
    if not predicted.actions:
        sentences.append("The response has no `Action:` line.")
    elif missing_actions:
        sentences.append("An action that is needed is missing.")
    if surplus_actions:
        sentences.append(f"Wrong, or called too often: {_names(surplus_actions)}.")
    surplus_keys = predicted.inputs.keys() - expected.inputs.keys()
    shared_keys = predicted.inputs.keys() & expected.inputs.keys()
    wrong_keys = [key for key in shared_keys if predicted.inputs[key] != expected.inputs[key]]
    if surplus_keys:
        sentences.append(f"Action input that does not belong: {_names(surplus_keys)}.")
    if wrong_keys:
        sentences.append(f"Action input with a wrong value: {_names(wrong_keys)}.")
    if expected.inputs.keys() - predicted.inputs.keys():
        sentences.append("An action input that is needed is missing.")
    return " ".join(sentences)


def _revealing_feedback(predicted: ToolCalls, expected: ToolCalls) -> str:
    mismatches = []
    if Counter(predicted.actions) != Counter(expected.actions):
        mismatches.append(f"Actions mismatch: predicted {predicted.actions}, expected {expected.actions}")
    if predicted.inputs != expected.inputs:
        mismatches.append(f"Action inputs mismatch: predicted {predicted.inputs}, expected {expected.inputs}")
    return "; ".join(mismatches)


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"`{shorten(name)}`" for name in sorted(names))


tool_use_reward = get_tool_use_reward()
