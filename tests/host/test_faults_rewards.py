"""Reward functions that raise, return nonsense, nothing or too late: no rollout counts as failed for it."""

import asyncio
import itertools
import subprocess
import sys
import threading
import time

import numpy as np
import pandas as pd
import pytest
import torch

from harness import (
    NUM_GENERATIONS,
    ROLLOUTS,
    chat_dataset,
    contains_answer,
    flat_parameters,
    logged,
    make_trainer,
    relative_error,
    update,
)
from srpo_trl.host.rewards.calls import MAX_TIMEOUTS_IN_A_ROW, Rewards
from srpo_trl.host.rewards.scores import checked_scores
from srpo_trl.rewards.grading import Grade, GradedReward

NUM_ROLLOUTS = len(ROLLOUTS) * NUM_GENERATIONS


def notes(error):
    return "\n".join(getattr(error.value, "__notes__", ()))


# ------------------------------------------------------------------ raising


def test_a_function_that_raises_is_named_and_the_last_checkpoint_resumes(tmp_path):
    def grader(completions, trainer_state, **kwargs):
        if is_broken and trainer_state.global_step == 2:
            raise KeyError("no such answer")
        return contains_answer(completions)

    options = {"max_steps": 4, "learning_rate": 0.1, "save_strategy": "steps", "save_steps": 1}
    is_broken = True
    with pytest.raises(KeyError, match="no such answer") as error:
        make_trainer(tmp_path, reward_funcs=grader, **options).train()
    assert f"reward function 'grader' on a batch of {NUM_ROLLOUTS} completions, after 2 optimizer" in notes(
        error
    )
    checkpoints = sorted(path.name for path in tmp_path.glob("*checkpoint*"))
    assert checkpoints == ["checkpoint-1", "checkpoint-2"]
    is_broken = False
    resumed = make_trainer(tmp_path, reward_funcs=grader, **options)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 4


@pytest.mark.parametrize("reward_timeout", [None, 20.0])
def test_an_asynchronous_function_that_raises_is_named(tmp_path, reward_timeout):
    async def judge(completions, **kwargs):
        await asyncio.sleep(0)
        raise ConnectionError("refused")

    with pytest.raises(ConnectionError, match="refused") as error:
        make_trainer(tmp_path, reward_funcs=[contains_answer, judge], reward_timeout=reward_timeout).train()
    assert "reward function 'judge'" in notes(error)


# ------------------------------------------------------------------ returning


WRONG = {
    "nothing": (None, "returned None (NoneType); it must return a list"),
    "a number": (1.0, "returned 1.0 (float); it must return a list"),
    "a string": ("0123456789abcdef", "(str); it must return a list"),
    "a dict": (dict.fromkeys(range(16), 1.0), "(dict); it must return a list"),
    "too few": ([1.0] * 15, "returned 15 rewards for 16 completions"),
    "too many": (np.ones(17), "returned 17 rewards for 16 completions"),
    "strings": ([1.0] * 3 + ["1.0"] + [1.0] * 12, "returned '1.0' (str) for completion 3"),
    "lists": ([[1.0]] * 16, "returned [1.0] (list) for completion 0"),
    "columns": (torch.ones(16, 1), "returned [1.0] (list) for completion 0"),
    "complex numbers": ([1.0j] * 16, "(complex) for completion 0; it must return a number, or None"),
}


@pytest.mark.parametrize("kind", ["function", "asynchronous function"])
@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_score_is_refused_by_name(tmp_path, case, kind):
    given, message = WRONG[case]

    def grader(completions, **kwargs):
        return given

    async def async_grader(completions, **kwargs):
        return given

    function = grader if kind == "function" else async_grader
    with pytest.raises(ValueError) as error:
        make_trainer(tmp_path, reward_funcs=function).train()
    assert f"The reward function {function.__name__!r} " in str(error.value)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "scores",
    [
        [1, True, None, 0.5],
        (1.0, 1.0, None, 0.5),
        iter([np.float32(1), np.bool_(True), None, np.float64(0.5)]),
        [
            torch.tensor(1.0),
            torch.tensor(1, dtype=torch.int64),
            None,
            torch.tensor(0.5, dtype=torch.bfloat16),
        ],
        pd.Series([1, 1, None, 0.5], dtype=object),
    ],
    ids=["list", "tuple", "numpy numbers", "tensors", "series"],
)
def test_numbers_of_any_kind_are_scores(scores):
    found = checked_scores(scores, 4, "grader")
    assert found == [1.0, 1.0, None, 0.5]
    assert all(score is None or type(score) is float for score in found)
    assert checked_scores(torch.tensor([1.0, 0.0]), 2, "grader") == [1.0, 0.0]


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), -float("inf")])
def test_a_rollout_without_a_score_is_never_failed(tmp_path, value):
    def grader(completions, **kwargs):
        return [value if score is None else score for score in contains_answer(completions)]

    trainer = make_trainer(tmp_path, reward_funcs=grader, log_completions=True)
    trainer.train()
    table = pd.read_parquet(tmp_path / "completions" / "completions_00001.parquet")
    unscored = table["completion"].map(lambda turns: turns[0]["content"] == "=")
    assert table["route"][unscored].tolist() == ["skipped"]
    assert "skipped" not in set(table["route"][~unscored])
    assert torch.isfinite(flat_parameters(trainer.model)).all()


