"""`srpo-trl compare`: statistics against plain arithmetic, runs that resume and are never repeated, refusals."""

import fcntl
import io
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from srpo_trl.cli import main
from srpo_trl.commands.compare import processes
from srpo_trl.commands.compare.jobs import Job
from srpo_trl.commands.compare.progress import RunProgress
from srpo_trl.commands.curves_plot import common_points
from srpo_trl.commands.quickstart.task import prompt_dataset, sample_questions
from srpo_trl.data.tiny_model import build_model, build_tokenizer
from srpo_trl.methods import COMPARABLE, CONTROLS, METHODS, VARIANTS
from srpo_trl.runs.scores import LearningCurve, Point

REPOSITORY = Path(__file__).resolve().parents[2]

# ---------------------------------------------------------------- curves and variants


def test_curves_are_averaged_where_every_seed_was_evaluated():
    points = {
        0: ((0, 0.0, 0.2), (10, 4.0, 0.4), (20, 8.0, 0.6)),
        1: ((0, 0.0, 0.4), (20, 12.0, 0.8), (30, 18.0, 0.9)),
    }
    runs = {
        seed: LearningCurve(tuple(Point(*point) for point in seen), *seen[-1][:2], is_finished=True)
        for seed, seen in points.items()
    }
    steps, seconds, scores = common_points(runs)
    assert steps.tolist() == [0, 20]
    assert seconds.tolist() == [[0.0, 8.0], [0.0, 12.0]]
    assert scores.tolist() == [[0.2, 0.6], [0.4, 0.8]]


def test_variants_are_the_papers_seven():
    assert {options["method"] for options in VARIANTS.values()} <= set(METHODS)
    assert len(VARIANTS) == 7
    weighted = {name for name, options in VARIANTS.items() if "entropy_weight_beta" not in options}
    assert weighted == {"srpo", "grpo"}  # which has no token weights to leave out
    for name in ("sdpo", "advantage_mix"):
        recipe = Path(__file__).parents[2] / "configs" / "paper" / f"{name}.yaml"
        assert yaml.safe_load(recipe.read_text(encoding="utf-8"))["entropy_weight_beta"] == 0.0


# ---------------------------------------------------------------- runs, made by a trainer that only pretends

