"""Reward functions with a time limit run in a process that can be killed, whatever they do."""

import asyncio
import contextlib
import functools
import logging
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from hard_rewards import (
    Counting,
    TwoArgumentsError,
    coroutine,
    crashes,
    deaf,
    exits,
    has_mark,
    is_killed,
    iterator,
    logs_iterators,
    pattern,
    scaled,
    tower,
    unspeakable,
)
from harness import contains_answer, logged, make_trainer, relative_error, update
from srpo_trl.host.rewards import transport as reward_transport
from srpo_trl.host.rewards.calls import Rewards
from srpo_trl.host.rewards.process import RewardProcess
from srpo_trl.host.rewards.threads import RewardLoop, RewardThread
from srpo_trl.rewards import math_reward

LIMIT = 1.0


class Caller:
    """Calls one reward function as TRL does, and keeps what it logs."""

    def __init__(self, function, limit=LIMIT, name="judge"):
        (self.checked,) = Rewards([function], [name], limit).functions
        self.extra, self.metrics = [], []

    def __call__(self, completions=("a", "b"), **columns):
        scores = self.checked(
            prompts=["q"] * len(completions),
            completions=list(completions),
            log_extra=lambda name, values: self.extra.append((name, values)),
            log_metric=lambda name, value: self.metrics.append((name, value)),
            **columns,
        )
        return asyncio.run(scores) if asyncio.iscoroutine(scores) else scores

    @property
    def lost(self):
        names = {"rewards/judge/timed_out_frac": "timed out", "rewards/judge/died_frac": "died"}
        return [names[name] for name, value in self.metrics if name in names and value]


@pytest.mark.parametrize("function", [tower, pattern, iterator, deaf, coroutine], ids=lambda f: f.__name__)
def test_code_that_keeps_the_interpreter_is_interrupted(function):
    call = Caller(function)
    assert call() == [None, None]
    assert call() == [None, None]
    assert call.lost == ["timed out", "timed out"]
    with pytest.raises(TimeoutError, match="in 3 batches in a row"):
        call()


def test_math_reward_is_interrupted_in_a_fork_too():
    code = r"""
import os
from srpo_trl.host.rewards.calls import CheckedReward
from srpo_trl.rewards import math_reward
if os.fork() == 0:
    reward = CheckedReward(math_reward, "math_reward", 60.0)
    nothing = lambda *a: None
    given = {"completions": [r"\boxed{9^{9^{9}}}", r"\boxed{5}"], "answer": ["5", "5"]}
    scores = reward(prompts=["q", "q"], log_extra=nothing, log_metric=nothing, **given)
    os._exit(0 if scores == [0.0, 1.0] else 1)
print(os.waitstatus_to_exitcode(os.wait()[1]))
"""
    assert run_python(code) == "0\n"


def run_python(code, **options):
    done = subprocess.run(
        [sys.executable, "-"], input=code, capture_output=True, text=True, timeout=120, check=True, **options
    )
    return done.stdout


@pytest.mark.parametrize(
    ("function", "how"),
    [
        (exits, "exited with status 3"),
        (crashes, "was killed by SIGSEGV"),
        (is_killed, "was killed by SIGKILL"),
    ],
    ids=["exits", "crashes", "is killed"],
)
def test_a_process_that_ends_costs_its_batch(function, how, caplog):
    call = Caller(function)
    assert [call(), call()] == [[None, None]] * 2
    assert call.lost == ["died", "died"]
    assert caplog.text.count(f"The process of the reward function 'judge' {how} before it returned") == 1
    with pytest.raises(RuntimeError, match=f"{how} before it returned in 3 batches in a row"):
        call()


def test_a_process_that_ended_between_batches_costs_nothing():
    call = Caller(has_mark)
    assert call(["a#", "a"]) == [1.0, 0.0]
    call.checked._runner._worker._process.kill()
    call.checked._runner._worker._process.wait()
    assert call(["a#", "a"]) == [1.0, 0.0]
    assert isinstance(call.checked._runner, RewardProcess)
    assert call.lost == []


