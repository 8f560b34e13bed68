"""Python programs against tests: each runs apart from this process, and what it gives is compared here.

A row's tests are the JSON text of `{"inputs": [...], "outputs": [...], "fn_name": ...}`. Without `fn_name` a test's
input is the program's standard input and its output what it prints; with it, the input is the function's arguments and
the output its value. (APPS puts some values into a list of one: take them out.)
"""

import functools
import json
import os
import re
import textwrap
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from typing import Any, NamedTuple

from srpo_trl.rewards.grading import Grade, GradedReward, shorten
from srpo_trl.rewards.sandbox import Execution, Executor, Limits, Task, run_python

_OPENING = re.compile(r"(?P<before>[^`]*)(?P<fence>`{3,})[ \t]*(?P<language>[^\s`]*)[^`]*")
_CLOSING = re.compile(r"(?P<before>[^`]*)(?P<fence>`{3,})\s*")
_STRING = re.compile(r"""\\.|\"{3}|'{3}|["'#]""")  # what begins and ends strings and comments
_PYTHON = ("python", "python3", "py")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_SHOWN = 200  # characters of an input, an output or an error in feedback


class CodeTest(NamedTuple):
    """One test: what the program is given, and what it must give."""

    stdin: str
    arguments: Sequence[Any]
    expected: Any


def get_code_reward(
    *,
    share: bool = False,
    reveal_answer: bool = False,
    max_tests: int | None = None,
    limits: Limits = Limits(),  # noqa: B008 (immutable)
    executor: Executor = run_python,
    num_threads: int | None = None,
) -> GradedReward:
    """Reward 1 where the last Python block of the completion passes all tests, else 0 or the share that it passes.

    The tests come from the dataset column `answer` (see the module's docstring); the first that fails, or the exception
    with its line, is the feedback.

    Args:
        share: reward the share of passed tests. Every test is run then, else none after the first that fails.
        reveal_answer: let the feedback name what the failed test expects.
        max_tests: run the first tests alone.
        limits: of each test's run.
        executor: (task, limits) -> execution: runs a program elsewhere, such as in a remote sandbox.
        num_threads: completions that are graded at once; None: 4, or as many as there are processors.
    Returns:
        A TRL reward function named `code_reward`.
    Raises:
        ValueError: `max_tests` is less than 1.
    """
    if max_tests is not None and max_tests < 1:
        raise ValueError(f"max_tests is {max_tests}. Give 1 or more, or None for all tests.")
    grade = functools.partial(
        grade_code,
        share=share,
        reveal_answer=reveal_answer,
        max_tests=max_tests,
        limits=limits,
        executor=executor,
    )
    return GradedReward(
        "code_reward",
        grade,
        extract_answer=extract_program,
        follows_format=follows_code_format,
        num_threads=num_threads or min(4, os.cpu_count() or 1),
    )


def grade_code(
    text: str,
    answer: Any,
    *,
    share: bool = False,
    reveal_answer: bool = False,
    max_tests: int | None = None,
    limits: Limits = Limits(),  # noqa: B008 (immutable)
    executor: Executor = run_python,
) -> Grade:
    """Grade of one completion; see `get_code_reward`."""
    try:
        function, tests = parse_tests(answer)
    except ValueError as error:
        return Grade(reward=None, answer_problem=str(error))
    program = extract_program(text)
    if program is None:
        return Grade(reward=0.0, feedback="The response has no complete ```python block with the program.")
    passed, feedback = 0, ""
    tests = tests[:max_tests]
    for test in tests:
        wanted = test.expected if function is None else json.dumps(test.expected)
        room = limits._replace(output_kb=limits.output_kb + len(wanted.encode(errors="replace")) // 1024)
        run = executor(Task(program, test.stdin, function, test.arguments), room)
        if not run.error and matches(run.output, test.expected, is_value=function is not None):
            passed += 1
            continue
        feedback = feedback or _feedback(test, run, function, reveal_answer)
        if not share:
            break
    return Grade(reward=passed / len(tests) if share else float(passed == len(tests)), feedback=feedback)


def parse_tests(answer: Any) -> tuple[str | None, list[CodeTest]]:
    """Return the function's name, None where programs read standard input, and the tests.

    Raises:
        ValueError: `answer` is not such tests.
    """
    try:
        tests = json.loads(answer) if isinstance(answer, str) else answer
        function, inputs, outputs = tests.get("fn_name"), tests["inputs"], tests["outputs"]
        pairs = list(zip(inputs, outputs, strict=True))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{shorten(repr(answer))} is not JSON with inputs and outputs of equal number"
        ) from error
    if not pairs:
        raise ValueError(f"{shorten(repr(answer))} has no tests")
    if function is not None:
        if not all(isinstance(given, list | tuple) for given in inputs):
            raise ValueError(f"{shorten(repr(answer))} has inputs that are no lists of arguments")
        return str(function), [CodeTest("", given, expected) for given, expected in pairs]
    return None, [CodeTest(_joined(given), (), _joined(expected)) for given, expected in pairs]


