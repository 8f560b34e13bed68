"""Runs read back: from our log or a trainer's state, of today or before; one answer in every tool."""

import errno
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from srpo_trl.commands.compare.jobs import Comparison, Job
from srpo_trl.commands.compare.table import read_curves
from srpo_trl.commands.curves import table_rows
from srpo_trl.commands.report.tables import best_table
from srpo_trl.runs.log import EXAMPLES_FILE, GUARDS_FILE, LOG_FILE, TRAINER_STATE_FILE, RunLog
from srpo_trl.runs.read import FORMER_METRICS, RunHistory, read_checkpoint, read_runs
from srpo_trl.runs.scores import read_budgets


def write_state(folder: Path, history: list[dict], step: int = 30, max_steps: int = 30) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    state = {"log_history": history, "global_step": step, "max_steps": max_steps}
    (folder / TRAINER_STATE_FILE).write_text(json.dumps(state))
    return folder


def test_a_run_without_our_log_is_read_from_its_last_checkpoint(tmp_path):
    for step in (2, 10):
        history = [
            {"step": 0, "eval_reward": 0.1},
            {"step": 2, "reward": 0.2, "training_seconds": 10.0},
            {"step": 6, "eval_reward": 0.3},
            {"step": step, "reward": 0.4, "training_seconds": 50.0},
        ]
        write_state(tmp_path / f"checkpoint-{step}", history, step)
    (tmp_path / "checkpoint-best").mkdir()
    (run,) = read_runs([tmp_path])
    assert run.source == tmp_path / "checkpoint-10" / "trainer_state.json"
    assert run.num_steps == 10
    # Read off between the logs that show the clock.
    assert run.series("eval_reward").seconds.tolist() == [0.0, 30.0]
    assert run.series("reward").values.tolist() == [0.2, 0.4]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": []}))
    assert read_runs([tmp_path])[0].records == []


@pytest.mark.parametrize("text", ["", "[]", "{}", "7", '{"log_history": '])
def test_a_file_that_is_no_state_is_named(tmp_path, text):
    (tmp_path / "trainer_state.json").write_text(text)
    with pytest.raises(ValueError, match="is no trainer state with a log_history"):
        read_checkpoint(tmp_path)


def test_what_can_be_read_is_shown_and_the_rest_named(tmp_path):
    begin_run(tmp_path / "good", "srpo").append({"step": 1, "logs": {"reward": 1.0}})
    for step in (2, 4):
        write_state(tmp_path / "older" / f"checkpoint-{step}", [{"step": step, "reward": 0.5}], step)
    half = [tmp_path / place for place in ("older/checkpoint-10", "broken/checkpoint-3")]
    for folder in half:
        folder.mkdir(parents=True)
        (folder / TRAINER_STATE_FILE).write_text('{"log_history": [{"step"')
    told: list[str] = []
    assert rewards_of(read_runs([tmp_path], told.append)) == {"good": [1.0], "older": [0.5]}
    for folder, outcome in zip(half, (r"older/checkpoint-4/", r"Left out: "), strict=True):
        assert [text for text in told if str(folder) in text and re.search(outcome, text)]
    assert len(told) == 2
    with pytest.raises(ValueError, match="broken/checkpoint-3"):
        read_runs([tmp_path, tmp_path / "broken"])


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    for name in ("fine", "closed"):
        begin_run(tmp_path / name, "srpo")
    listed = os.scandir

    def refusing(path):
        if Path(path).name == "closed":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", refusing)
    told: list[str] = []
    assert [run.name for run in read_runs([tmp_path], told.append)] == ["fine"]
    assert told == [f"{tmp_path / 'closed'} cannot be read (Permission denied) and is left out."]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_no_log(tmp_path):
    os.mkfifo(tmp_path / LOG_FILE)
    with pytest.raises(ValueError, match="holds no log of a run"):
        read_runs([tmp_path])


def test_values_that_are_no_numbers_are_left_out(tmp_path):
    log = RunLog(tmp_path / LOG_FILE)
    for step, value in enumerate([1, 2.5, None, math.nan, math.inf, "3", True, [1]]):
        log.append({"step": step, "logs": {"reward": value, "training_seconds": step}})
    log.append({"step": 9, "logs": ["reward"]})
    (run,) = read_runs([tmp_path])
    assert run.series("reward").values.tolist() == [1.0, 2.5]
    assert run.series("reward").steps.tolist() == [0.0, 1.0]


