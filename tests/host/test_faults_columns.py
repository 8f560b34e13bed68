"""Columns that not every row of a dataset has, and prompts of a form that shows itself late: no run ends for them."""

import logging
import math

import numpy as np
import pytest
import torch
from datasets import Dataset, IterableDataset

from harness import ROLLOUTS, contains_answer, logged, make_trainer, replay, tiny_tokenizer, update
from srpo_trl.host.rewards.columns import RewardColumns, reward_columns
from srpo_trl.host.rows import NoRowsError, first_row, foreign_prompt, image_part_rows, reference_text
from srpo_trl.seams.messages import has_image

PROMPTS = [[{"role": "user", "content": prompt}] for prompt, _ in ROLLOUTS]
PICTURE = [{"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "?"}]}]


def stream(*rows):
    """A dataset whose rows are seen one by one, and can be anything."""
    return IterableDataset.from_generator(lambda: iter(rows))


def rows_with(**last):
    """One rollout batch of rows with an answer, of which the last one is another."""
    rows = [{"prompt": prompt, "answer": "5"} for prompt in PROMPTS]
    return stream(*rows[:-1], {"prompt": PROMPTS[-1], **last})


# ------------------------------------------------------------------ columns


def test_columns_are_fitted_to_what_reward_functions_take():
    def strict(prompts, completions, answer, level=1):
        """Take no other keyword."""

    def wide(completions, source, **kwargs):
        """Take any."""

    assert reward_columns([wide]) == RewardColumns(("completions", "source"), None)
    columns = reward_columns([strict, wide, torch.nn.Linear(1, 1)])
    assert columns.needed == ("prompts", "completions", "answer", "source")
    rows = [{"prompt": "a", "answer": "1"}, {"prompt": "b", "level": 2, "completions": "x", "more": 0}]
    assert columns.fitted(rows, kept=("prompt",)) == [
        {"prompt": "a", "answer": "1", "level": None, "source": None},
        {"prompt": "b", "answer": None, "level": 2, "source": None},
    ]
    assert columns.needing_only(["answer"]).needed == ("answer",)
    assert RewardColumns().fitted(rows, kept=()) == [
        {"prompt": "a", "answer": "1", "level": None, "more": None},
        {"prompt": "b", "answer": None, "level": 2, "more": 0},
    ]


@pytest.mark.parametrize("routing", ["srpo", "grpo"])
@pytest.mark.parametrize("last", [{}, {"answer": "5", "completions": "x", "more": 1}], ids=["none", "more"])
def test_a_column_that_comes_or_goes_late_ends_no_run(tmp_path, last, routing):
    seen = []

    def graded(prompts, completions, completion_ids, trainer_state, log_extra, log_metric, answer):
        seen.extend(answer)
        return contains_answer(completions)

    made = make_trainer(
        tmp_path, train_dataset=rows_with(**last), reward_funcs=graded, routing=routing, learning_rate=0.1
    )
    assert update(made).any()
    assert seen[:-4] == ["5"] * len(seen[:-4])
    assert seen[-4:] == [last.get("answer")] * 4


def test_a_whole_batch_without_a_needed_column_is_graded_with_none(tmp_path):
    seen = []

    def graded(completions, answer, **kwargs):
        seen.append(set(answer))
        return contains_answer(completions)

    rows = [{"prompt": prompt} for prompt in PROMPTS]
    batches = stream(*({**row, "answer": "5"} for row in rows), *rows)
    make_trainer(tmp_path, train_dataset=batches, reward_funcs=graded, max_steps=2).train()
    assert seen == [{"5"}, {None}]


@pytest.mark.parametrize("routing", ["srpo", "grpo"])
def test_what_a_rollout_function_adds_reaches_the_reward_functions(tmp_path, routing):
    """As TRL documents it: additional keys of its output are columns for them."""
    given = []

    def adding(prompts, trainer):
        return {**replay(tiny_tokenizer())(prompts, trainer), "from_environment": list(range(len(prompts)))}

    def graded(completions, from_environment, **kwargs):
        given.append(from_environment)
        return contains_answer(completions)

    update(make_trainer(tmp_path, rollout_func=adding, reward_funcs=graded, routing=routing))
    assert [list(range(len(batch))) for batch in given] == given
    assert given


# ------------------------------------------------------------------ references


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("5", "5"),
        (0, "0"),
        (0.0, "0.0"),
        (False, "False"),
        (torch.tensor(5), "5"),
        (np.int64(0), "0"),
        (np.array([1, 2]), "[1, 2]"),
        ([], "[]"),
        ("", ""),
        (None, ""),
        (math.nan, ""),
        (torch.tensor(math.nan), ""),
    ],
)
def test_a_reference_is_the_text_of_a_value(value, text):
    assert reference_text({"answer": value}, "answer") == text
    assert reference_text({"answer": value}, "other") == reference_text({"answer": value}, None) == ""


