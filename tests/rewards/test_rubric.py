"""`RubricReward`: the share of a rubric's points, and no score where there is no judgment."""

import logging
import math
import pickle

import numpy as np
import pytest

from harness import chat_dataset, logged, make_trainer
from srpo_trl.rewards import RubricReward

RUBRIC = [("names the law", 3), ("has the unit", 1.0)]


def rubric_of(prompt):
    return RUBRIC


def by_words(prompt, completion, criteria):
    """Each criterion whose last word stands in the completion is met."""
    return [criterion.split()[-1] in completion for criterion in criteria]


def rewards(judge=by_words, make_rubric=rubric_of, completions=("law", "unit", "law, unit", "")):
    return RubricReward(make_rubric, judge)(["?"] * len(completions), list(completions))


def test_the_reward_is_the_share_of_the_points():
    assert rewards() == [0.75, 0.25, 1.0, 0.0]
    assert rewards(lambda *_: (0.5, np.float32(0.25)), completions=["a"]) == [(3 * 0.5 + 0.25) / 4]
    assert rewards(lambda *_: np.array([True, False]), completions=["a"]) == [0.75]


def test_a_criterion_without_points_counts_nothing():
    assert rewards(make_rubric=lambda prompt: [("law", 0), ("unit", 2)], completions=["law", "unit"]) == [
        0.0,
        1.0,
    ]


def test_the_judge_sees_prompt_text_and_criteria():
    seen = []

    def judge(prompt, completion, criteria):
        seen.append((prompt, completion, criteria))
        return [True, False]

    prompt = [{"role": "user", "content": "Why?"}]
    answer = [{"role": "assistant", "content": "Because."}]
    assert RubricReward(rubric_of, judge)([prompt], [answer], answer=["gold"], step=3) == [0.75]
    assert seen == [(prompt, "Because.", ["names the law", "has the unit"])]


def test_a_prompts_rubric_is_made_once_and_a_wrong_one_again():
    asked = []

    def make(prompt):
        asked.append(prompt)
        return [("law", 0)] if len(asked) == 1 else [("law", 2)]

    reward = RubricReward(make, by_words)
    assert reward(["a", "a", "b", "a"], ["law", "law", "", "law"]) == [None, 1.0, 0.0, 1.0]
    assert reward(["b"], ["law"]) == [1.0]
    assert asked == ["a", "a", "b"]


@pytest.mark.parametrize(
    "found", [None, [], [True], [True] * 3, [True, 2], [True, -0.1], [math.nan, 1], ["yes", "no"], "ab", 0.5]
)
def test_a_malformed_judgment_is_no_score(found, caplog):
    with caplog.at_level(logging.WARNING, "srpo_trl"):
        assert rewards(lambda *_: found) == [None] * 4
    (record,) = caplog.records
    assert record.getMessage().startswith(
        "rubric_reward: 4 of 4 rows have no judgment and get no reward, first row 0"
    )


@pytest.mark.parametrize("rubric", [None, [], ["ab c"], [("a", 0)], [("a", -1), ("b", 2)], [("a", math.inf)]])
def test_a_malformed_rubric_is_no_score(rubric):
    assert rewards(make_rubric=lambda prompt: rubric, completions=["a"]) == [None]


class ServiceError(Exception):
    pass


def failing(prompt, completion, criteria):
    if completion == "unit":
        raise ServiceError("503")
    return by_words(prompt, completion, criteria)


def test_a_judge_that_raises_costs_its_row_alone_with_one_warning(caplog):
    metrics = {}
    with caplog.at_level(logging.WARNING, "srpo_trl"):
        found = RubricReward(rubric_of, failing, name="by_rubric")(
            ["?"] * 4, ["law", "unit", "unit", ""], log_metric=metrics.__setitem__
        )
    assert found == [0.75, None, None, 0.0]
    (record,) = caplog.records
    assert record.getMessage() == (
        "by_rubric: 2 of 4 rows have no judgment and get no reward, first row 1: ServiceError('503')"
    )
    assert metrics == {"rewards/by_rubric/unscorable_frac": 0.5}


def test_an_interrupt_is_no_judgment():
    def interrupted(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rewards(interrupted)


def test_it_pickles_with_its_name():
    reward = pickle.loads(pickle.dumps(RubricReward(rubric_of, by_words, name="mine")))
    assert (reward.__name__, reward(["?"], ["law"])) == ("mine", [0.75])


def even(prompt, completion, criteria):
    return [len(completion) % 2 == 0, True]


def test_grpo_trains_on_it(tmp_path):
    """ROPD is GRPO with this reward."""
    reward = RubricReward(rubric_of, even)
    trainer = make_trainer(
        tmp_path, method="grpo", reward_funcs=reward, train_dataset=chat_dataset([("1+1", [])] * 4)
    )
    trainer.train()
    assert 0.25 <= logged(trainer, "rewards/rubric_reward/mean")[0] <= 1.0
