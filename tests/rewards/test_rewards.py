import importlib
import logging
import math
import pickle
import re
import threading

import pytest
from trl.trainer.utils import get_callable_name, is_async_callable

import srpo_trl.rewards as rewards
from graders_oracle import official_science_score, real_rows, score
from srpo_trl.rewards import (
    format_reward,
    get_format_reward,
    get_length_reward,
    get_math_reward,
    get_multiple_choice_reward,
    math_reward,
    multiple_choice_reward,
)
from srpo_trl.rewards.grading import completion_text

MODES = {
    "default": {"strict_paper": False, "reveal_answer": False},
    "strict_paper": {"strict_paper": True, "reveal_answer": False},
}


@pytest.mark.parametrize(
    "name", ["multiple_choice_reward", "tool_use_reward", "math_reward", "format_reward", "length_reward"]
)
def test_default_instances_are_found_by_dotted_path_and_keep_their_name_through_pickling(name):
    reward = getattr(importlib.import_module("srpo_trl.rewards"), name)
    restored = pickle.loads(pickle.dumps(reward))
    assert get_callable_name(reward) == get_callable_name(restored) == reward.__name__ == name
    assert not is_async_callable(reward)
    kwargs = {
        "prompts": ["q", "q"],
        "completions": [[{"role": "assistant", "content": "<answer>B</answer>"}]] * 2,
        "completion_ids": [[1, 2], [3]],
        "answer": ["B", "B"],
        "trainer_state": None,
        "log_extra": lambda column, values: None,
        "log_metric": lambda metric, value: None,
    }
    values = restored(**kwargs)
    assert len(values) == 2
    assert values == reward(**kwargs)


def test_options_keep_the_name_and_cannot_be_overridden_by_dataset_columns():
    strict = get_multiple_choice_reward(strict_paper=True)
    assert strict.__name__ == "multiple_choice_reward"
    columns = {
        "strict_paper": [True],
        "reveal_answer": [True],
        "elements": [["C"]],
        "grade": [1],
        "name": ["x"],
    }
    assert multiple_choice_reward(completions=["A"], answer=["A"], **columns) == [0.0]
    assert strict(completions=["A"], answer=["A"], strict_paper=[False]) == [1.0]
    assert format_reward(completions=["<answer>A</answer>"], **columns) == [1.0]