def test_a_row_without_its_reference_has_none(tmp_path):
    made = make_trainer(
        tmp_path, train_dataset=rows_with(), reference_column="answer", teacher_context=["reference"]
    )
    assert update(made).any()


# ------------------------------------------------------------------ prompts


@pytest.mark.parametrize(
    ("prompt", "held"),
    [
        ("text", None),
        ([], None),
        (None, None),
        ([{"role": "user", "content": "a"}], None),
        (["a", "b"], "list of str"),
        ([{"content": "a"}], "list of dict without 'role'"),
        ([None], "list of NoneType"),
        (7, "int"),
        (b"a", "bytes"),
        ({"role": "user", "content": "a"}, "dict"),
        (np.array(["a"]), "ndarray"),
    ],
)
def test_prompts_of_another_form_are_told_apart(prompt, held):
    assert foreign_prompt(prompt) == held


@pytest.mark.parametrize("prompt", [["a", "b"], 7, [{"content": "a"}], [None], PICTURE], ids=str)
@pytest.mark.parametrize("way", ["sampled", "replayed"])
def test_a_prompt_of_another_form_is_left_out_later(tmp_path, caplog, prompt, way):
    rows = stream(*({"prompt": p} for p in [*PROMPTS[:-1], prompt]))
    sampled = {"rollout_func": None} if way == "sampled" else {}
    made = make_trainer(tmp_path, train_dataset=rows, **sampled)
    with caplog.at_level(logging.WARNING):
        made.train()
    assert made.state.global_step == 1
    assert logged(made, "rows/excluded_frac") == [1 / len(PROMPTS)]
    assert "A row of the dataset is left out: it" in caplog.text


def test_images_in_messages_are_found_when_the_trainer_is_made(tmp_path):
    text = [{"role": "user", "content": [{"type": "text", "text": "?", "image": None}]}]
    rows = Dataset.from_dict({"prompt": [text, text, [*text, *PICTURE, *PICTURE], text, PICTURE]})
    assert image_part_rows(rows) == (2, 2)
    assert image_part_rows(rows.select([0, 1])) == (0, -1)
    assert image_part_rows(Dataset.from_dict({"prompt": PROMPTS})) == (0, -1)
    assert image_part_rows(Dataset.from_dict({"prompt": ["a"]})) == (0, -1)
    assert [has_image(prompt) for prompt in (text, PICTURE, "a", None, [None], PROMPTS[0])] == [
        False,
        True,
        *[False] * 4,
    ]
    with pytest.raises(ValueError, match=r"images in the prompts of 2 row\(s\), row 2 first"):
        make_trainer(tmp_path, train_dataset=rows)


# ------------------------------------------------------------------ streams


def test_a_stream_without_rows_or_of_tables_is_refused(tmp_path):
    with pytest.raises(ValueError, match="train_dataset is a stream that gives no row"):
        make_trainer(tmp_path, train_dataset=stream())
    tables = stream({"prompt": PROMPTS[0]}).with_format("arrow")
    with pytest.raises(ValueError, match="train_dataset gives tables in place of rows"):
        make_trainer(tmp_path, train_dataset=tables)
    with pytest.raises(NoRowsError):
        first_row(tables, drops_unused=True)


@pytest.mark.parametrize(
    "eval_dataset", [{}, Dataset.from_dict({"prompt": ["a"]}).select([])], ids=["no set", "no row"]
)
def test_nothing_to_evaluate_on_is_refused_before_the_first_evaluation(tmp_path, eval_dataset):
    with pytest.raises(ValueError, match="eval_dataset has no rows: there is nothing to evaluate on"):
        make_trainer(tmp_path, eval_dataset=eval_dataset, eval_strategy="steps", eval_steps=1)
    make_trainer(tmp_path, eval_dataset=eval_dataset)
