"""The reward functions as one object: what they score, need and say; no trainer."""

import asyncio

import pytest

from srpo_trl.host.rewards.calls import Rewards
from srpo_trl.host.rewards.columns import RewardColumns

TEXTS = ["a", "b", "c"]


class Table:
    """Takes what TRL would."""

    def __init__(self):
        self.extra, self.metrics = [], []

    def given(self, completions=TEXTS):
        return {
            "completions": completions,
            "log_extra": lambda name, values: self.extra.append((name, values)),
            "log_metric": lambda name, value: self.metrics.append((name, value)),
        }


def saying(texts, column="feedback"):
    def reward(completions, log_extra, **kwargs):
        log_extra(column, texts)
        return [1.0] * len(completions)

    return reward


def feedback_of(*functions, timeout=None):
    rewards = Rewards(functions, ["judge"] * len(functions), timeout, joins_feedback=True)
    for function in rewards.functions:
        scores = function(**Table().given())
        assert (asyncio.run(scores) if asyncio.iscoroutine(scores) else scores) == [1.0] * 3
    return rewards.take_feedback(), rewards


def test_feedback_is_joined_line_by_line_and_taken_once():
    first, second = saying(["x", None, None]), saying(["y", "z", None])
    feedback, rewards = feedback_of(first, second)
    assert feedback == ["x\ny", "z", ""]
    assert rewards.take_feedback() is None
    assert feedback_of(first)[0] == ["x", None, None]
    assert feedback_of(first, saying([]))[0] == ["x", None, None]
    assert feedback_of(saying("xyz", column="other"))[0] is None


class Room:
    """An environment with feedback."""

    def __init__(self, feedback):
        self.feedback = feedback


class Broken:
    """One whose feedback fails."""

    @property
    def feedback(self):
        return self.missing


def test_feedback_of_environments_follows_that_of_functions():
    rewards = feedback_of(saying(["x", None, ""]))[1]
    rewards.functions[0](**Table().given())
    assert rewards.take_feedback([Room("y\ud800"), Room("z"), object()]) == ["x\ny\ufffd", "z", ""]
    assert rewards.take_feedback([object(), Room("z"), Room(None)]) == [None, "z", None]
    assert rewards.take_feedback([object(), Room(None), Room("")]) is None  # no column of nothing
    plain = Rewards([saying(TEXTS)], ["judge"], None)
    assert plain.take_feedback([Room("x")] * 3) is None


def test_feedback_of_environments_of_another_form_is_refused():
    class Calling:
        def feedback(self):
            """Return what the model would call as a tool."""

    rewards = feedback_of(saying([]))[1]
    for wrong, message in ((Calling(), "makes a method a tool.*Calling.feedback"), (Room(3), "got 3 for")):
        with pytest.raises(ValueError, match=message):
            rewards.take_feedback([Room("x"), wrong])
    with pytest.raises(AttributeError, match="missing"):
        rewards.take_feedback([Broken()])


@pytest.mark.parametrize("timeout", [None, 60.0])
def test_feedback_of_functions_in_processes_and_loops(timeout):
    async def judge(completions, log_extra, **kwargs):
        await asyncio.sleep(0)
        log_extra("feedback", map(str.upper, completions))
        return [1.0] * len(completions)

    assert feedback_of(judge, saying(TEXTS), timeout=timeout)[0] == ["A\na", "B\nb", "C\nc"]


@pytest.mark.parametrize(
    ("texts", "message"),
    [(["x", 3.5, None], r"got 3\.5 for rollout 1; give text"), (["x"], "got 1 texts for 3 rollouts")],
)
def test_feedback_of_another_form_is_refused_by_name(texts, message):
    with pytest.raises(ValueError, match=message) as error:
        feedback_of(saying(texts))
    assert "reward function 'judge'" in error.value.__notes__[0]


def test_other_columns_and_unjoined_feedback_go_to_trls_table():
    table, halved = Table(), ["\ud800", 1, None]
    for joins_feedback, column in ((True, "other"), (False, "feedback")):
        rewards = Rewards([saying(halved, column)], ["judge"], None, joins_feedback=joins_feedback)
        rewards.functions[0](**table.given())
        assert rewards.take_feedback() is None
    assert table.extra == [("other", ["\ufffd", 1, None]), ("feedback", ["\ufffd", 1, None])]


def test_what_is_logged_before_an_error_is_dropped():
    def broken(completions, log_extra, log_metric, **kwargs):
        log_extra("feedback", TEXTS)
        log_metric("seen", 1.0)
        raise KeyError("no such answer")

    table, rewards = Table(), Rewards([broken], ["judge"], None, joins_feedback=True)
    with pytest.raises(KeyError):
        rewards.functions[0](**table.given())
    assert (rewards.take_feedback(), table.metrics) == (None, [])


def test_columns_and_limits_of_all_functions():
    def first(completions, answer):
        return [2e38] * len(completions)

    def second(completions, level=1):
        """Return nothing."""

    rewards = Rewards([first, second], ["first", "second"], None, [1.0, 1.0])
    assert rewards.columns == RewardColumns(("completions", "answer"), frozenset({"completions"}))
    with pytest.raises(ValueError, match=r"'first' returned 2e\+38 .* once the rewards are weighted"):
        rewards.functions[0](completions=TEXTS, answer=TEXTS)