class _Block(NamedTuple):
    """A block of code in a completion; `code` is None where it does not end."""

    language: str
    code: str | None


def extract_program(text: str) -> str | None:
    """Return the last complete block named Python, else the last one without a name; None where there is none."""
    blocks = _blocks(text)
    for languages in (_PYTHON, ("",)):
        for block in reversed(blocks):
            if block.language in languages and block.code is not None:
                return block.code
    return None


def follows_code_format(text: str) -> bool:
    """Whether a completion has exactly one block of code, complete and of Python."""
    return len(_blocks(text)) == 1 and extract_program(text) is not None


def _blocks(text: str) -> list[_Block]:
    lines = text.replace("\r\n", "\n").split("\n")
    blocks, number = [], 0
    while number < len(lines):
        opening = _OPENING.fullmatch(lines[number])
        number += 1
        if opening is None:
            continue
        language = opening["language"].lower()
        if opening["before"].strip() and language not in _PYTHON:
            continue  # prose
        inside, number = _read_block(lines, number, opening["fence"], language in _PYTHON)
        if inside is None:
            blocks.append(_Block(language, None))
            continue
        code = "\n".join(inside) + "\n"
        is_indented = not opening["before"].strip() and opening["before"]
        blocks.append(_Block(language, textwrap.dedent(code) if is_indented else code))
    return blocks


def _read_block(lines: list[str], start: int, fence: str, is_python: bool) -> tuple[list[str] | None, int]:
    """Return the lines of the block that starts there, None where it does not end, and the number of the next line.

    A fence within a string of several lines does not end it, unless nothing else does.
    """
    quote, within_string = "", None
    for number in range(start, len(lines)):
        closing = _CLOSING.fullmatch(lines[number])
        if closing and closing["fence"].startswith(fence):
            inside = lines[start:number] + ([closing["before"]] if closing["before"].strip() else [])
            if not quote:
                return inside, number + 1
            within_string = within_string or (inside, number + 1)
        if is_python:
            quote = _open_string(lines[number], quote)
    return within_string or (None, len(lines))


def _open_string(line: str, quote: str) -> str:
    """Return the triple quote that is open after a line, given the one before it; empty where none is."""
    for token in _STRING.findall(line):
        if quote:
            quote = "" if token == quote else quote
        elif token == "#":
            break
        elif token[0] in "\"'":
            quote = token
    return quote if len(quote) == 3 else ""


def matches(output: str, expected: Any, *, is_value: bool) -> bool:
    """Return whether an output is the expected one.

    Args:
        output: what the program printed, or the function's value as JSON.
        expected: text, compared line by line without white space at its ends, numbers by value; or a value, compared as
            JSON: a tuple equals a list, 1 equals 1.0 but not true.
        is_value: which of the two.
    """
    if is_value:
        try:
            return _same_values(json.loads(output), json.loads(json.dumps(expected)))
        except (ValueError, RecursionError):
            return False
    got, wanted_lines = _lines(output), _lines(expected)
    return got == wanted_lines or (
        len(got) == len(wanted_lines) and all(map(_same_numbers, got, wanted_lines))
    )


def _joined(lines: Any) -> str:
    return "\n".join(map(str, lines)) if isinstance(lines, list) else str(lines)


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().splitlines()]


def _same_values(got: Any, wanted: Any) -> bool:
    if isinstance(got, list) and isinstance(wanted, list):
        return len(got) == len(wanted) and all(map(_same_values, got, wanted))
    if isinstance(got, dict) and isinstance(wanted, dict):
        return got.keys() == wanted.keys() and all(_same_values(got[key], wanted[key]) for key in wanted)
    return isinstance(got, bool) == isinstance(wanted, bool) and bool(got == wanted)


def _same_numbers(got: str, wanted: str) -> bool:
    words, wanted_words = got.split(), wanted.split()
    if len(words) != len(wanted_words) or not all(map(_NUMBER.fullmatch, words + wanted_words)):
        return False
    try:
        return all(Decimal(word) == Decimal(other) for word, other in zip(words, wanted_words, strict=True))
    except InvalidOperation:
        return False


def _feedback(test: CodeTest, run: Execution, function: str | None, reveal_answer: bool) -> str:
    if function is None:
        given = f"With the input {_cut(test.stdin)}"
    else:
        given = f"{function}({_cut(', '.join(map(repr, test.arguments)))})"
    if run.error:
        said = f"{given}: {_cut(run.error)}"
    else:
        said = f"{given}: the output was {_cut(run.output.strip()) or 'empty'}, which is wrong."
    if reveal_answer:
        said += f" Expected: {_cut(str(test.expected).strip())}"
    return said


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


code_reward = get_code_reward()
