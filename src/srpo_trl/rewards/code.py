"""Python programs against tests: each runs apart from this process, and what it gives is compared here.

A row's tests are the JSON text of `{"inputs": [...], "outputs": [...], "fn_name": ...}`, as APPS and LiveCodeBench are
published. Without `fn_name` a test's input is the program's standard input and its output what it prints; with it, the
input is the function's arguments and the output its value.
"""

import functools
import json
import re
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from typing import Any, NamedTuple

from srpo_trl.rewards.grading import Grade, GradedReward, shorten
from srpo_trl.rewards.sandbox import Execution, Executor, Limits, Task, run_python

_BLOCK = re.compile(r"```(?:python|py|python3)?[ \t]*\n(.*?)```", re.DOTALL)
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
    num_threads: int = 4,
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
        num_threads: completions that are graded at once.
    Returns:
        A TRL reward function named `code_reward`.
    """
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
        num_threads=num_threads,
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
        run = executor(Task(program, test.stdin, function, test.arguments), limits)
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
        return str(function), [CodeTest("", given, expected) for given, expected in pairs]
    return None, [CodeTest(_joined(given), (), _joined(expected)) for given, expected in pairs]


def extract_program(text: str) -> str | None:
    """Return the last complete block of Python in a completion, None where there is none."""
    blocks = _BLOCK.findall(text)
    return blocks[-1] if blocks else None


def follows_code_format(text: str) -> bool:
    """Whether a completion has exactly one complete block of code."""
    return len(_BLOCK.findall(text)) == 1 and text.count("```") == 2


def matches(output: str, expected: Any, *, is_value: bool) -> bool:
    """Return whether an output is the expected one.

    Args:
        output: what the program printed, or the function's value as JSON.
        expected: text, compared line by line without white space at its ends, numbers by value; or a value, compared as
            JSON, where a list of one stands for what it holds, as published tests have it.
        is_value: which of the two.
    """
    if is_value:
        try:
            value = json.loads(output)
        except (ValueError, RecursionError):
            return False
        wanted = json.loads(json.dumps(expected))
        return bool(value == wanted or [value] == wanted)
    got, wanted_lines = _lines(output), _lines(expected)
    return got == wanted_lines or (
        len(got) == len(wanted_lines) and all(map(_same_numbers, got, wanted_lines))
    )


def _joined(lines: Any) -> str:
    return "\n".join(map(str, lines)) if isinstance(lines, list) else str(lines)


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().splitlines()]


def _same_numbers(got: str, wanted: str) -> bool:
    try:
        return [Decimal(word) for word in got.split()] == [Decimal(word) for word in wanted.split()]
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
