"""Teacher prompts: the official strings, what stays, what is cut, and text that can never become a special token."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srpo_trl import SRPOConfig
from srpo_trl.config import FEEDBACK_TEMPLATE, REPROMPT_TEMPLATE, SOLUTION_TEMPLATE
from srpo_trl.data.smoke_model import build_byte_tokenizer
from srpo_trl.data.tiny_model import build_tokenizer
from srpo_trl.teacher.context import (
    TeacherPromptEncoder,
    demonstration_text,
    remove_thinking,
    select_information,
)
from srpo_trl.teacher.templates import ContextTemplates, TeacherInformation, fill_template

TEMPLATES = ContextTemplates(REPROMPT_TEMPLATE, SOLUTION_TEMPLATE, FEEDBACK_TEMPLATE)
TOKENIZER = build_byte_tokenizer()
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}]


def encoder(max_length=10_000, templates=TEMPLATES, tokenizer=TOKENIZER, **kwargs):
    return TeacherPromptEncoder(tokenizer, templates, max_length, None, kwargs)


def text_of(prompt):
    return TOKENIZER.decode(list(prompt.ids))


def test_templates_are_the_official_runs_byte_for_byte():
    config = SRPOConfig(output_dir="unused", bf16=False, use_cpu=True)
    assert (
        config.reprompt_template == "{prompt}{solution}{feedback}\n\nCorrectly solve the original question."
    )
    assert config.solution_template == "\nCorrect solution:\n\n{successful_previous_attempt}"
    assert config.feedback_template == (
        "\nThe following is feedback from your unsuccessful earlier attempt:\n\n{feedback_raw}"
    )


def test_chat_prompt_keeps_the_system_message_and_ends_with_the_assistants_header():
    prompt = encoder().encode(CHAT, TeacherInformation(solution="It is 4."))
    assert text_of(prompt) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\n2+2?\nCorrect solution:\n\nIt is 4.\n\nCorrectly solve the original question.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert prompt.num_cut == 0


def test_feedback_alone_and_both_together():
    only = text_of(encoder().encode(CHAT, TeacherInformation(feedback="Not B.")))
    assert (
        "2+2?\nThe following is feedback from your unsuccessful earlier attempt:\n\nNot B.\n\nCorrectly"
        in only
    )
    assert "Correct solution" not in only
    both = text_of(encoder().encode(CHAT, TeacherInformation("It is 4.", "Not B.")))
    assert both.index("It is 4.") < both.index("Not B.") < both.index("Correctly solve")


def test_chat_template_arguments_reach_the_template():
    ended = text_of(encoder(enable_thinking=False).encode(CHAT, TeacherInformation("4")))
    assert ended.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


def test_encoding_equals_the_students_for_harmless_text():
    """Without markers in it, the prompt is token for token what the chat template gives for the re-prompt."""
    for tokenizer in (TOKENIZER, build_tokenizer()):
        user = "1+2\nCorrect solution:\n\n1+2=3;#3\n\nCorrectly solve the original question."
        chat = [{"role": "user", "content": user}]
        expected = tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
        chat[0]["content"] = "1+2"
        prompt = encoder(tokenizer=tokenizer).encode(chat, TeacherInformation("1+2=3;#3"))
        assert list(prompt.ids) == expected


def test_last_user_turn_of_a_conversation_is_the_re_prompt():
    chat = [
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "answer"},
        {"role": "user", "content": "second"},
    ]
    text = text_of(encoder().encode(chat, TeacherInformation("done")))
    assert "user\nfirst<|im_end|>" in text
    assert "user\nsecond\nCorrect solution:\n\ndone" in text


def test_text_prompt_has_no_chat_template():
    prompt = encoder().encode("2+2=", TeacherInformation("4"))
    assert text_of(prompt) == "2+2=\nCorrect solution:\n\n4\n\nCorrectly solve the original question."


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{"role": "system", "content": "x"}],
        [{"role": "assistant", "content": "x"}],
        [{"role": None, "content": "x"}],
        [{"content": "x"}],
        [{"role": "system", "content": None}, {"role": "user", "content": "x"}],  # the template adds texts
    ],
)
def test_a_row_that_cannot_show_anything_has_no_teacher(messages):
    """It is trained by GRPO, as in `GRPOTrainer`; the run does not end for it."""
    assert encoder().encode(messages, TeacherInformation("4")) is None
    assert not encoder().has_place(messages)
    assert encoder().has_place(CHAT)


@pytest.mark.parametrize("num_times", [0, 2])
def test_template_that_does_not_render_the_user_turn_once_leaves_no_teacher(num_times):
    template = "{% for m in messages %}-" + "{{ m['content'] }}" * num_times + "{% endfor %}"
    made = TeacherPromptEncoder(TOKENIZER, TEMPLATES, 100, template, {})
    assert made.encode(CHAT[1:], TeacherInformation("4")) is None
    assert not made.has_place(CHAT[1:])


@pytest.mark.parametrize(
    "user",
    [
        {"role": "user", "content": [{"type": "text", "text": "2+2?", "image": None}]},
        {"role": "user", "content": [{"type": "text", "text": None}, {"type": "text", "text": "2+2?"}]},
        {"role": "user", "content": "2+2?", "tool_calls": None, "name": None},
    ],
)
def test_keys_that_a_table_fills_with_none_count_as_absent(user):
    text = "{{ m.content if m.content is string else m.content[-1].text }}"
    template = "{% for m in messages %}<|im_start|>" + text + "{% endfor %}"
    prompt = TeacherPromptEncoder(TOKENIZER, TEMPLATES, 999, template, {}).encode(
        [user], TeacherInformation("4")
    )
    assert text_of(prompt) == (
        "<|im_start|>2+2?\nCorrect solution:\n\n4\n\nCorrectly solve the original question."
    )


SPECIAL_IDS = set(TOKENIZER.all_special_ids)


@settings(max_examples=60, deadline=None)
@given(
    st.text(max_size=40),
    st.text(max_size=40),
    st.sampled_from(["", "<|im_end|>", "<|im_start|>system\n", "{prompt}"]),
)
def test_untrusted_text_is_text(solution, feedback, marker):
    information = TeacherInformation(f"a{marker}{solution}", f"b{feedback}{marker}")
    ids = encoder().encode([{"role": "user", "content": f"q{marker}"}], information).ids
    # the user's turn opened and closed, the assistant's opened, and what the row itself says, as the student reads it
    in_row = sum(token in SPECIAL_IDS for token in TOKENIZER(f"q{marker}")["input_ids"])
    assert sum(token in SPECIAL_IDS for token in ids) == 3 + in_row
    assert f"a{marker}{solution}" in TOKENIZER.decode(ids)


def test_braces_in_text_are_text():
    assert fill_template("{a}-{b}", a="{b}", b="{a}{}{0}") == "{b}-{a}{}{0}"
    text = text_of(encoder().encode(CHAT, TeacherInformation('{"x": {"y": 1}} {feedback}')))
    assert 'solution:\n\n{"x": {"y": 1}} {feedback}\n\nCorrectly' in text


def test_long_demonstration_loses_its_start_and_nothing_else():
    full = encoder().encode(CHAT, TeacherInformation("0123456789" * 10 + "END"))
    cut = encoder(max_length=len(full.ids) - 50).encode(CHAT, TeacherInformation("0123456789" * 10 + "END"))
    assert len(cut.ids) == len(full.ids) - 50
    assert cut.num_cut == 50
    text = text_of(cut)
    assert text.startswith(
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n2+2?\nCorrect solution:\n\n"
    )
    assert text.endswith(
        "0123456789END\n\nCorrectly solve the original question.<|im_end|>\n<|im_start|>assistant\n"
    )


def test_long_feedback_loses_its_end():
    information = TeacherInformation(feedback="START" + "x" * 100)
    full = encoder().encode(CHAT, information)
    text = text_of(encoder(max_length=len(full.ids) - 60).encode(CHAT, information))
    assert "attempt:\n\nSTARTxxx" in text
    assert text.count("x") == 40


def test_feedback_is_cut_before_the_demonstration():
    information = TeacherInformation("S" * 50, "F" * 50)
    full = encoder().encode(CHAT, information)
    text = text_of(encoder(max_length=len(full.ids) - 60).encode(CHAT, information))
    assert text.count("S") == 39
    assert "attempt:\n\nF\n\nCorrectly" in text


def test_nothing_is_shown_where_no_information_fits():
    bare = len(encoder().encode(CHAT, TeacherInformation("x")).ids) - 1
    assert encoder(max_length=bare).encode(CHAT, TeacherInformation("0123456789")) is None
    assert encoder(max_length=bare + 1).encode(CHAT, TeacherInformation("0123456789")) is not None


def test_cutting_inside_a_character_leaves_whole_characters():
    text = text_of(encoder(max_length=170).encode(CHAT, TeacherInformation("é" * 200)))
    assert "\ufffd" not in text
    assert len(encoder(max_length=170).encode(CHAT, TeacherInformation("é" * 200)).ids) <= 170


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("<think>hm</think>\n\nIt is 4.", "It is 4."),
        ("hm</think>\nIt is 4.", "It is 4."),
        ("<think>never closed", ""),
        ("a <think>1</think>b <think>2</think>c", "a b c"),
        ("plain", "plain"),
    ],
)
def test_thinking_is_removed_from_demonstrations(text, left):
    assert remove_thinking(text).strip() == left
    assert demonstration_text([{"role": "assistant", "content": text}]) == left
    assert demonstration_text(text, keep_thinking=True) == text.strip()


def test_multi_turn_demonstration_shows_calls_and_results():
    completion = [
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"function": {"name": "add", "arguments": {"a": 2}}}],
        },
        {"role": "tool", "name": "add", "content": "4"},
        {"role": "assistant", "content": [{"type": "text", "text": "It is 4."}]},
    ]
    assert demonstration_text(completion) == 'Tool call: add {"a": 2}\n\nTool result: 4\n\nIt is 4.'


def test_thinking_is_removed_turn_by_turn():
    completion = [
        {"role": "assistant", "content": "first</think>I look."},  # the template has opened it
        {"role": "tool", "name": "look", "content": "4 < 5"},
        {"role": "assistant", "content": "second</think>It is 4."},
        {"role": "assistant", "content": "4.<think>cut"},
    ]
    assert demonstration_text(completion) == "I look.\n\nTool result: 4 < 5\n\nIt is 4.\n\n4."
    parsed = [{"role": "assistant", "reasoning_content": "hm", "content": "It is 4."}]
    assert demonstration_text(parsed) == "It is 4."
    assert demonstration_text(parsed, keep_thinking=True) == "<think>\nhm\n</think>\n\nIt is 4."


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        (["sibling"], TeacherInformation("S", "")),
        (["feedback", "sibling"], TeacherInformation("", "F")),
        (["sibling+feedback"], TeacherInformation("S", "F")),
        (["reference", "sibling"], TeacherInformation("R", "")),
    ],
)
def test_sources_are_tried_in_their_order(sources, expected):
    assert select_information(sources, "S", "F", "R") == expected


def test_missing_sources_fall_through():
    assert select_information(["sibling+feedback", "sibling", "feedback"], "", "F") == TeacherInformation(
        "", "F"
    )
    assert not select_information(["sibling", "reference"], "", "F", "")


def test_a_prompt_that_is_too_long_with_nothing_to_cut_has_no_teacher():
    assert encoder(max_length=5).encode("a prompt of many words", TeacherInformation("", "")) is None
