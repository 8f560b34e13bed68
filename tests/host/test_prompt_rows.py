"""Rows that cannot be sampled for, and what stands in their place; no trainer."""

import logging

import pytest
import torch

from srpo_trl.host.prompt_rows import (
    EXCLUDED,
    PromptRows,
    row_images,
    usable_rows,
    with_image_lists,
    without_empty_images,
)
from srpo_trl.host.rewards.columns import RewardColumns


def user(text):
    return [{"role": "user", "content": text}]


def tokenize(prompt):
    """One token a character of the last message's text."""
    text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    parts = text if isinstance(text, list) else [{"text": text}]
    return [ord(letter) for part in parts for letter in part.get("text") or ""]


def prompt_rows(**options):
    return PromptRows(tokenize, options.pop("columns", RewardColumns()), **options)


# ------------------------------------------------------------------ which rows cannot be sampled for


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"prompt": user("1+1")}, None),
        ({"prompt": "1+1", "images": []}, None),
        ({"prompt": ["a"]}, "its prompt is given as list of str"),
        ({"prompt": None}, "it has no prompt"),
        ({"prompt": []}, "it has no prompt"),
        ({"prompt": user("1"), "image": 1}, "it has images, which the model does not read"),
        (
            {"prompt": user([{"type": "image", "image": 1}])},
            "it has images, which the model does not read",
        ),
        ({"prompt": ""}, "its prompt has no tokens"),
        ({"prompt": user(None)}, "its prompt has no tokens"),
        ({"prompt": [{"role": "user"}]}, "KeyError: 'content'"),
        ({"prompt": "12345"}, None),
        ({"prompt": "123456"}, "its 6 tokens are more than the 5 for which the model's context has room"),
    ],
    ids=str,
)
def test_why_a_row_cannot_be_sampled_for(row, problem):
    assert prompt_rows(max_length=5).problem_of(row) == problem


def test_a_rollout_function_looks_after_texts_itself():
    rows = prompt_rows(is_sampled=False, max_length=1)
    assert rows.problem_of({"prompt": ""}) is rows.problem_of({"prompt": "123"}) is None
    assert rows.problem_of({"prompt": 7}) == "its prompt is given as int"


def test_tokens_count_with_images_and_without():
    rows = prompt_rows(reads_images=True)
    row = {"prompt": user("ab"), "image": object()}
    assert rows.problem_of(row) is None
    assert len(rows.tokens_of(row)) == rows.num_tokens(row) == 2
    assert rows.num_tokens({"prompt": [{"role": "user"}]}) == 0
    assert prompt_rows(has_environments=True).num_tokens({}) == 0


# ------------------------------------------------------------------ a batch


def batch():
    return [{"prompt": user("a"), "x": 1, "image": None}] * 2 + [{"prompt": None, "y": 2}] * 2


def test_a_batch_for_trl_and_its_whole_rows_for_reward_functions():
    rows = prompt_rows(columns=RewardColumns(("answer",), frozenset({"x", "answer"})), read=["y"])
    fitted = rows.fit(batch())
    assert fitted == [{"prompt": user("a"), "x": 1, "y": None, "answer": None}] * 4
    assert rows.excluded == [None, None, "it has no prompt", "it has no prompt"]
    for row in fitted:
        row["added"] = 3
    assert (
        rows.whole(fitted)
        == [{"prompt": user("a"), "x": 1, "image": None, "y": None, "answer": None, "added": 3}] * 4
    )


def test_rollouts_of_excluded_rows_have_no_rewards(caplog):
    """Of all processes: the other one's two rows come first."""
    rows = prompt_rows()
    rows.fit(batch())
    rewards_BF = torch.arange(12.0).view(6, 2)

    def gather(is_excluded_B):
        return torch.cat([torch.tensor([1, 0]), is_excluded_B])

    for _ in range(2):
        with caplog.at_level(logging.WARNING):
            masked_BF, excluded_frac = rows.without_excluded(rewards_BF, gather)
        assert masked_BF.isnan().all(1).tolist() == [True, False, False, False, True, True]
        assert torch.equal(masked_BF[1:4], rewards_BF[1:4])
        assert excluded_frac == 0.5
    assert caplog.text.count("A row of the dataset is left out: it has no prompt.") == 1
    assert EXCLUDED in caplog.text
    rows.fit(batch()[:2])
    assert torch.equal(rows.without_excluded(rewards_BF[:2], lambda values: values)[0], rewards_BF[:2])


def test_environments_write_prompts_themselves():
    rows = prompt_rows(has_environments=True)
    assert rows.fit(batch()) == rows.whole(batch()) == batch()
    assert rows.without_excluded(torch.ones(4, 1), lambda values: values)[1] == 0.0


def problem_of(row):
    return "empty" if row["prompt"] in (None, [], "") else None


def test_another_row_stands_in_with_all_of_its_columns():
    rows = [{"prompt": user("1"), "a": 1}, {"prompt": None, "b": 2}, {"prompt": user("3"), "b": 3}]
    usable = usable_rows(rows, problem_of)
    first = {"prompt": user("1"), "a": 1, "b": None}
    assert usable.rows == [first, first, {"prompt": user("3"), "a": None, "b": 3}]
    assert usable.reasons == [None, "empty", None]
    texts = usable_rows([{"prompt": prompt} for prompt in ("1", user("2"), user("3"))], problem_of)
    assert texts.reasons == ["a text among conversations", None, None]
    assert [row["prompt"] for row in texts.rows] == [user("2"), user("2"), user("3")]
    half = usable_rows([{"prompt": user("2")}, {"prompt": "1"}], problem_of)
    assert half.reasons == ["a conversation among texts", None]
    none = usable_rows([{"prompt": None, "image": 1}], problem_of)
    assert none.reasons == ["empty"]
    assert none.rows == [{"prompt": [{"role": "user", "content": "."}], "image": None}]
    assert usable_rows([{"a": 1}], problem_of).reasons == ["empty"]
    assert usable_rows([{"prompt": None}], lambda row: "never").rows == [{"prompt": None}]


def test_a_groups_row_is_looked_at_once():
    seen = []

    def look(row):
        seen.append(row["prompt"])

    usable_rows([{"prompt": text} for text in "aaabba"], look)
    assert seen == ["a", "b", "a"]


# ------------------------------------------------------------------ images


def test_columns_that_look_like_conversations_are_no_prompts():
    """TRL takes the first column of several names for the prompt where rows have images."""
    rows = [{"prompt": user("1"), "completion": "a", "images": [1], "answer": 2}]
    assert without_empty_images(rows) == [{"prompt": user("1"), "images": [1], "answer": 2}]
    rows[0]["images"] = []
    assert without_empty_images(rows) == [{"prompt": user("1"), "completion": "a", "answer": 2}]
    assert row_images({"image": 0}) == [0]
    assert row_images({"images": None, "image": None}) == []


def test_prompts_without_images_have_empty_lists_among_others():
    def generate(prompts):
        return "ids", prompts, ["tool"]

    generate = with_image_lists(generate)
    assert generate([None, [1]]) == ("ids", [[], [1]], ["tool"])
    assert generate(None) == ("ids", None, ["tool"])