# ------------------------------------------------------------------ a grader that breaks on one row


def broken_on(*texts, error):
    def grade(text, answer):
        if text in texts:
            raise error
        return Grade(float("#" in text), "" if "#" in text else "wrong")

    return GradedReward("grader", grade, extract_answer=str, follows_format=bool)


@pytest.mark.parametrize(
    "error", [KeyError("x"), ZeroDivisionError(), RecursionError(), TypeError()], ids=repr
)
def test_a_row_that_breaks_the_grader_is_excluded_from_the_loss(tmp_path, error, caplog):
    dataset = chat_dataset(answer=["2", "4", "6", "8"])
    parameters = {"train_dataset": dataset, "teacher_context": ["sibling", "feedback"]}
    trainer = make_trainer(
        tmp_path,
        reward_funcs=broken_on("0", "4;#4 the answer", error=error),
        log_completions=True,
        **parameters,
    )
    trainer.train()
    table = pd.read_parquet(tmp_path / "completions" / "completions_00001.parquet")
    texts = [turns[0]["content"] for turns in table["completion"]]
    routes = dict(zip(texts, table["route"], strict=True))
    assert {text for text, route in routes.items() if route == "skipped"} == {"0", "4;#4 the answer"}
    assert table["feedback"][texts.index("0")] == ""
    assert logged(trainer, "rewards/grader/unscorable_frac") == [pytest.approx(2 / 16)]
    assert (
        f"2 of 16 rows cannot be graded and get no reward, first row 2: the grader raised {error!r}"
        in caplog.text
    )


def test_a_grader_that_breaks_on_every_row_or_for_another_reason_stops_the_run():
    with pytest.raises(KeyError, match="x"):
        broken_on("1", "2", error=KeyError("x"))(["1", "2"], ["", ""])
    with pytest.raises(OSError, match="disk"):
        broken_on("1", error=OSError("disk"))(["1", "2"], ["", ""])
    assert broken_on("1", error=KeyError("x"))(["1", "2#"], ["", ""]) == [None, 1.0]


# ------------------------------------------------------------------ hanging


class Hanging:
    """Reward functions that hang in some batches, counted from 0, until they are released."""

    def __init__(self, batches):
        self.released = threading.Event()
        self.ended = threading.Event()
        self._batch = itertools.count()
        self._batches = batches

    def _grade(self, completions, log_extra, log_metric, is_late):
        log_extra("feedback", ["late" if is_late else "in time"] * len(completions))
        log_metric("lateness", float(is_late))
        if is_late:
            self.ended.set()
        return contains_answer(completions)

    def function(self, completions, log_extra, log_metric, **kwargs):
        is_late = next(self._batch) in self._batches
        log_extra("before", [is_late] * len(completions))
        if is_late:
            self.released.wait(60)
        return self._grade(completions, log_extra, log_metric, is_late)

    async def coroutine(self, completions, log_extra, log_metric, **kwargs):
        is_late = next(self._batch) in self._batches
        log_extra("before", [is_late] * len(completions))
        while is_late and not self.released.is_set():
            await asyncio.sleep(0.01)
        return self._grade(completions, log_extra, log_metric, is_late)

    async def blocking_coroutine(self, completions, log_extra, log_metric, **kwargs):
        return self.function(completions, log_extra, log_metric)


@pytest.fixture
def hanging():
    made = []

    def make(batches):
        made.append(Hanging(batches))
        return made[-1]

    yield make
    for one in made:
        one.released.set()


HANGING_OPTIONS = {"learning_rate": 0.1, "reward_timeout": 0.3, "log_completions": True}