FAKE_TRAINER = '''
"""Writes a trainer's checkpoints. A step takes a second by its own account; the score rises with it, by method."""
import json, os, sys, time
from pathlib import Path

values = dict(zip(sys.argv[2::2], sys.argv[3::2]))
assert sys.argv[1] == "train" and values["--resume_from_checkpoint"] == "auto"
folder, seed = Path(values["--output_dir"]), int(values["--seed"])
top = folder.parents[2]
limit = float(values.get("--max_training_time", "1000s").removesuffix("s"))
scale = {"grpo": 1, "sdpo": 2}.get(values.get("--method"), 3)
with open(top / "calls.txt", "a") as file:
    file.write(f"{folder.parent.name} {seed}\\n")
steps = sorted(int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*"))
log = []
if steps:
    log = json.loads((folder / f"checkpoint-{steps[-1]}" / "trainer_state.json").read_text())["log_history"]
for step in range(len(log), 7):
    if (top / "fail").exists() and (step == 3 or (top / "from_the_start").exists()):
        sys.exit("out of memory")
    if step == 3 and (top / "hang").exists():
        (top / "pid").write_text(str(os.getpid()))
        time.sleep(60)
    score = scale * step / 100 + seed / 10
    log.append({"step": step, "eval_reward": score, "training_seconds": float(step)})
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir()
    state = {"global_step": step, "max_steps": 6, "log_history": log}
    (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    if step >= limit:
        break
'''


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration that could be trained, beside its model and data."""
    (tmp_path / "model").mkdir()
    rows = [json.dumps({"prompt": "1+1=", "answer": "2"})] * 4
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        (tmp_path / "data" / f"{split}.jsonl").write_text("\n".join(rows) + "\n")
    path = tmp_path / "recipe.yaml"
    values = {
        "model_name_or_path": str(tmp_path / "model"),
        "dataset_name": str(tmp_path / "data"),
        "reward_funcs": "srpo_trl.rewards.math_reward",
        "use_cpu": True,
        "bf16": False,
        "max_steps": 6,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "seed": 0,
    }
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture
def fake_trainer(tmp_path: Path) -> str:
    path = tmp_path / "fake_trainer.py"
    path.write_text(FAKE_TRAINER)
    return shlex.join([sys.executable, str(path)])


@pytest.fixture
def compare(config: Path, fake_trainer: str, tmp_path: Path):
    """Run the command with the pretending trainer; return its status and its output folder."""

    def run(*options: str, configs: tuple[Path, ...] = (config,), after: tuple[str, ...] = ()):
        words = [
            "compare",
            *map(str, configs),
            "--output_dir",
            str(tmp_path / "out"),
            "--launch",
            fake_trainer,
        ]
        words += ["--", *after] if after else []
        cut = words.index("--") if after else len(words)
        return main([*words[:cut], *options, *words[cut:]]), tmp_path / "out"

    return run


def calls(folder: Path) -> list[str]:
    path = folder / "calls.txt"
    return path.read_text().splitlines() if path.exists() else []


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def test_table_has_best_scores_with_means_and_errors(compare, capsys):
    status, folder = compare("--variants", "grpo", "sdpo", "--seeds", "2", "--budget", "2s,4steps")
    assert status == 0
    # The first seed of everything comes first; 2 s end a run.
    assert calls(folder) == ["grpo 0", "sdpo 0", "grpo 1", "sdpo 1"]
    table = (folder / "table.md").read_text()
    rows = {line.split(" | ")[0].strip("| "): line for line in table.splitlines() if line.startswith("|")}
    assert "| 0.050 |" in rows["start"]  # seeds start at 0.0 and 0.1
    # After 2 s: 0.02 and 0.12 with GRPO, 0.04 and 0.14 with SDPO; sample deviation 0.0707 / sqrt(2) = 0.05.
    assert "0.070 ± 0.050" in rows["grpo"]
    assert "0.090 ± 0.050" in rows["sdpo"]
    assert "method: 'grpo' in grpo, 'sdpo' in sdpo." in table
    assert "Mean and standard error over 2 seeds." in table
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    facts = results(folder)
    assert facts["metric"] == "eval_reward"
    assert [run["seed"] for run in facts["variants"]["sdpo"]["runs"]] == [0, 1]
    assert facts["variants"]["sdpo"]["runs"][1]["points"][2] == {"step": 2, "seconds": 2.0, "score": 0.14}
    assert facts["variants"]["sdpo"]["best_within"]["2s"]["mean"] == pytest.approx(0.09)
    assert "0.070 ± 0.050" in capsys.readouterr().out


def test_finished_runs_are_not_repeated_and_larger_budgets_go_on(compare):
    assert compare("--seeds", "1", "--budget", "2s")[0] == 0
    status, folder = compare("--seeds", "1", "--budget", "1s,2s")
    assert (status, calls(folder)) == (0, ["recipe 0"])
    assert compare("--seeds", "2", "--budget", "4s")[0] == 0
    assert calls(folder) == ["recipe 0", "recipe 0", "recipe 1"]
    steps = [point["step"] for point in results(folder)["variants"]["recipe"]["runs"][0]["points"]]
    assert steps == [0, 1, 2, 3, 4]


def test_without_a_time_runs_end_with_their_last_step(compare):
    status, folder = compare("--seeds", "1", "--budget", "2steps,6steps")
    assert status == 0
    best = results(folder)["variants"]["recipe"]["best_within"]
    assert (best["2steps"]["mean"], best["6steps"]["mean"]) == (0.06, 0.18)
    assert compare("--seeds", "1", "--budget", "2steps,6steps")[0] == 0
    assert calls(folder) == ["recipe 0"]


def test_a_run_that_fails_is_named_and_the_others_go_on(compare, capsys):
    _, folder = compare("--seeds", "1", "--budget", "2s")
    (folder / "fail").touch()
    status, _ = compare("--seeds", "2", "--budget", "2s,6s")
    assert status == 1
    printed = capsys.readouterr().out
    assert "Not finished: recipe, seed 0: it ended with status 1" in printed
    assert "out of memory" in printed
    best = results(folder)["variants"]["recipe"]["best_within"]
    assert best["2s"] == {"mean": pytest.approx(0.11), "standard_error": pytest.approx(0.05), "num_seeds": 2}
    assert best["6s"] is None
    assert "not yet" in (folder / "table.md").read_text()
    (folder / "fail").unlink()
    assert compare("--seeds", "2", "--budget", "2s,6s")[0] == 0
    assert results(folder)["variants"]["recipe"]["best_within"]["6s"]["num_seeds"] == 2


def test_steps_and_scores_are_told_while_a_run_is_made(tmp_path, monkeypatch):
    """The run logs an evaluation, waits to be seen, logs the next one, and ends."""
    monkeypatch.setattr(processes, "LOOK_SECONDS", 0.05)
    job = Job("grpo", 3, tmp_path, (), "")
    code = """