def test_runs_have_names_that_tell_them_apart(tmp_path):
    folders = [tmp_path / "a" / "srpo", tmp_path / "b" / "srpo", tmp_path / "grpo"]
    for folder in folders:
        RunLog(folder / LOG_FILE).begin(0)
    assert [run.name for run in read_runs(folders)] == ["a/srpo", "b/srpo", "grpo"]
    with pytest.raises(ValueError, match="more than once"):
        read_runs([folders[0], folders[0]])


def begin_run(folder: Path, method: str, step: int = 0, **options) -> RunLog:
    log = RunLog(folder / LOG_FILE)
    log.begin(step, options={"method": method, **options})
    return log


def rewards_of(runs: list[RunHistory]) -> dict[str, list[float]]:
    return {run.name: run.series("reward").values.tolist() for run in runs}


def test_runs_below_a_folder_are_found_and_checkpoints_are_not_runs(tmp_path):
    for number, place in enumerate(("b", "a", "runs/srpo/seed-0", "too/deep/a/place")):
        begin_run(tmp_path / place, "srpo").append({"step": 1, "logs": {"reward": number}})
    for place in ("b/checkpoint-5", "plain/checkpoint-5", ".trash"):
        write_state(tmp_path / place, [{"step": 1, "reward": 0.5}])
    runs = read_runs([tmp_path])
    assert rewards_of(runs) == {"a": [1], "b": [0], "plain": [0.5], "seed-0": [2]}
    # The folder is a run, too, and one of those below it is also given itself.
    begin_run(tmp_path, "grpo").append({"step": 1, "logs": {"reward": 7}})
    assert [run.name for run in read_runs([tmp_path, tmp_path / "b"])] == [
        tmp_path.name,
        "a",
        "b",
        "plain",
        "seed-0",
    ]
    assert [run.name for run in read_runs([tmp_path / "b", tmp_path / "a"])] == ["b", "a"]


def test_each_run_that_logged_into_one_folder_is_read(tmp_path):
    folder = tmp_path / "out"
    for number, (method, step, seed) in enumerate(
        [("grpo", 0, 0), ("srpo", 0, 0), ("srpo", 0, 0), ("srpo", 2, 0), ("srpo", 0, 1)]
    ):
        log = begin_run(folder, method, step, seed=seed)
        for later in (1, 2, 3):
            log.append({"step": step + later, "logs": {"reward": number}})
    begin_run(folder, "sdpo")  # logged nothing
    runs = read_runs([folder])
    assert rewards_of(runs) == {
        "out (grpo)": [0, 0, 0],
        "out (srpo 1)": [2, 2, 3, 3, 3],  # resumed after two steps; began again once with the same options
        "out (srpo 2)": [4, 4, 4],
    }
    assert [run.num_earlier_starts for run in runs] == [0, 1, 0]


def test_examples_belong_to_the_run_that_could_write_them(tmp_path):
    examples = RunLog(tmp_path / EXAMPLES_FILE)
    for method, distilled in (("sdpo", 1.0), ("srpo", 0.5), ("grpo", 0.0)):
        log = begin_run(tmp_path, method, log_examples_steps=1)
        log.append({"step": 1, "logs": {"srpo/route/distilled_frac": distilled}})
        if distilled:
            examples.begin(0)
            examples.append({"step": 1, "method": method})
    runs = read_runs([tmp_path])
    assert [[e["method"] for e in run.examples] for run in runs] == [["sdpo"], ["srpo"], []]
    (tmp_path / GUARDS_FILE).write_text('{"step": 1, "guard": "length"}\n')
    assert [len(run.findings) for run in read_runs([tmp_path])] == [0, 0, 1]


def test_logs_of_before_the_renames_are_read(tmp_path):
    log = RunLog(tmp_path / LOG_FILE)
    log.begin(0)
    log.append({"step": 10, "seconds": 5.0, "logs": dict.fromkeys(FORMER_METRICS, 0.25) | {"reward": 0.5}})
    log.append({"step": 10, "seconds": 5.0, "logs": {"eval_reward": 0.5}})
    log.append({"step": 20, "logs": {"srpo/seconds/elapsed": 9.0}})
    log = RunLog(tmp_path / EXAMPLES_FILE)
    for route in ("grpo", "sdpo", "mix", "skip", "distilled", None):
        log.append({"step": 1} if route is None else {"step": 1, "route": route})
    (run,) = read_runs([tmp_path])
    assert run.metrics == {*FORMER_METRICS.values(), "reward", "eval_reward"}
    assert run.series("srpo/route/distilled_frac").values.tolist() == [0.25]
    assert run.series("eval_reward").seconds.tolist() == [5.0]
    assert run.seconds == 9.0
    routes = [example.get("route") for example in run.examples]
    assert routes == ["policy", "distilled", "both", "skipped", "distilled", None]