@pytest.mark.parametrize("kind", ["function", "coroutine", "blocking_coroutine"])
def test_a_function_that_hangs_gives_no_scores_and_the_run_goes_on(tmp_path, hanging, kind, caplog):
    slow = hanging({0, 2})
    trainer = make_trainer(tmp_path, max_steps=4, reward_funcs=getattr(slow, kind), **HANGING_OPTIONS)
    states, original = [], trainer._compute_loss

    def compute(model, inputs):
        states.append(flat_parameters(trainer.model))
        if trainer.state.global_step in (
            0,
            2,
        ):  # the batch is made: what hung may end, and log, in the next one
            slow.released.set()
            time.sleep(0.1)
            slow.released.clear()
        return original(model, inputs)

    trainer._compute_loss = compute
    trainer.train()
    assert logged(trainer, "srpo/route/skipped_frac") == [1.0, 1 / 16, 1.0, 1 / 16]
    assert logged(trainer, f"rewards/{kind}/timed_out_frac") == [1.0, 0.0, 1.0, 0.0]
    assert logged(trainer, "lateness") == [0.0, 0.0]
    assert torch.equal(states[0], states[1])  # nothing was trained on
    assert not torch.equal(states[1], states[2])
    if kind != "coroutine":  # which is cancelled
        assert slow.ended.is_set()
    for step in range(1, 5):
        table = pd.read_parquet(tmp_path / "completions" / f"completions_{step:05d}.parquet")
        assert len(table) == NUM_ROLLOUTS
        assert set(table.get("feedback", ["in time"])) == ({None} if step == 3 else {"in time"})
        assert ("feedback" in table) == (step > 1)
        assert set(table.get("before", [False])) == {False}
    assert caplog.text.count("did not return within reward_timeout=0.3 seconds") == 1


@pytest.mark.parametrize("kind", ["function", "coroutine"])
def test_timeouts_in_a_row_stop_the_run(tmp_path, hanging, kind):
    slow = hanging({0, 1, 3, 4, 5})
    trainer = make_trainer(tmp_path, max_steps=8, reward_funcs=getattr(slow, kind), **HANGING_OPTIONS)
    with pytest.raises(
        TimeoutError, match=f"'{kind}' did not return .* in {MAX_TIMEOUTS_IN_A_ROW} batches in a row"
    ):
        trainer.train()
    assert trainer.state.global_step == 5


def test_other_functions_scores_count_where_one_hangs(tmp_path, hanging):
    """Unless it is the one that decides what is correct."""
    alone = make_trainer(tmp_path, reward_funcs=contains_answer, **HANGING_OPTIONS)
    both = make_trainer(tmp_path, reward_funcs=[contains_answer, hanging({0}).function], **HANGING_OPTIONS)
    assert relative_error(update(both), update(alone)) < 1e-5
    assert logged(both, "srpo/route/skipped_frac") == [1 / 16]
    functions = [contains_answer, hanging({0}).function]
    deciding = make_trainer(
        tmp_path, reward_funcs=functions, correctness_reward="function", **HANGING_OPTIONS
    )
    assert not update(deciding).any()
    assert logged(deciding, "srpo/route/skipped_frac") == [1.0]


@pytest.mark.parametrize("kind", ["function", "coroutine"])
def test_a_timeout_that_is_not_reached_changes_nothing(tmp_path, hanging, kind):
    made = {}
    for timeout in (None, 60.0):
        function = getattr(hanging(set()), kind)
        trainer = make_trainer(
            tmp_path, reward_funcs=function, reward_timeout=timeout, teacher_context=["sibling", "feedback"]
        )
        made[timeout] = update(trainer)
        assert logged(trainer, "lateness") == [0.0]
    assert relative_error(made[60.0], made[None]) < 1e-5


def test_a_function_with_an_event_loop_of_its_own_has_a_thread_of_its_own():
    async def score():
        await asyncio.sleep(0)
        return 1.0

    def judge(completions, **kwargs):
        return [asyncio.run(score()) for _ in completions]

    (checked,) = Rewards([judge], ["judge"], 60.0).functions
    assert checked(completions=["a", "b"], log_metric=lambda name, value: None) == [1.0, 1.0]


def test_names_kinds_and_models_stay_what_they_are(tmp_path):
    async def judge(completions, **kwargs):
        return [0.0] * len(completions)

    model = torch.nn.Linear(1, 1)
    functions = Rewards(
        [contains_answer, judge, model], ["contains_answer", "judge", "model"], None
    ).functions
    assert [asyncio.iscoroutinefunction(f.__call__) for f in functions] == [False, True, False]
    assert functions[2] is model
    trainer = make_trainer(tmp_path, reward_funcs=[contains_answer, judge])
    trainer.train()
    assert logged(trainer, "rewards/judge/mean") == [0.0]


@pytest.mark.slow
def test_a_process_ends_while_a_function_hangs():
    code = """
import threading
from srpo_trl.host.rewards.calls import Rewards

async def blocking(completions, **kwargs):
    threading.Event().wait()

def hanging(completions, **kwargs):
    threading.Event().wait()

import asyncio
first, second = Rewards([hanging, blocking], ["hanging", "blocking"], 0.1).functions
given = {"completions": ["a"], "log_metric": lambda name, value: None}
assert first(**given) == asyncio.run(second(**given)) == [None]
print("ended")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True
    )
    assert done.stdout.endswith("ended\n")