import json, pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
def log(step, **logs):
    with (folder / "log.jsonl").open("a") as file:
        file.write(json.dumps({"step": step, "logs": logs}) + chr(10))
log(1, reward=0.5)
log(2, **{"eval_avg@4": 0.25, "training_seconds": 90.0})
while not (folder / "seen").exists():
    time.sleep(0.02)
log(4, **{"eval_avg@4": 0.5, "training_seconds": 200.0})
log(5, reward=0.5)
"""
    printed = []

    def prints(text, **options):
        if isinstance(text, str):
            printed.append(text)
            (tmp_path / "seen").touch()

    console = Console(file=io.StringIO())
    monkeypatch.setattr(console, "print", prints)
    progress = RunProgress(console, None)
    live = []
    with progress.shown():
        monkeypatch.setattr(progress._status, "update", live.append)
        process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
        assert processes._followed(process, job, progress) == 0
    assert printed == [
        "grpo, seed 3: step 2, 90 s of training, eval_avg@4 0.250",
        "grpo, seed 3: step 4, 3.33 min of training, eval_avg@4 0.500",
    ]
    assert "grpo, seed 3: step 2" in live
    assert live[-1] == "Training"


def test_a_run_that_lives_elsewhere_is_left_alone(compare, capsys):
    _, folder = compare("--seeds", "1", "--budget", "1s")
    with (folder / "runs" / "recipe" / "seed-0" / "lock").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        status, _ = compare("--seeds", "1", "--budget", "2s")
    assert status == 1
    assert "another process is making it" in capsys.readouterr().out
    assert calls(folder) == ["recipe 0"]
    assert compare("--seeds", "1", "--budget", "2s")[0] == 0


def test_killed_comparison_ends_its_runs_and_goes_on(config, fake_trainer, compare, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "hang").touch()
    words = ["compare", str(config), "--seeds", "2", "--budget", "6steps", "--launch", fake_trainer]
    with subprocess.Popen(
        [sys.executable, "-m", "srpo_trl.cli", *words, "--output_dir", str(folder)], stdout=subprocess.DEVNULL
    ) as process:
        wait_until((folder / "pid").exists)
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 128 + signal.SIGTERM
    trainer = int((folder / "pid").read_text())
    wait_until(lambda: not is_alive(trainer))
    (folder / "hang").unlink()
    assert compare("--seeds", "2", "--budget", "6steps")[0] == 0
    assert calls(folder) == ["recipe 0", "recipe 0", "recipe 1"]
    points = results(folder)["variants"]["recipe"]["runs"][0]["points"]
    assert [point["score"] for point in points] == [0.0, 0.03, 0.06, 0.09, 0.12, 0.15, 0.18]


def wait_until(condition) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_table_of_what_there_is_starts_nothing(compare):
    assert compare("--seeds", "1", "--budget", "2s")[0] == 0
    status, folder = compare("--seeds", "2", "--budget", "2s,4s", "--table_only")
    assert (status, calls(folder)) == (0, ["recipe 0"])
    best = results(folder)["variants"]["recipe"]["best_within"]
    assert (best["2s"]["mean"], best["4s"]) == (0.06, None)


def test_every_method_is_comparable_and_controls_are_compared_with_all():
    assert set(COMPARABLE) == {*METHODS, *VARIANTS}
    assert all(COMPARABLE[name] == options for name, options in VARIANTS.items())
    assert COMPARABLE["paced"] == {"method": "paced"}
    assert set(CONTROLS) <= set(METHODS) - set(VARIANTS)


def test_jobs_run_at_a_time(compare):
    status, folder = compare("--variants", "all", "--seeds", "1", "--budget", "1s", "--jobs", "3")
    assert status == 0
    assert sorted(calls(folder)) == sorted(f"{name} 0" for name in (*VARIANTS, *CONTROLS))


def test_metric_by_name(compare, capsys):
    assert compare("--seeds", "1", "--budget", "1s", "--metric", "eval_avg@16")[0] == 2
    assert "metric 'eval_avg@16' is in no evaluation, which have eval_reward" in capsys.readouterr().err
    assert compare("--seeds", "1", "--budget", "1s", "--metric", "eval_reward")[0] == 0


def test_nothing_evaluated_yet(compare, tmp_path, capsys):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "fail").touch()
    (folder / "from_the_start").touch()
    assert compare("--seeds", "1", "--budget", "1s")[0] == 1
    assert "No run has been evaluated yet." in capsys.readouterr().out


# ---------------------------------------------------------------- refusals


def test_all_problems_come_in_one_message(compare, config, capsys):
    status, folder = compare(
        *("--seeds", "0", "--jobs", "x", "--budget", "1h,soon", "--variants", "ppo", "grpo"),
        configs=(config, config.with_name("nowhere.yaml")),
        after=("--seed", "3", "--entropy_weight_beta", "-1", "--max_stepz", "4"),
    )
    assert status == 2
    message = capsys.readouterr().err
    for part in (
        "--seeds 0 must be a whole number of at least 1",
        "--jobs x must be",
        "--budget 1h,soon: 'soon' is not a duration. Give a number above 0 with its unit",
        "nowhere.yaml is not a file",
        "--variants 'ppo' must be 'all' or among grpo,",
        "--seed cannot follow `--`",
        "entropy_weight_beta=-1.0",
        "max_stepz is not an option",
    ):
        assert part in message, part
    assert message.count("max_stepz") == 1  # once for all variants
    assert not folder.exists()


def test_problems_of_the_data_and_of_the_comparison_come_together(compare, config, capsys):
    values = {"dataset_name": str(config.with_name("nowhere")), "eval_strategy": "no"}
    config.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | values))
    assert compare("--budget", "4steps")[0] == 2
    message = capsys.readouterr().err
    assert "nowhere" in message
    assert message.count("eval_strategy 'no' gives no scores") == 1


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"eval_strategy": "no"}, "eval_strategy 'no' gives no scores"),
        ({"save_strategy": "no"}, "save_strategy"),
        ({"max_steps": 3}, "max_steps=3 ends before the budget of 4steps"),
        ({"max_steps": "many"}, "max_steps='many' must be a whole number."),
    ],
)
def test_what_cannot_be_compared(compare, config, capsys, values, expected):
    config.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | values))
    status, folder = compare("--budget", "4steps")
    assert status == 2
    assert expected in capsys.readouterr().err
    assert not folder.exists()


@pytest.mark.parametrize(
    "values",
    [
        {"model_name_or_path": "."},
        {"max_eval_rows": 2},
        {"num_generations_eval": 4},
        {"eval_temperature": 0.5},
    ],
    ids=lambda values: next(iter(values)),
)
def test_variants_from_different_starts_are_refused(compare, config, capsys, values):
    other = config.with_name("other.yaml")
    other.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | values))
    assert compare(configs=(config, other))[0] == 2
    (name,) = values
    assert f"{name} must be the same in all variants" in capsys.readouterr().err


def test_runs_of_other_options_are_not_mixed_in(compare, config, capsys):
    assert compare("--seeds", "1", "--budget", "1s")[0] == 0
    config.write_text(config.read_text() + "learning_rate: 1.0e-3\n")
    assert compare("--seeds", "1", "--budget", "1s")[0] == 2
    assert "was begun with other values of learning_rate" in capsys.readouterr().err


# ---------------------------------------------------------------- the real thing, in small


@pytest.mark.slow
def test_two_tiny_variants_are_trained_and_compared(tmp_path):
    model, tokenizer = build_model(build_tokenizer()), build_tokenizer()
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        questions = sample_questions(8, seed=0, held_out=split == "test")
        prompt_dataset(questions).to_json(tmp_path / "data" / f"{split}.jsonl")
    words = [str(REPOSITORY / "benchmarks" / "learning.yaml"), "--variants", "grpo", "srpo", "--seeds", "1"]
    words += ["--budget", "1steps,2steps", "--output_dir", str(tmp_path / "out"), "--"]
    words += ["--model_name_or_path", str(tmp_path / "model"), "--dataset_name", str(tmp_path / "data")]
    words += ["--max_steps", "2", "--eval_steps", "1", "--logging_steps", "1", "--num_generations", "4"]
    words += ["--per_device_train_batch_size", "8", "--per_device_eval_batch_size", "8"]
    assert main(["compare", *words]) == 0
    facts = results(tmp_path / "out")
    for variant in ("grpo", "srpo"):
        (run,) = facts["variants"][variant]["runs"]
        assert run["is_finished"]
        assert [point["step"] for point in run["points"]] == [0, 1, 2]
        seconds = [point["seconds"] for point in run["points"]]
        assert seconds[0] == 0 < seconds[1] < seconds[2]
    assert facts["variants"]["srpo"]["options"] == {"method": "srpo", "entropy_weight_beta": 1.0}
