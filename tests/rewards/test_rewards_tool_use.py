import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graders_oracle import official_tool_use, real_rows, score
from srpo_trl.rewards import get_tool_use_reward, tool_use, tool_use_reward

MODES = {
    "default": {"strict_paper": False, "reveal_answer": False},
    "strict_paper": {"strict_paper": True, "reveal_answer": False},
}


def calls_text(calls):
    return "".join(f"Thought: next\nAction: {name}\nAction Input: {block}\n" for name, block in calls)


def reference(*calls):
    return json.dumps([{"Action": name, "Action_Input": json.dumps(value)} for name, value in calls])


def variants(calls):
    """(name, text, is right) of completions made from a reference's calls [(name, JSON text)]."""
    names = [name for name, _ in calls]
    last_name, last_block = calls[-1]
    changed = json.loads(last_block) | {"made_up_key": 1}
    merge_keeps_order = len({block for _, block in calls}) == 1
    yield "right", calls_text(calls), True
    yield "wrong action", calls_text([*calls[:-1], ("made_up_action", last_block)]), False
    yield "added key", calls_text([*calls[:-1], (last_name, json.dumps(changed))]), False
    yield "missing call", calls_text(calls[:-1]), False
    yield "called twice", calls_text([*calls, calls[-1]]), False
    if merge_keeps_order:
        yield "reordered", calls_text(calls[::-1]), True
    if values := json.loads(last_block):
        wrong = {key: "made up value" for key in values}
        yield "wrong values", calls_text([*calls[:-1], (last_name, json.dumps(wrong))]), False
        yield "no blocks", "".join(f"Action: {name}\n" for name in names), False


def reference_calls(answer):
    return [(call["Action"], call["Action_Input"]) for call in json.loads(answer)]


def official_reads(answer):
    """Whether the official grader can give this reference's own calls a score of 1."""
    return official_tool_use(calls_text(reference_calls(answer)), answer)[0] == 1.0


def test_tool_use_equals_the_official_grader_on_real_rows_that_it_can_read():
    answers = [row["answer"] for row in real_rows("tooluse")]
    readable = [answer for answer in answers if official_reads(answer)]
    default, strict = get_tool_use_reward(**MODES["default"]), get_tool_use_reward(**MODES["strict_paper"])
    seen = set()
    for answer in readable:
        for name, text, is_right in variants(reference_calls(answer)):
            seen.add(name)
            expected = official_tool_use(text, answer)[0]
            assert expected == is_right, (name, answer)
            assert score(default, text, answer)[0] == expected, (name, answer)
            assert score(strict, text, answer)[0] == expected, (name, answer)
    assert len(readable) > len(answers) // 2
    wrong = {"wrong action", "added key", "missing call", "called twice", "wrong values", "no blocks"}
    assert seen == wrong | {"right", "reordered"}


def test_tool_use_reads_the_real_rows_that_the_official_grader_cannot():
    answers = [row["answer"] for row in real_rows("tooluse")]
    unreadable = [answer for answer in answers if not official_reads(answer)]
    assert unreadable
    for answer in unreadable:
        calls = reference_calls(answer)
        assert any("}" in block[:-1] or not name.isidentifier() for name, block in calls)
        for name, text, is_right in variants(calls):
            assert score(tool_use_reward, text, answer)[0] == is_right, (name, answer)
            strict = score(get_tool_use_reward(strict_paper=True), text, answer)[0]
            assert strict == official_tool_use(text, answer)[0]


@pytest.mark.parametrize(
    ("value", "official"),
    [
        ({"a": 1}, 1),
        ({"a": [1, {"b": 2}]}, 0),
        ({"a": {"b": {}}}, 0),
        ({"a": "x } y"}, 0),
        ({"a": []}, 1),
        ({}, 1),
    ],
)
def test_nested_input_is_read_whole_except_in_strict_paper(value, official):
    answer, text = reference(("look", value)), calls_text([("look", json.dumps(value, indent=1))])
    assert score(tool_use_reward, text, answer)[0] == 1
    assert score(get_tool_use_reward(strict_paper=True), text, answer)[0] == official
    assert official_tool_use(text, answer)[0] == official


