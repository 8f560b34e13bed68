"""What a reward function does to its arguments, to the process and by its numbers reaches nobody else."""

import argparse
import asyncio
import math
import sys
from collections import OrderedDict, defaultdict
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image

from harness import chat_dataset, contains_answer, logged, make_trainer, relative_error, update
from srpo_trl.host.rewards.arguments import MAX_COPIED_BYTES, private_arguments, private_copy
from srpo_trl.host.rewards.calls import Rewards
from srpo_trl.host.rewards.scores import FLOAT32_MAX, checked_scores, score_limits
from srpo_trl.rewards.grading import Grade, GradedReward

# ------------------------------------------------------------------ arguments


def call(function, limit=None, **given):
    (checked,) = Rewards([function], ["judge"], limit).functions
    given = {"completions": ["a", "b"], "log_metric": lambda *a: None, **given}
    scores = checked(**given)
    return asyncio.run(scores) if asyncio.iscoroutine(scores) else scores


@pytest.mark.parametrize("kind", ["function", "asynchronous function"])
def test_what_a_function_changes_nobody_else_sees(tmp_path, kind):
    def vandal(prompts, completions, completion_ids, column, trainer_state, **kwargs):
        for turns in completions:
            turns[-1]["content"] = "#"
            turns.append({"role": "user", "content": "changed"})
        for turns in prompts:
            turns.clear()
        for entry in column:
            entry["list"].append(1)
        scores = [0.0] * len(completions)
        for values in (prompts, completions, completion_ids, column):
            values.sort(key=id)
            values.clear()
        trainer_state.log_history.append({"step": 1})
        trainer_state.global_step = 1000
        return scores

    async def async_vandal(**given):
        return vandal(**given)

    seen = []

    def judge(prompts, completions, completion_ids, column, trainer_state, **kwargs):
        seen.append((prompts, completions, completion_ids, column, trainer_state.global_step))
        return contains_answer(completions)

    def harmless(completions, **kwargs):
        return [0.0] * len(completions)

    dataset = chat_dataset(column=[{"list": [n]} for n in range(4)])
    made = {}
    for name, first in (("harmless", harmless), ("vandal", vandal if kind == "function" else async_vandal)):
        options = {"reward_funcs": [first, judge], "correctness_reward": "judge", "train_dataset": dataset}
        trainer = make_trainer(tmp_path, learning_rate=0.1, log_completions=True, **options)
        made[name] = update(trainer)
    assert seen[0] == seen[1]
    assert seen[0][4] == 0
    assert len(seen[0][0]) == len(seen[0][1]) == 16
    assert trainer.state.global_step == 1
    assert made["harmless"].any()
    assert relative_error(made["vandal"], made["harmless"]) < 1e-5


def test_copies_are_deep_and_cheap_things_are_shared():
    image, small, large = Image.new("RGB", (2, 2)), np.zeros(2), np.zeros(MAX_COPIED_BYTES)
    tensor, thing = torch.zeros(2), object()
    given = {
        "completions": [[{"role": "assistant", "content": "a", "parts": [1, [2]]}], "text"],
        "column": [(1, [2]), {3}, OrderedDict(a=[1]), defaultdict(list, b=[2]), bytearray(b"x")],
        "images": [[image]],
        "arrays": [small, large, tensor],
        "environments": [thing],
    }
    made = private_arguments(given)
    assert made["completions"] == given["completions"]
    assert made["column"] == given["column"]
    assert made["column"][3]["new"] == []
    made["completions"][0][0]["parts"][1].append(9)
    for entry in made["column"]:
        changed = entry[1] if isinstance(entry, tuple) else entry
        (changed.append if isinstance(changed, list | bytearray) else changed.clear)(
            *([9] if isinstance(changed, list | bytearray) else [])
        )
    assert given["completions"][0][0]["parts"] == [1, [2]]
    assert given["column"] == [(1, [2]), {3}, {"a": [1]}, {"b": [2]}, bytearray(b"x")]
    assert made["images"][0][0] is image
    assert made["environments"] is given["environments"]
    made["arrays"][0][0] = made["arrays"][2][0] = 1
    assert not small.any()
    assert not tensor.any()
    assert made["arrays"][1] is large


def test_nesting_beyond_python_is_shared():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    assert private_copy(deep) is deep


@pytest.mark.parametrize("limit", [None, 60.0])
def test_a_list_that_was_logged_may_be_used_again(limit):
    def judge(completions, log_extra, **kwargs):
        texts = ["first"] * len(completions)
        log_extra("one", texts)
        texts[:] = ["second"] * len(completions)
        log_extra("two", texts)
        texts.clear()
        return [1.0] * len(completions)

    logged_texts = []
    call(judge, limit, log_extra=lambda name, values: logged_texts.append((name, list(values))))
    assert logged_texts == [("one", ["first"] * 2), ("two", ["second"] * 2)]


