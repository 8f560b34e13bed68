"""Whatever a model writes is read in linear time: degenerate rollouts repeat a few characters thousands of times.

Times depend on the machine. So each reader has texts of a million characters, for which one of linear time needs
seconds and one of quadratic time many minutes; the limit, of the processor's time, lies far from both. Readers of
mathematics, which take longer for each character, have fewer.
"""

import multiprocessing
import re
import resource

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srpo_trl.commands.report.examples import Example, Token, pieces
from srpo_trl.rewards import maths, multiple_choice, shape, tool_use
from srpo_trl.rewards.expression_bounds import (
    MAX_RUN,
    is_costly_expression,
    is_costly_text,
    last_box,
    shortened_runs,
)
from srpo_trl.teacher.context import demonstration_text, remove_thinking

NUM_CHARACTERS = 1_000_000
NUM_CHARACTERS_OF_MATHEMATICS = 200_000
LIMIT_SECONDS = 90

UNITS = [
    *(
        "<think>",
        "</think>",
        "<think></think>",
        "<answer>",
        "</answer>",
        "<answer>A",
        "<reasoning>",
        "<reasoning></reasoning>",
    ),
    *(
        "Action:",
        "Action: ",
        "Action:[",
        "Action: a.",
        "Action Input:",
        "Action Input: {",
        'Action Input: {"a": [',
        'Action Input: {"',
    ),
    *(
        "{",
        "}",
        "[",
        "(",
        ")",
        r"\boxed{",
        r"\boxed{1",
        r"\boxed{1} ",
        r"\(",
        r"\[",
        "$",
        "$1",
        "$$",
        r"\frac{",
        r"\text{",
    ),
    *(
        " ",
        "\n",
        "1",
        "1 ",
        "1+",
        "9^",
        "1,000 ",
        "-",
        ".",
        "=",
        "answer: ",
        "final answer is ",
        "a",
        "\\",
        "%",
        "é",
        '"',
    ),
]

REFERENCE = '[{"Action": "f", "Action_Input": {"a": 1}}]'

READERS = {
    "remove_thinking": remove_thinking,
    "demonstration": lambda text: demonstration_text([{"role": "assistant", "content": text}]),
    "multiple choice": lambda text: multiple_choice.grade_multiple_choice(text, "A"),
    "multiple choice, strict": lambda text: multiple_choice.grade_multiple_choice(
        text, "A", strict_paper=True
    ),
    "choice format": multiple_choice.follows_choice_format,
    "choice format around": lambda text: multiple_choice.follows_choice_format(
        f"<think>{text}</think> <reasoning>{text}</reasoning> {text}<answer>A</answer>{text}"
    ),
    "elements": lambda text: shape.has_elements(text, ("reasoning", "answer")),
    "tool use": lambda text: tool_use.grade_tool_use(text, REFERENCE),
    "tool use, strict": lambda text: tool_use.grade_tool_use(text, REFERENCE, strict_paper=True),
    "tool calls": tool_use.extract_calls,
    "tool format": tool_use.follows_call_format,
    "one box": maths.has_one_box,
    "mathematics": lambda text: maths.grade_math(text, "5"),
    "mathematics in a box": lambda text: maths.grade_math(rf"\boxed{{{text}}}", "5"),
    "mathematics before a box": lambda text: maths.grade_math(text + r" \boxed{5}", "5"),
    "expression": maths.extract_expression,
}


def within_limit(function, *arguments):
    """Run a function in a fork that the kernel ends after so much of the processor's time; no alarm helps."""

    def limited():
        resource.setrlimit(resource.RLIMIT_CPU, (LIMIT_SECONDS, LIMIT_SECONDS))
        maths.PARSING_TIMEOUT_SECONDS = maths.VERIFY_TIMEOUT_SECONDS = 0
        function(*arguments)

    process = multiprocessing.get_context("fork").Process(target=limited)
    process.start()
    process.join()
    assert process.exitcode == 0