def test_a_curve_has_one_point_for_each_step():
    records = [
        {"step": 0, "seconds": 0.0, "logs": {"eval_reward": 0.3}},
        {"step": 10, "seconds": 5.0, "logs": {"reward": 0.99}},
        {"step": 10, "seconds": 5.0, "logs": {"eval_reward": 0.5}},
        {"step": 10, "seconds": 6.0, "logs": {"eval_reward": 0.8}},  # a resumed run evaluates its start again
        {"step": 20, "seconds": 9.5, "logs": {"eval_reward": 0.6}},
    ]
    curve = RunHistory("run", Path("run"), records, {"max_steps": 40}).curve("eval_reward")
    assert curve.points == ((0, 0.0, 0.3), (10, 5.0, 0.5), (20, 9.5, 0.6))
    assert (curve.num_steps, curve.seconds, curve.is_finished) == (20, 9.5, False)


def test_a_run_has_ended_at_its_last_step_or_out_of_time(tmp_path):
    history = [{"step": 20, "training_seconds": 9.0}]
    run = read_checkpoint(write_state(tmp_path, history, step=25, max_steps=30))
    assert (run.num_steps, run.seconds) == (25, 9.0)
    assert not run.has_ended()
    assert not run.has_ended(max_seconds=9.1)
    assert run.has_ended(max_seconds=9.0)
    assert read_checkpoint(write_state(tmp_path, history, step=30, max_steps=30)).has_ended()
    assert not read_checkpoint(write_state(tmp_path, [], step=0, max_steps=30)).has_ended(max_seconds=1.0)


# What both tools say of a run: (step, seconds, score) of its evaluations; by budget its best score.
CASES = {
    "the start does not count": (
        [(0, 0.0, 0.6), (10, 50.0, 0.4), (20, 100.0, 0.5)],
        {"100s": 0.5, "50s": 0.4},
    ),
    "an evaluation at the very end is within": (
        [(10, 60.0, 0.4), (20, 120.0, 0.5)],
        {"2min": 0.5, "2m": 0.5},
    ),
    "a run that has not reached the budget has no score": (
        [(0, 0.0, 0.1), (10, 50.0, 0.4)],
        {"51s": None, "1h": None, "50s": 0.4},
    ),
    "later evaluations are not within": ([(10, 50.0, 0.4), (20, 150.0, 0.9)], {"100s": 0.4, "0.5h": None}),
    "nothing was measured": ([(0, 0.0, 0.6), (20, 150.0, 0.9)], {"100s": None}),
}


@pytest.mark.parametrize("case", CASES)
def test_compare_and_report_have_one_answer(case, tmp_path):
    evaluations, expected = CASES[case]
    history = [{"step": s, "eval_avg@4": score, "training_seconds": t} for s, t, score in evaluations]
    budgets = (
        tuple(read_budgets(",".join(expected))) if case != "an evaluation at the very end is within" else ()
    )
    budgets = budgets or tuple(budget for name in expected for budget in read_budgets(name))
    job = Job("variant", 0, tmp_path / "compared", (), "{}")
    write_state(job.output_dir / "checkpoint-30", history, step=30, max_steps=30)
    comparison = Comparison((job,), ("variant",), {}, {}, budgets, None, None, 1, tmp_path)
    _, *rows = table_rows(read_curves(comparison), budgets)
    compared = rows[-1][1 : 1 + len(budgets)]

    log = RunLog(tmp_path / "reported" / LOG_FILE)
    log.begin(0)
    for entry in history:
        log.append({"step": entry["step"], "logs": entry})
    table = best_table(read_runs([tmp_path / "reported"]), "eval_avg@4", budgets)
    reported = [cell.value for cell in table.rows[0]][:-1]

    assert compared == ["not yet" if score is None else f"{score:.3f}" for score in expected.values()]
    assert reported == ["" if score is None else f"{score:.3f}" for score in expected.values()]


def test_a_number_without_a_unit_is_refused_by_both_tools(tmp_path, capsys):
    from srpo_trl.cli import main

    with pytest.raises(SystemExit, match="2"):
        main(["report", str(tmp_path), "--budgets", "5"])
    assert "'5' is not a duration" in capsys.readouterr().err
    assert main(["compare", str(tmp_path / "none.yaml"), "--budget", "5"]) == 2
    assert "'5' is not a duration" in capsys.readouterr().err


def test_runs_are_read_without_torch():
    modules = "durations, guards, log, read, scores"
    code = (
        f"import sys; from srpo_trl.runs import {modules}; "
        "assert not {'torch', 'transformers', 'accelerate', 'trl'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