@pytest.mark.parametrize("name", ["[Optional]update", "db.update", "get-item", "v1/items"])
def test_names_that_are_not_word_characters_match_except_in_strict_paper(name):
    answer, text = reference((name, {"a": 1})), calls_text([(name, '{"a": 1}')])
    assert score(tool_use_reward, text, answer)[0] == 1
    assert (
        score(get_tool_use_reward(strict_paper=True), text, answer)[0]
        == official_tool_use(text, answer)[0]
        == 0
    )


@pytest.mark.parametrize(
    "text_of_name", ["look", "look.", "look (searches)", "look()", "\nlook", "look\nObservation:"]
)
def test_what_follows_an_action_name_does_not_belong_to_it(text_of_name):
    answer, text = reference(("look", {"a": 1})), f'Action: {text_of_name}\nAction Input: {{"a": 1}}'
    assert score(tool_use_reward, text, answer)[0] == official_tool_use(text, answer)[0] == 1


def test_calls_written_inside_a_json_string_are_not_calls():
    value = {"note": 'Action: erase\nAction Input: {"a": 2}'}
    answer, text = reference(("look", value)), calls_text([("look", json.dumps(value))])
    assert score(tool_use_reward, text, answer)[0] == 1
    assert official_tool_use(text, answer)[0] == 0


def test_inputs_are_merged_in_order_and_later_keys_win():
    answer = reference(("look", {"a": 1, "b": 1}), ("look", {"a": 2}))
    right = calls_text([("look", '{"a": 5, "b": 1}'), ("look", '{"a": 2}')])
    swapped = calls_text([("look", '{"a": 2}'), ("look", '{"a": 1, "b": 1}')])
    assert score(tool_use_reward, right, answer)[0] == official_tool_use(right, answer)[0] == 1
    assert score(tool_use_reward, swapped, answer)[0] == official_tool_use(swapped, answer)[0] == 0


DEEP = '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "block", ["{", '{"a": 1', "[1]", "none", '{"a": 1,}', "{'a': 1}", DEEP, '{"a": ' + "1" * 5000 + "}"]
)
def test_block_that_is_not_a_json_object_scores_zero_and_is_reported(block, mode):
    value, feedback = score(
        get_tool_use_reward(**MODES[mode]), calls_text([("look", block)]), reference(("look", {"a": 1}))
    )
    assert value == 0.0
    assert "input that is needed is missing" in feedback
    if mode == "default":
        assert "Action Input 1 is not" in feedback


@pytest.mark.parametrize("block", ["none", "", "```json"])
def test_block_that_cannot_be_read_contributes_nothing_as_in_the_official_grader(block):
    answer, text = reference(("look", {})), calls_text([("look", block)])
    assert score(tool_use_reward, text, answer)[0] == official_tool_use(text, answer)[0] == 1


@pytest.mark.parametrize(
    "answer",
    [
        None,
        "",
        "look",
        "{}",
        "[]",
        "[1]",
        '[{"Action": "look"}]',
        '[{"Action": "", "Action_Input": "{}"}]',
        3,
    ],
)
@pytest.mark.parametrize("mode", MODES)
def test_reference_that_is_not_a_list_of_calls_is_unusable(answer, mode):
    assert score(get_tool_use_reward(**MODES[mode]), "Action: look", answer) == (None, "")


@pytest.mark.parametrize("action_input", ["{", "[1]", "4"])
def test_reference_input_that_is_not_an_object_is_unusable_but_empty_in_strict_paper(action_input):
    answer = json.dumps([{"Action": "look", "Action_Input": action_input}])
    assert score(tool_use_reward, "Action: look", answer) == (None, "")
    assert score(get_tool_use_reward(strict_paper=True), "Action: look", answer) == (1.0, "")


def test_reference_may_hold_objects_instead_of_text():
    answer = [{"Action": "look", "Action_Input": {"a": {"b": 1}}}]
    assert score(tool_use_reward, 'Action: look\nAction Input: {"a": {"b": 1}}', answer)[0] == 1.0


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=12,
)
JSON_OBJECTS = st.dictionaries(st.text(), JSON_VALUES, max_size=4)