def read_all(name):
    is_mathematics = "mathematics" in name or name == "expression"
    length = NUM_CHARACTERS_OF_MATHEMATICS if is_mathematics else NUM_CHARACTERS
    for unit in UNITS:
        READERS[name](unit * (length // len(unit)))


@pytest.mark.parametrize("name", READERS)
def test_readers_take_linear_time(name):
    within_limit(read_all, name)


def test_neighboring_tokens_are_joined_once():
    unknown = (None,) * 5
    tokens = [Token("word ", None if n % 2 else 0.0, *unknown) for n in range(4)]
    tokens += [Token("x", 0.0, *unknown)] * 200_000
    example = Example(1, None, "", "", "", tokens)
    found = pieces(example, 1.0)
    assert [piece.look for piece in found] == ["plain", "undistilled", "plain", "undistilled", "plain"]
    assert found[-1].text == "x" * 200_000


# ------------------------------------------------------------------ the same results as the patterns before

TEXTS = st.lists(
    st.sampled_from(
        [
            "<think>",
            "</think>",
            "<",
            "think>",
            " ",
            "\n",
            "\x1c",
            "a",
            "{",
            "}",
            "Action Input:",
            "Action: f ",
        ]
    ),
    max_size=14,
).map("".join)


def thinking_removed_by_patterns(text):
    text = re.sub(r"<think>.*?</think>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"\A.*?</think>\s*", "", text, flags=re.DOTALL)
    return re.sub(r"<think>.*\Z", "", text, flags=re.DOTALL)


@settings(max_examples=1000, deadline=None)
@given(TEXTS)
def test_thinking_is_removed_as_by_the_patterns(text):
    assert remove_thinking(text) == thinking_removed_by_patterns(text)


@settings(max_examples=1000, deadline=None)
@given(TEXTS)
def test_blocks_are_those_of_the_official_pattern(text):
    assert tool_use._paper_blocks(text) == re.findall(r"Action Input:\s*({.*?})", text, re.DOTALL)


# ------------------------------------------------------------------ mathematics

TOWERS = [
    r"\boxed{9^{9^{9}}}",
    r"\boxed{9^{999999999}}",
    r"\boxed{(9^9)^{(9^9)}}",
    r"\boxed{9!!!}",
    r"\boxed{999999999!}",
    r"\boxed{(10^9)!}",
    r"\boxed{\frac{1}{9^{9^9}}}",
    r"\boxed{x^{9^{9^9}}}",
    r"\boxed{(x+1)^{999999}}",
    r"\boxed{\sqrt[9^{9^9}]{2}}",
    r"\boxed{\gcd(9^{9^9}, 3)}",
    r"\boxed{\gcd(9^{9^9}, 3)} \boxed{?}",
    r"\boxed{\binom{999999999}{499999999}}",
    r"\boxed{\binom{10^9}{10^8}}",
    r"\boxed{\sin(10^{10^5})}",
    r"\boxed{\sum_{k=1}^{10^9} k^k}",
    r"\boxed{\log(9^{9^9})}",
    r"\boxed{\begin{pmatrix}9^{9^9}&1\\1&2\end{pmatrix}}",
    r"\boxed{" + "(" * 300 + "1" + ")" * 300 + "}",
    r"\boxed{1" + "+1" * 3000 + "}",
    "9^9^9",
    "9**9**9//3",
    "the answer is -9**9**9.",
]


def grade_towers():
    assert maths.grade_math(r"\boxed{10}", "10").reward == 1.0
    for text in TOWERS:
        grade = maths.grade_math(text, "5")
        assert grade.reward == 0.0, text
        assert grade.feedback, text
        assert maths.grade_math(text, "x^2+1").reward == 0.0, text
        assert maths.grade_math(rf"{text} so \boxed{{5}}", "5").reward in (0.0, 1.0), text


def test_towers_are_wrong_at_once():
    within_limit(grade_towers)


def test_a_tower_as_the_reference_grades_by_its_text_alone():
    gold = "10^{10^{10}}"
    assert maths.grade_math(r"\boxed{10^{10^{10}}}", gold).reward == 1.0
    wrong = maths.grade_math(r"\boxed{10^{11^{10}}}", gold)
    assert wrong == (None, "", "'10^{10^{10}}' takes too long to compute")


@pytest.mark.parametrize(
    ("text", "gold"),
    [
        (r"\boxed{2^{2024}}", "2^{2024}"),
        (r"\boxed{2^{10} \cdot 2^{2014}}", "2^{2024}"),
        (r"\boxed{2024!}", "2024 \\cdot 2023!"),
        (r"\boxed{\binom{10}{3}}", "120"),
        (r"\boxed{\gcd(2^{10}, 48)}", "16"),
        (r"\boxed{e^{2x}}", "$e^{x} \\cdot e^{x}$"),
        (r"\boxed{(x+1)^{10}}", "$(x+1)^{10}$"),
        (r"\boxed{\sum_{k=1}^{10} k}", "55"),
        (r"\boxed{\frac{1}{1+\frac{1}{1+\frac{1}{2}}}}", "3/5"),
        (r"\boxed{\begin{pmatrix}1&2\\3&4\end{pmatrix}}", r"$\begin{pmatrix}1&2\\3&4\end{pmatrix}$"),
        (r"\boxed{10^{-9}}", "1e-9"),
        ("costs 1 234 567 dollars", "1234567"),
    ],
)
def test_ordinary_mathematics_is_not_costly(text, gold):
    assert not is_costly_text(text)
    assert not any(is_costly_expression(item) for item in maths._parse(text) if not isinstance(item, str))
    assert maths.grade_math(text, gold).reward == 1.0


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="01 +-.,()\\[]${}^abx\n", max_size=MAX_RUN))
def test_texts_without_long_runs_are_read_as_they_are(text):
    few = text[:40]
    assert shortened_runs(few) == few
    assert shortened_runs(text).replace(";", "") == text or text.count("\\(") + text.count("\\[") > 20


def test_long_runs_are_broken_up_at_white_space():
    run = "12 " * 1000
    short = shortened_runs(run)
    assert short.replace(";", "") == run
    assert max(map(len, short.split(";"))) <= MAX_RUN
    assert shortened_runs("1" * 5000) == "1" * 5000
    assert shortened_runs(r"\[" * 100) == r"\[" * 20
    assert shortened_runs(r"\[x\]" * 100) == r"\[x\]" * 100
    assert last_box(r"\boxed{1} \boxed{2}.") == r"\boxed{2}."
