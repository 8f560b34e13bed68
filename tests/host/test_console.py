"""The line of each log on the terminal, and the callback that it takes the place of."""

import re
from types import SimpleNamespace

import pytest
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.utils.notebook import NotebookProgressCallback

from harness import chat_dataset, make_trainer
from srpo_trl.host import console
from srpo_trl.host.callbacks import TrainingClock
from srpo_trl.host.console import LineBesideBar, LinePrinter, LogLines, print_lines

ROUTED_LOG = {
    "loss": 1e-5,
    "learning_rate": 1e-6,
    "srpo/correct_frac": 0.4531,
    "srpo/route/distilled_frac": 0.25,
    "srpo/distillation/divergence": 0.0339,
    "completions/mean_length": 212.4,
    "reward": 0.9,
}


@pytest.fixture
def now(monkeypatch):
    face = SimpleNamespace(time=100.0)
    monkeypatch.setattr(console.time, "perf_counter", lambda: face.time)
    return face


def state_at(step: int, max_steps: int = 100) -> SimpleNamespace:
    return SimpleNamespace(global_step=step, max_steps=max_steps)


def test_a_line_has_the_numbers_to_read_first_the_pace_and_the_time_left(now):
    clock = TrainingClock()
    lines = LogLines(clock)
    lines.begin(state_at(10))
    clock.seconds = 7.0  # of the part before a resume, which the clock has by its first step
    lines.begin_step(state_at(10))
    now.time, clock.seconds = 120.0, 17.0  # two steps: 20 s of them 10 in training
    assert lines.line(state_at(12), ROUTED_LOG) == (
        "step 12/100  correct 0.453  distilled 0.25  teacher -  divergence 0.0339  tokens 212  5 s/step  14.7 min left"
    )
    now.time, clock.seconds = 125.0, 21.0  # a third, faster than the mean
    assert lines.line(state_at(13), ROUTED_LOG).endswith("tokens 212  4 s/step  12.1 min left")
    clock.limit = 31.0
    now.time, clock.seconds = 126.0, 22.0
    assert lines.line(state_at(14), ROUTED_LOG).endswith("1 s/step  9 s left")
    assert lines.line(state_at(100), ROUTED_LOG).endswith("s/step")  # nothing is left


def test_a_log_without_routes_has_trls_numbers(now):
    log = {"loss": 0.0, "learning_rate": 0.0, "reward": 0.5, "reward_std": 0.25, "entropy": 1.5}
    lines = LogLines(TrainingClock())
    lines.begin(state_at(0))
    assert lines.line(state_at(1, 1), log).startswith(
        "step 1/1  reward 0.5  std 0.25  entropy 1.5  kl -  tokens -"
    )


@pytest.mark.parametrize(
    ("logs", "line"),
    [
        (
            {"eval_avg@16": 0.481, "eval_avg@16_stderr": 0.0222, "eval_reward": 0.5, "eval_runtime": 9.0},
            "evaluation  avg@16 0.481 ± 0.0222  reward 0.5",
        ),
        (
            {"eval_a_maj@4": 0.5, "eval_a_completions/mean_length": 1234.4},
            "evaluation  a_maj@4 0.5  a_tokens 1234",
        ),
        ({"test_runtime": 1.0, "test_loss": 0.1, "test_rewards/f/mean": 1.0}, "evaluation  loss 0.1"),
        ({"mine": 0.25, "epoch": 1}, "mine 0.25  epoch 1"),
    ],
    ids=["sampled", "by name", "another prefix", "a user's own"],
)
def test_an_evaluation_has_its_scores_and_their_standard_errors(logs, line):
    assert LogLines(TrainingClock()).line(state_at(3), logs) == f"step 3/100  {line}"


def test_a_log_between_rollouts_keeps_its_columns():
    lines = LogLines(TrainingClock())
    lines.begin(state_at(0))
    lines.line(state_at(1), ROUTED_LOG)
    assert "correct -  distilled -" in lines.line(state_at(2), {"loss": 0.0, "learning_rate": 0.0})