@settings(max_examples=150, deadline=None)
@given(
    values=st.lists(JSON_OBJECTS, min_size=1, max_size=3),
    ascii_only=st.booleans(),
    indent=st.none() | st.just(2),
)
def test_any_json_object_is_read_back(values, ascii_only, indent):
    blocks = [json.dumps(value, ensure_ascii=ascii_only, indent=indent) for value in values]
    answer = reference(*[("look", value) for value in values])
    assert score(tool_use_reward, calls_text([("look", block) for block in blocks]), answer)[0] == 1.0
    merged = {key: item for value in values for key, item in value.items()}
    added = json.dumps({**values[-1], "".join(merged) + "new": 0})
    changed = [*blocks[:-1], added]
    assert score(tool_use_reward, calls_text([("look", block) for block in changed]), answer)[0] == 0.0


@settings(max_examples=150, deadline=None)
@given(text=st.text(alphabet=st.sampled_from('{}[]":,\\ \n1ab') | st.characters(), max_size=40))
def test_no_block_crashes_the_grader(text):
    for mode in MODES.values():
        value, _ = score(
            get_tool_use_reward(**mode), f"Action: look\nAction Input: {text}", reference(("go", {}))
        )
        assert value == 0.0


@pytest.mark.parametrize("mode", MODES)
def test_tool_use_feedback_tells_nothing_of_the_reference_by_default(mode):
    reward = get_tool_use_reward(**MODES[mode])
    num_checked = 0
    for row in real_rows("tooluse"):
        calls = reference_calls(row["answer"])
        texts = [text for _, text, is_right in variants(calls) if not is_right]
        for text in [
            *texts,
            "",
            "Action Input: {",
            calls_text([("made_up_action", '{"made_up_key": {"x": 1}}')]),
        ]:
            value, feedback = score(reward, text, row["answer"])
            if value == 1.0:
                continue
            assert feedback
            values = [item for _, block in calls for pair in json.loads(block).items() for item in pair]
            secrets = {name for name, _ in calls} | {str(item) for item in values if len(str(item)) >= 4}
            told = {secret for secret in secrets if secret in feedback and secret not in text}
            assert not told, (text, feedback)
            num_checked += 1
    assert num_checked > 300


def test_tool_use_feedback_names_what_was_predicted():
    answer = reference(("look", {"city": "Oslo", "day": 1}), ("buy", {"seat": 7}))
    text = calls_text([("look", '{"city": "Rome", "hour": 2}'), ("sell", "{")])
    assert score(tool_use_reward, text, answer) == (
        0.0,
        "Action Input 2 is not valid JSON (Expecting property name enclosed in double quotes). "
        "An action that is needed is missing. Wrong, or called too often: `sell`. "
        "Action input that does not belong: `hour`. Action input with a wrong value: `city`. "
        "An action input that is needed is missing.",
    )
    for text in ("I would look.", "Action:\nAction Input: {}"):
        assert score(tool_use_reward, text, answer)[1].startswith(
            "The response has no `Action:` line. An action"
        )


def test_revealing_strict_feedback_is_the_papers():
    answer = reference(("look", {"city": "Oslo"}))
    reward = get_tool_use_reward(strict_paper=True, reveal_answer=True)
    wrong_name, wrong_input = (
        calls_text([("buy", '{"city": "Oslo"}')]),
        calls_text([("look", '{"city": "Rome"}')]),
    )
    for text in (wrong_name, wrong_input, "nothing", calls_text([("look", '{"city": "Oslo"}')])):
        assert score(reward, text, answer) == official_tool_use(text, answer)
    assert "expected ['look']" in score(reward, wrong_name, answer)[1]
    assert (
        "expected {'city': 'Oslo'}" in score(get_tool_use_reward(reveal_answer=True), wrong_input, answer)[1]
    )


def test_calls_that_stand_far_apart_are_all_read():
    words = "and so on " * 1000
    text = words.join(
        f'Action: f{n}\nAction Input: {{"a{n}": "Action Input: {n}"}}' if n != 2 else "Action Input: {broken"
        for n in range(5)
    )
    names, inputs = json.loads(tool_use.extract_calls(text))
    assert names == ["f0", "f1", "f3", "f4"]
    assert inputs == {f"a{n}": f"Action Input: {n}" for n in (0, 1, 3, 4)}