# ------------------------------------------------------------------ ends of the process


def usage(completions, **kwargs):
    argparse.ArgumentParser().parse_args(["--unknown"])


def leaves(completions, **kwargs):
    sys.exit(0)


class Cancelled(BaseException):
    """As test runners and event loops have their own."""


def cancels(completions, **kwargs):
    raise Cancelled


@pytest.mark.parametrize("function", [usage, leaves, cancels], ids=lambda f: f.__name__)
@pytest.mark.parametrize("is_async", [False, True])
def test_an_exit_is_an_error_that_names_the_function(tmp_path, function, is_async):
    async def judge(completions, **kwargs):
        function(completions)

    given = judge if is_async else function
    with pytest.raises(
        RuntimeError, match=f"reward function '{given.__name__}' raised .* end the process"
    ) as error:
        make_trainer(tmp_path, reward_funcs=[contains_answer, given]).train()
    assert "on a batch of 16 completions, after 0 optimizer steps" in "\n".join(error.value.__notes__)
    assert isinstance(error.value.__cause__, SystemExit | Cancelled)


def test_an_interrupt_stays_one():
    def judge(completions, **kwargs):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        call(judge)


def test_a_row_on_which_a_grader_exits_has_no_score():
    def grade(text, answer):
        if text == "a":
            sys.exit(2)
        return Grade(1.0)

    grader = GradedReward("grader", grade, extract_answer=str, follows_format=bool)
    assert grader(["a", "b"], ["", ""]) == [None, 1.0]
    with pytest.raises(RuntimeError, match=r"'judge' raised SystemExit\(2\)"):
        call(grader, completions=["a", "a"], answer=["", ""])


# ------------------------------------------------------------------ numbers

TOO_LARGE = {
    "a float": 1e308,
    "a negative float": -1e39,
    "the first float32 cannot hold": math.nextafter(FLOAT32_MAX, math.inf),
    "an integer": 10**39,
    "an integer beyond floats": 10**400,
    "an integer beyond text": -(10**5000),
    "a fraction": Fraction(10**400),
    "a decimal": Decimal("1e400"),
    "a long double": np.longdouble("1e400"),
    "a double": np.float64(1e300),
    "a tensor": torch.tensor(1e300, dtype=torch.float64),
}


@pytest.mark.parametrize("case", TOO_LARGE)
def test_numbers_beyond_float32_are_named(case):
    with pytest.raises(ValueError) as error:
        checked_scores([0.0, TOO_LARGE[case]], 2, "judge")
    assert "The reward function 'judge' returned " in str(error.value)
    assert "for completion 1; rewards are float32, and 3.403e+38 is the largest" in str(error.value)


def test_numbers_that_float32_holds_are_scores():
    given = [FLOAT32_MAX, -FLOAT32_MAX, Decimal("0.5"), Fraction(1, 4), np.longdouble(2), 1e-300, 2**100]
    assert checked_scores(given, 7, "judge") == [FLOAT32_MAX, -FLOAT32_MAX, 0.5, 0.25, 2.0, 1e-300, 2.0**100]
    assert torch.tensor(FLOAT32_MAX, dtype=torch.float32).isfinite()
    no_scores = checked_scores(
        [math.inf, -math.inf, math.nan, Decimal("Infinity"), Decimal("sNaN"), np.longdouble("-inf")],
        6,
        "judge",
    )
    assert [math.isfinite(score) for score in no_scores] == [False] * 6
    assert no_scores[3] == math.inf
    assert no_scores[5] == -math.inf


def test_limits_hold_for_the_weighted_sum():
    assert score_limits([1.0]) == [FLOAT32_MAX]
    weights = [100.0, -0.5, 0.0]
    limits = score_limits(weights)
    assert limits == [FLOAT32_MAX / 300, FLOAT32_MAX / 1.5, FLOAT32_MAX]
    most = torch.tensor([weight * limit for weight, limit in zip(weights, limits, strict=True)]).abs()
    assert most.nansum().isfinite()


def test_weights_that_make_a_sum_infinite_are_named(tmp_path):
    def judge(completions, **kwargs):
        return [1e38] * len(completions)

    with pytest.raises(
        ValueError, match=r"'judge' returned 1e\+38 .* weighted and summed \(reward_weights\)"
    ):
        make_trainer(tmp_path, reward_funcs=[contains_answer, judge], reward_weights=[1.0, 10.0]).train()


def test_rewards_whose_squares_overflow_are_said(tmp_path, caplog):
    def judge(completions, **kwargs):
        return [1e20 * score if score else score for score in contains_answer(completions)]

    trainer = make_trainer(tmp_path, reward_funcs=judge)
    trainer.train()
    assert caplog.text.count("'judge' returned 1e+20: from about 1e+18 on, a group's standard deviation") == 1
    assert logged(trainer, "rewards/judge/mean")[0] > 1e18