def test_functions_of_any_kind_are_sent():
    factor = 3.0

    def closure(completions, **kwargs):
        return [factor] * len(completions)

    async def asynchronous(completions, **kwargs):
        await asyncio.sleep(0)
        return closure(completions)

    class Local:
        def __call__(self, completions, **kwargs):
            return closure(completions)

    functions = [
        closure,
        asynchronous,
        Local(),
        lambda completions, **kwargs: [factor] * len(completions),
        functools.partial(scaled, scale=factor),
    ]
    for function in functions:
        call = Caller(function, 60.0)
        assert call() == [3.0, 3.0]
        assert isinstance(call.checked._runner, RewardProcess)


@pytest.mark.parametrize("kind", ["object", "method"])
def test_what_a_function_remembers_is_in_its_process(kind):
    judge = Counting()
    call = Caller(judge if kind == "object" else judge.method)
    assert [call()[0], call()[0]] == [1.0, 2.0]
    assert call(["hang"]) == [None]
    assert call()[0] == 1.0  # as it was given
    assert judge.calls == 0


def test_a_script_is_not_run_again():
    code = """
from srpo_trl.host.rewards.calls import Rewards
print("begins", flush=True)
SCALE = 2.0

class Judge:
    def grade(self, text):
        return SCALE * len(text)

def judge(completions, **kwargs):
    return [Judge().grade(text) for text in completions]

(checked,) = Rewards([judge], ["judge"], 60.0).functions
print(checked(completions=["abc"], log_metric=lambda *a: None), type(checked._runner).__name__)
"""
    assert run_python(code) == "begins\n[6.0] RewardProcess\n"


# ------------------------------------------------------------------ what stays in a thread


@pytest.mark.parametrize("kind", ["lock", "file", "size", "environments", "column", "asynchronous"])
def test_what_cannot_be_sent_stays_in_a_thread_and_is_named(kind, tmp_path, monkeypatch, caplog):
    lock, file = threading.Lock(), (tmp_path / "log.txt").open("w")
    data = b"0" * 1000

    def judge(completions, **kwargs):
        held = {"lock": lock, "file": file, "size": data}.get(kind)
        return [float(held is not None or "environments" in kwargs or "column" in kwargs)] * len(completions)

    def innocent(completions, **kwargs):
        return [1.0] * len(completions)

    async def asynchronous(completions, **kwargs):
        with lock:
            return [1.0] * len(completions)

    columns = {"environments": {"environments": [object()]}, "column": {"column": [lambda: None] * 2}}
    reasons = {
        "lock": "it holds a lock",
        "file": "it holds a",
        "size": "it is larger than",
        "environments": "it is given `environments`",
        "column": "its argument 'column' cannot be pickled",
        "asynchronous": "it holds a lock",
    }
    if kind == "size":
        lock = file = None
        monkeypatch.setattr(reward_transport, "MAX_FUNCTION_BYTES", 1000)
    function = asynchronous if kind == "asynchronous" else innocent if kind in columns else judge
    call = Caller(function, 60.0)
    for _ in range(2):
        assert call(**columns.get(kind, {})) == [1.0, 1.0]
    assert isinstance(call.checked._runner, RewardLoop if kind == "asynchronous" else RewardThread)
    assert caplog.text.count("runs in a thread of the training process") == 1
    assert reasons[kind] in caplog.text


# ------------------------------------------------------------------ errors, logs, arguments