@pytest.mark.parametrize(
    ("completion", "text"),
    [
        ("plain", "plain"),
        ([{"role": "assistant", "content": "one"}], "one"),
        ([{"content": "no role"}], "no role"),
        (
            [
                {"role": "assistant", "content": "first"},
                {"role": "tool", "content": "tool output"},
                {"role": "assistant", "content": "last"},
                {"role": "tool", "content": "tool output"},
            ],
            "last",
        ),
        ([{"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "image"}]}], "a"),
        ([{"role": "assistant", "content": None, "tool_calls": []}], ""),
        ([{"role": "tool", "content": "x"}], ""),
        ([], ""),
        (None, ""),
        ([7, "x"], ""),
    ],
)
def test_completion_text_is_the_last_assistant_message(completion, text):
    assert completion_text(completion) == text


def test_unusable_reference_is_none_for_its_row_only_and_is_counted(caplog):
    extra, metrics = {}, {}
    with caplog.at_level(logging.WARNING, logger="srpo_trl.rewards.grading"):
        values = multiple_choice_reward(
            completions=["<answer>A</answer>", "<answer>A</answer>", "<answer>B</answer>", None],
            answer=["A", "A: yes", "A", "A"],
            log_extra=extra.__setitem__,
            log_metric=metrics.__setitem__,
        )
    assert values == [1.0, None, 0.0, 0.0]
    assert metrics == {"rewards/multiple_choice_reward/unscorable_frac": 0.25}
    assert [bool(text) for text in extra["feedback"]] == [False, False, True, True]
    assert "1 of 4 rows" in caplog.text
    assert "row 1: 'A: yes'" in caplog.text


def test_usable_references_report_a_zero_fraction_and_no_warning(caplog):
    metrics = {}
    assert multiple_choice_reward(completions=["A"], answer=["A"], log_metric=metrics.__setitem__) == [0.0]
    assert metrics == {"rewards/multiple_choice_reward/unscorable_frac": 0.0}
    assert not caplog.records


def test_unequal_lengths_are_refused():
    with pytest.raises(ValueError, match=r"multiple_choice_reward was given 2 completions and 1 answers"):
        multiple_choice_reward(completions=["A", "B"], answer=["A"])


@pytest.mark.parametrize("answer", [None, "", "b", "AB", 1, ["A"]])
def test_multiple_choice_key_must_be_one_capital_letter(answer):
    assert multiple_choice_reward(completions=["<answer>A</answer>"], answer=[answer]) == [None]


@pytest.mark.parametrize(
    ("text", "default", "strict"),
    [
        ("<reasoning>x</reasoning>\n<answer>\nB\n</answer>\n", 1, 1),
        ("<answer>A</answer> no: <answer>B</answer>", 1, 1),
        ("<answer>B</answer> no: <answer>A</answer>", 0, 0),
        ("<answer>b</answer>", 0, 0),
        ("<answer>B: Fe</answer>", 0, 0),
        ("<answer>A, B</answer>", 0, 0),
        ("<answer></answer>", 0, 0),
        ("I use the <answer> tag: <answer>B</answer>", 1, 1),
        ("", 0, 0),
        # Documented differences: a letter without the element, an element cut off.
        ("B", 0, 1),
        (" B\n", 0, 1),
        ("long reasoning <answer>\nB", 0, 1),
        ("B</answer>", 0, 1),
        ("<answer>B</answer> or <answer>", 1, 0),
    ],
)
def test_multiple_choice_reads_the_last_complete_element(text, default, strict):
    assert score(multiple_choice_reward, text, "B")[0] == default
    assert score(get_multiple_choice_reward(strict_paper=True), text, "B")[0] == strict
    assert official_science_score(text, "B") == strict


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("folder", ["sciknoweval/chemistry", "sciknoweval/material"])
def test_multiple_choice_equals_the_official_grader_on_all_real_rows(folder, mode):
    keys = [row["answer"] for row in real_rows(folder)]
    reward = get_multiple_choice_reward(**MODES[mode])
    for shift, expected in ((0, 1.0), (1, 0.0)):
        letters = ["ABCD"[("ABCD".index(key) + shift) % 4] for key in keys]
        texts = [f"<reasoning>\nD or A?\n</reasoning>\n<answer>\n{letter}\n</answer>" for letter in letters]
        official = [official_science_score(text, key) for text, key in zip(texts, keys, strict=True)]
        assert reward(completions=texts, answer=keys) == official == [expected] * len(keys)
    bare_letter_score = 1.0 if mode == "strict_paper" else 0.0
    assert reward(completions=keys, answer=keys) == [bare_letter_score] * len(keys)


WRONG_CHOICES = [
    "",
    "no idea",
    "<answer></answer>",
    "<answer>{w}</answer>",
    "<answer>{w}: x</answer>",
    "<answer>{w}",
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("template", WRONG_CHOICES)
def test_multiple_choice_feedback_says_what_is_wrong_and_never_names_the_key(template, mode):
    reward = get_multiple_choice_reward(**MODES[mode])
    feedbacks = set()
    for key, wrong in zip("ABCD", "BCDA", strict=True):
        value, feedback = score(reward, template.format(w=wrong), key)
        assert value == 0.0
        letters = set(re.findall(r"\b[A-Z]\b", feedback))
        assert letters <= {wrong}
        assert score(reward, template.format(w=wrong), "BCDA"["ABCD".index(wrong)])[1] == feedback
        feedbacks.add(feedback.replace(f" {wrong} ", " _ "))
    assert "" not in feedbacks


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("B", "no complete <answer>"),
        ("<answer>B", "no complete <answer>"),
        ("<answer> </answer>", "empty"),
        ("<answer>B: Fe</answer>", "'B: Fe', which is not one option's letter"),
        ("<answer>B</answer>", "option B is wrong"),
    ],
)
def test_multiple_choice_feedback_names_the_fault(text, phrase):
    feedback = score(multiple_choice_reward, text, "C")[1]
    assert phrase in feedback
    revealing = score(get_multiple_choice_reward(reveal_answer=True), text, "C")[1]
    assert revealing == feedback + " The correct option is C."


def test_correct_multiple_choice_has_no_feedback():
    assert score(get_multiple_choice_reward(reveal_answer=True), "<answer>C</answer>", "C") == (1.0, "")


MATH_CASES = [
    (r"so \boxed{\frac{1}{2}}", "0.5", 1.0),
    (r"so $x = \frac{2}{4}$, hence \boxed{\frac12}", r"\frac{1}{2}", 1.0),
    (r"\boxed{41}", 42, 0.0),
    (r"\boxed{42}", 42, 1.0),
    ("the answer is 42", "42", 1.0),
    (r"\boxed{(1, 2)}", "(1, 2)", 1.0),
    (r"\boxed{(2, 1)}", "(1, 2)", 0.0),
    (r"\boxed{\{3, 1\}}", r"\{1, 3\}", 1.0),
    (r"\boxed{2}", "(1, 2)", 0.0),
    (r"\boxed{10}", "10^{-3}", 0.0),
    (r"\boxed{0.001}", "10^{-3}", 1.0),
    (r"\boxed{0.00001}", 1e-05, 1.0),
    (r"\boxed{120000}", "1.2e5", 1.0),
    (r"\boxed{5}", r"\$5", 1.0),
    (r"\boxed{\text{Evelyn}}", r"\text{Evelyn}", 1.0),
    (r"\boxed{3}", "x = 3", 1.0),
    (r"\boxed{(1, 2)}", "1 < x < 2", 1.0),
    (r"\boxed{1 < x < 2}", "(1, 2)", 0.0),
    ("It is $7$.", r"Adding both gives \boxed{7}", 1.0),
    (r"\boxed{x^2 + 2x + 1}", r"$(x+1)^2$", 1.0),
    (r"\boxed{", "42", 0.0),
    ("", "42", 0.0),
    ("I do not know.", "42", 0.0),
    (r"\boxed{42}", "no answer here", None),
    (r"\boxed{42}", "", None),
    (r"\boxed{42}", None, None),
    (r"\boxed{1}", True, None),
]


def test_math_reward():
    texts, answers, expected = zip(*MATH_CASES, strict=True)
    assert math_reward(completions=list(texts), answer=list(answers)) == list(expected)


def test_math_reward_gives_the_same_off_the_main_thread():
    texts, answers, expected = zip(*MATH_CASES, strict=True)
    results = []
    thread = threading.Thread(
        target=lambda: results.append(math_reward(completions=list(texts), answer=list(answers)))
    )
    thread.start()
    thread.join()
    assert results == [list(expected)]


def test_math_feedback_tells_the_reference_only_when_asked():
    wrong, unread = r"\boxed{41}", "I do not know."
    assert score(math_reward, wrong, "1234")[1] == "The answer 41 is wrong."
    assert "no final answer" in score(math_reward, unread, "1234")[1]
    assert "1234" not in score(math_reward, unread, "1234")[1]
    revealing = get_math_reward(reveal_answer=True)
    assert score(revealing, wrong, "1234")[1] == "The answer 41 is wrong. The correct answer is 1234."
    assert score(revealing, r"\boxed{1234}", "1234") == (1.0, "")


@pytest.mark.parametrize(
    ("text", "one", "both"),
    [
        ("<answer>A</answer>", 1, 0),
        ("<reasoning>x</reasoning>\n<answer>A</answer>", 1, 1),
        ("<answer>A</answer><reasoning>x</reasoning>", 1, 0),
        ("<reasoning>x <answer>A</answer></reasoning>", 1, 0),
        ("<reasoning>x</reasoning><answer> \n</answer>", 0, 0),
        ("<answer>A</answer><answer>A</answer>", 0, 0),
        ("<answer><answer>A</answer>", 0, 0),
        ("<answer>A</answer></answer>", 0, 0),
        ("<reasoning>x<answer></reasoning>A</answer>", 1, 0),
        ("<answer>A", 0, 0),
        ("A</answer>", 0, 0),
        ("</answer>A<answer>", 0, 0),
        ("", 0, 0),
    ],
)
def test_format_reward_wants_each_element_once_closed_filled_and_in_order(text, one, both):
    message = [{"role": "assistant", "content": text}]
    assert format_reward(completions=[text, message]) == [one, one]
    assert get_format_reward(("reasoning", "answer"))(completions=[text]) == [both]


def test_format_reward_takes_one_name_as_text():
    assert get_format_reward("answer").elements == ("answer",)


@pytest.mark.parametrize("elements", [(), ("<answer>",), ("",), ("answer", "answer"), ""])
def test_format_reward_refuses_names_that_are_not_tags(elements):
    with pytest.raises(ValueError, match="must be one or more different tag names"):
        get_format_reward(elements)


def test_length_reward_is_dapos_soft_overlong_punishment():
    reward = get_length_reward(max_completion_length=100, soft_punish_cache=20)
    ids = [[0] * length for length in (0, 80, 81, 90, 100, 101)]
    assert reward(completion_ids=ids) == pytest.approx([0.0, 0.0, -0.05, -0.5, -1.0, -1.0])


def test_length_reward_defaults_to_the_papers_length_and_dapos_share():
    ids = [[0] * 6554, [0] * 6555, [0] * 8192]
    expected = [0.0, -1 / 1638, -1.0]
    assert rewards.length_reward(completion_ids=ids) == pytest.approx(expected)
    assert math.isclose(get_length_reward(20480)(completion_ids=[[0] * (20480 - 2048)])[0], -0.5)


@pytest.mark.parametrize("lengths", [(0, None), (10, 11), (10, -1)])
def test_length_reward_refuses_lengths_out_of_range(lengths):
    with pytest.raises(ValueError, match=f"max_completion_length={lengths[0]}"):
        get_length_reward(*lengths)
