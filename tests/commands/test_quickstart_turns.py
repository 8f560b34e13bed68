"""Methods that take turns: numbers of a run alone, errors that end all, seconds that are a run's own."""

import random
import signal
import threading
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from srpo_trl.commands.quickstart.task import WORDS, sample_questions
from srpo_trl.commands.quickstart.train import Run, TrainingRecipe, train_in_turns
from srpo_trl.commands.quickstart.turns import take_turns
from srpo_trl.commands.quickstart.warmup import WarmupResult, save_start
from srpo_trl.data.tiny_model import build_model, build_tokenizer
from srpo_trl.runs.read import read_runs

METHODS = ("grpo", "sdpo", "srpo")


def drawing(into: list, num_turns: int = 4):
    """Return a job that draws from every source of random numbers, turn by turn."""

    def job(pass_on):
        for _ in range(num_turns):
            into.append((random.random(), np.random.random(), torch.rand(1).item()))
            pass_on()

    return job


def test_each_job_draws_as_if_alone_and_the_callers_state_comes_back():
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    alone: list = []
    drawing(alone)(lambda: None)
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    drawn: list[list] = [[], [], []]
    take_turns([drawing(into) for into in drawn])
    assert drawn == [alone, alone, alone]
    assert (random.random(), np.random.random(), torch.rand(1).item()) == alone[0]


def test_jobs_take_turns_until_each_has_ended():
    order: list[str] = []

    def job(name, num_turns):
        def run(pass_on):
            for turn in range(num_turns):
                order.append(f"{name}{turn}")
                pass_on()

        return run

    take_turns([job("a", 3), job("b", 1), job("c", 2)])
    assert order == ["a0", "b0", "c0", "a1", "c1", "a2"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_ends_every_job_and_is_raised(error):
    before, closed = threading.active_count(), []

    def waiting(pass_on):
        try:
            while True:
                pass_on()
        finally:
            closed.append(True)

    def failing(pass_on):
        pass_on()
        raise error("of the job")

    with pytest.raises(error, match="of the job"):
        take_turns([waiting, failing, waiting])
    assert closed == [True, True]
    assert threading.active_count() == before


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return the folder of three methods trained in turns, of one trained alone, and the seconds that both took."""
    folder = tmp_path_factory.mktemp("turns")
    tokenizer, recipe = build_tokenizer(WORDS), TrainingRecipe(num_steps=2, eval_every=1, prompts_per_step=2)
    save_start(folder / "start", build_model(tokenizer), tokenizer, WarmupResult(0, 0.0))
    held_out = sample_questions(4, 5, held_out=True)

    def run(place, method):
        config = recipe.config(method, 3, folder / place / method)
        return Run(config, recipe.questions(3), lambda step, accuracy: None)

    def odd_length(completions, **kwargs):  # a random model gets no sum right
        return [float(len(completion[-1]["content"]) % 2) for completion in completions]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("srpo_trl.commands.quickstart.train.addition_reward", odd_length)
        began = time.process_time()
        train_in_turns([run("together", method) for method in METHODS], folder / "start", tokenizer, held_out)
        seconds = time.process_time() - began
        for method in METHODS:
            train_in_turns([run("alone", method)], folder / "start", tokenizer, held_out)
    return folder, seconds


@pytest.mark.parametrize("method", METHODS)
def test_methods_in_turns_are_bit_for_bit_what_they_are_alone(trained, method):
    folder, _ = trained
    together, alone = (
        load_file(folder / place / method / "model.safetensors") for place in ("together", "alone")
    )
    start = load_file(folder / "start" / "model.safetensors")
    assert all(torch.equal(together[name], alone[name]) for name in alone)
    assert not all(torch.equal(together[name], start[name]) for name in start)
    runs = read_runs([folder / place / method for place in ("together", "alone")])
    logs = [[record["logs"] for record in run.records] for run in runs]
    for mine, same in zip(*logs, strict=True):
        timed = {name for name in mine if "second" in name or "time" in name or "memory" in name}
        untimed = mine.keys() - timed - {"eval_runtime", "eval_samples_per_second", "eval_steps_per_second"}
        assert {name: mine[name] for name in untimed} == {name: same[name] for name in untimed}


def test_seconds_are_the_processors_and_each_runs_own(trained):
    folder, seconds = trained
    own = [run.seconds for run in read_runs([folder / "together" / method for method in METHODS])]
    assert min(own) > 0
    assert sum(own) < seconds


@pytest.fixture
def interrupts():
    """Ctrl-C raises, also where the tests were started in a shell's background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def test_a_second_interrupt_waits_until_every_job_has_ended(interrupts):
    closed = []

    def job(pass_on):
        try:
            pass_on()
            signal.raise_signal(signal.SIGINT)
            time.sleep(0.3)  # in the midst of a step, when the user interrupts
            signal.raise_signal(signal.SIGINT)
            pass_on()
        finally:
            closed.append(True)

    with pytest.raises(KeyboardInterrupt):
        take_turns([job])
    assert closed == [True]
    assert signal.getsignal(signal.SIGINT) is interrupts