def test_a_users_own_log_may_hold_anything():
    lines = LogLines(TrainingClock())
    assert lines.line(state_at(3), {"train_runtime": None}) == "step 3/100  evaluation"


def test_the_end_is_a_line(now):
    lines = LogLines(TrainingClock())
    assert lines.line(state_at(3), {"train_runtime": 90.0, "loss": 1.0}) == "trained to step 3 in 90 s"


class Own(PrinterCallback):
    """A user's."""


@pytest.mark.parametrize(
    ("given", "kinds"),
    [
        ([TrainerCallback(), PrinterCallback()], [TrainerCallback, LinePrinter]),
        ([PrinterCallback(), Own(), PrinterCallback()], [PrinterCallback, Own, LinePrinter]),
        ([ProgressCallback(), TrainerCallback()], [LineBesideBar, TrainerCallback]),
        ([Own(), TrainerCallback()], [Own, TrainerCallback]),
    ],
    ids=["printer", "a user's own printers stay", "bar", "none"],
)
def test_lines_take_the_place_of_transformers_callback_alone(given, kinds):
    print_lines(given, TrainingClock())
    assert [type(callback) for callback in given] == kinds


def test_in_a_notebook_lines_are_printed(monkeypatch):
    monkeypatch.setattr(console, "DEFAULT_PROGRESS_CALLBACK", NotebookProgressCallback)
    callbacks = [NotebookProgressCallback()]
    print_lines(callbacks, TrainingClock())
    assert [type(callback) for callback in callbacks] == [LinePrinter]


@pytest.mark.parametrize("disable_tqdm", [True, False])
def test_a_run_prints_a_line_a_log_and_no_dictionary(tmp_path, capsys, disable_tqdm):
    trainer = make_trainer(tmp_path, max_steps=2, disable_tqdm=disable_tqdm)
    trainer.train()
    printed = capsys.readouterr().out
    lines = [
        line for line in printed.replace("\r", "\n").splitlines() if line.startswith(("step", "trained"))
    ]
    assert [re.split(r"  ", line)[0] for line in lines[:2]] == ["step 1/2", "step 2/2"]
    assert lines[0].split("  ")[1:6] == [
        *("correct 0.312", "distilled 0.375", "teacher 0.6"),
        *(f"divergence {trainer.state.log_history[0]['srpo/distillation/divergence']:.3g}", "tokens 5.12"),
    ]
    assert "{'loss'" not in printed
    trainer.remove_callback(PrinterCallback if disable_tqdm else ProgressCallback)  # as transformers' own
    assert not any(isinstance(c, LinePrinter | LineBesideBar) for c in trainer.callback_handler.callbacks)


def test_without_a_run_log_transformers_prints(tmp_path, capsys):
    for method, options in (("grpo", {}), ("srpo", {"run_log": False})):
        make_trainer(tmp_path, method=method, **options).train()
        printed = capsys.readouterr().out
        assert "{'loss'" in printed
        assert "step 1/1" not in printed


def test_tables_of_completions_come_with_the_first_log_and_every_so_many_steps(tmp_path, capsys):
    options = {"max_steps": 5, "eval_strategy": "steps", "eval_steps": 2, "num_generations_eval": 1}
    data = {"eval_dataset": chat_dataset(), "per_device_eval_batch_size": 4}
    make_trainer(tmp_path / "some", log_completions_steps=3, **options, **data).train()
    tables = sorted(path.stem for path in (tmp_path / "some" / "completions").iterdir())
    assert tables == ["completions_00001", "completions_00003"]
    assert capsys.readouterr().out.count("Step 3") == 1
    make_trainer(tmp_path / "all", log_completions=True, max_steps=2).train()
    assert len(list((tmp_path / "all" / "completions").iterdir())) == 2
    make_trainer(tmp_path / "none", max_steps=1).train()
    assert not (tmp_path / "none" / "completions").exists()