@pytest.mark.parametrize(
    ("error", "arguments", "kind", "text"),
    [
        (KeyError, ("no such",), KeyError, "no such"),
        (TwoArgumentsError, ("a", "b"), RuntimeError, r"TwoArgumentsError\('ab'\)"),
        (SystemExit, (0,), RuntimeError, r"SystemExit\(0\), which would end the process"),
        (KeyboardInterrupt, (), KeyboardInterrupt, ""),
        (MemoryError, (), MemoryError, ""),
        (TimeoutError, ("of its own",), TimeoutError, "of its own"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_errors_come_back_with_their_trace(error, arguments, kind, text):
    def judge(completions, **kwargs):
        raise error(*arguments)

    call = Caller(judge, 60.0)
    with pytest.raises(kind, match=text) as raised:
        call()
    notes = "\n".join(raised.value.__notes__)
    assert "in judge\n" in notes
    assert "Raised by the reward function 'judge' on a batch of 2 completions" in notes


def test_what_it_logs_comes_back(caplog):
    def judge(completions, log_extra, log_metric, **kwargs):
        logging.getLogger("judge").warning("%d completions", len(completions))
        log_extra("feedback", ["wrong", ""])
        log_metric("length", 3.0)
        return [0, True]

    call = Caller(judge, 60.0)
    assert call() == [0.0, 1.0]
    assert call.extra == [("feedback", ["wrong", ""])]
    assert call.metrics == [
        ("length", 3.0),
        ("rewards/judge/timed_out_frac", 0.0),
        ("rewards/judge/died_frac", 0.0),
    ]
    assert [record.getMessage() for record in caplog.records if record.name == "judge"] == ["2 completions"]


def test_it_runs_in_a_main_thread_without_torch_and_sees_the_state(tmp_path):
    def judge(completions, trainer_state, **kwargs):
        is_main = threading.current_thread() is threading.main_thread()
        return [float(is_main), float("torch" in sys.modules), trainer_state.global_step]

    trainer = make_trainer(tmp_path)
    trainer.state.global_step = 7
    call = Caller(judge, 60.0)
    assert call(["a", "b", "c"], trainer_state=trainer.state) == [1.0, 0.0, 7.0]


def test_scores_that_are_none_are_named_from_the_process():
    call = Caller(lambda completions, **kwargs: [1.0, "2"], 60.0)
    with pytest.raises(ValueError, match="returned '2' \\(str\\) for completion 1"):
        call()


def test_training_with_a_limit_is_training_without(tmp_path):
    made = {}
    for limit in (None, 60.0):
        trainer = make_trainer(tmp_path, reward_funcs=contains_answer, reward_timeout=limit)
        made[limit] = update(trainer)
    assert isinstance(trainer.reward_funcs[0]._runner, RewardProcess)
    assert logged(trainer, "rewards/contains_answer/died_frac") == [0.0]
    assert relative_error(made[60.0], made[None]) < 1e-5


# ------------------------------------------------------------------ ends


def test_no_process_is_left_behind():
    call = Caller(math_reward, 60.0)
    assert call([r"\boxed{5}"], answer=["5"]) == [1.0]
    process = call.checked._runner._worker._process
    assert process.poll() is None
    call.checked._kill()
    assert process.returncode == -signal.SIGKILL


def has_ended(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return True


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's signal and /proc are Linux's")
@pytest.mark.parametrize("is_busy", [True, False], ids=["busy", "idle"])
def test_it_ends_with_a_killed_parent(is_busy):
    code = f"""
import os, subprocess, time
from srpo_trl.host.rewards.calls import Rewards

def judge(completions, **kwargs):
    print(os.getpid(), subprocess.Popen(["sleep", "300"]).pid, flush=True)
    return [float(9**9**9 > 0 if {is_busy} else 1)]

(checked,) = Rewards([judge], ["judge"], 300.0).functions
checked(completions=["a"], log_metric=lambda *a: None)
time.sleep(300)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    pids = list(map(int, parent.stdout.readline().split()))
    assert len(pids) == 2
    parent.kill()
    parent.wait()
    try:
        for _ in range(600):
            if all(map(has_ended, pids)):
                break
            time.sleep(0.1)
        assert all(map(has_ended, pids))
    finally:
        for pid in pids:  # none of them is to go on where the assertion fails
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def test_an_error_that_cannot_be_shown_is_an_error_and_no_death():
    caller = Caller(unspeakable)
    with pytest.raises(RuntimeError, match="UnspeakableError, whose text cannot be shown"):
        caller()
    assert caller.lost == []


@pytest.mark.parametrize("limit", [None, LIMIT])
def test_iterators_and_views_that_are_logged_become_lists(limit):
    caller = Caller(logs_iterators, limit)
    assert caller(["a", "bc"]) == [1.0, 1.0]
    assert caller.extra == [("lengths", [1, 2]), ("texts", ["a", "bc"])]
