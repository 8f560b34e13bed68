"""`srpo-trl compare`: statistics against plain arithmetic, runs that resume and are never repeated, refusals together."""

import json
import math
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
from srpo_trl.compare.plot import common_points
from srpo_trl.compare.scores import (
    Budget,
    Curve,
    Point,
    best_within,
    curve_points,
    estimate,
    metric_of,
    read_budgets,
)
from srpo_trl.compare.variants import VARIANTS
from srpo_trl.training_clock import seconds_of

REPOSITORY = Path(__file__).resolve().parents[1]

# ---------------------------------------------------------------- statistics


def curve(*points: tuple[int, float, float], is_finished: bool = True) -> Curve:
    return Curve(tuple(Point(*point) for point in points), is_finished)


TEN_SECONDS = Budget("10s", 10.0, is_time=True)
TWENTY_STEPS = Budget("20steps", 20, is_time=False)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("1.5h", 5400), ("7", 7), (12.5, 12.5), (" 2h ", 7200)]
)
def test_durations(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "h", "1d", "-1h", "0s", "nan", "inf", "one"])
def test_no_durations(text):
    with pytest.raises(ValueError, match="not a duration above 0"):
        seconds_of(text)


def test_budgets_are_times_or_steps():
    assert read_budgets("1h, 90s,20steps,100 steps") == [
        Budget("1h", 3600.0, is_time=True),
        Budget("90s", 90.0, is_time=True),
        TWENTY_STEPS,
        Budget("100 steps", 100, is_time=False),
    ]
    assert read_budgets("60s,60steps")[0] != read_budgets("60s,60steps")[1]
    for wrong in ("1h,60m", "1h,", "0steps", "steps"):
        with pytest.raises(ValueError):
            read_budgets(wrong)


def test_best_is_the_highest_score_within_the_budget_and_after_the_start():
    run = curve((0, 0.0, 0.9), (10, 5.0, 0.4), (20, 10.0, 0.6), (30, 15.0, 0.8))
    assert best_within(run, TEN_SECONDS) == 0.6  # an evaluation at the very end is within
    assert best_within(run, TWENTY_STEPS) == 0.6
    assert best_within(run, Budget("9s", 9.0, is_time=True)) == 0.4
    assert best_within(run, Budget("1s", 1.0, is_time=True)) is None  # no trained model was evaluated
    falling = curve((0, 0.0, 0.3), (10, 5.0, 0.7), (20, 10.0, 0.2))
    assert best_within(falling, TEN_SECONDS) == 0.7


def test_best_waits_for_a_run_that_has_not_come_so_far():
    points = ((10, 4.0, 0.4), (19, 9.0, 0.6))
    assert best_within(curve(*points, is_finished=False), TEN_SECONDS) is None
    assert best_within(curve(*points, is_finished=False), TWENTY_STEPS) is None
    assert best_within(curve(*points, is_finished=True), TEN_SECONDS) == 0.6
    assert best_within(curve(*points, (20, 11.0, 0.1), is_finished=False), TEN_SECONDS) == 0.6
    assert best_within(Curve((), is_finished=False), TEN_SECONDS) is None


def test_mean_and_standard_error_in_plain_arithmetic():
    scores = [0.5, 0.7, 0.9]
    mean = sum(scores) / 3
    variance = sum((score - mean) ** 2 for score in scores) / 2
    found = estimate(scores)
    assert found is not None
    assert found.mean == pytest.approx(mean)
    assert found.standard_error == pytest.approx(math.sqrt(variance) / math.sqrt(3))
    assert found.num_seeds == 3
    one = estimate([0.5])
    assert one is not None
    assert (one.mean, one.num_seeds) == (0.5, 1)
    assert math.isnan(one.standard_error)
    assert estimate([]) is None


LOG = [
    {"step": 0, "eval_reward": 0.3, "training_seconds": 0.0},
    {"step": 10, "reward": 0.99, "training_seconds": 5.0},
    {"step": 10, "eval_reward": 0.5, "eval_avg@16": 0.25, "training_seconds": 5.0},
    {"step": 10, "eval_reward": 0.8, "eval_avg@16": 0.35, "training_seconds": 5.0},
    {"step": 20, "eval_reward": 0.6, "eval_avg@16": 0.45, "training_seconds": 9.5},
]


def test_points_are_the_evaluations_one_for_each_step():
    assert curve_points(LOG, "eval_reward") == ((0, 0.0, 0.3), (10, 5.0, 0.5), (20, 9.5, 0.6))
    assert curve_points(LOG, "eval_avg@16") == ((10, 5.0, 0.25), (20, 9.5, 0.45))
    assert curve_points(LOG[1:2], "eval_reward") == ()
    with pytest.raises(
        ValueError, match="'eval_accuracy' is in no evaluation, which have eval_avg@16, eval_reward"
    ):
        curve_points(LOG, "eval_accuracy")


def test_the_papers_metric_comes_first():
    assert metric_of(LOG) == "eval_avg@16"
    assert metric_of(LOG[:1]) == metric_of([]) == "eval_reward"


def test_curves_are_averaged_where_every_seed_was_evaluated():
    runs = {
        0: curve((0, 0.0, 0.2), (10, 4.0, 0.4), (20, 8.0, 0.6)),
        1: curve((0, 0.0, 0.4), (20, 12.0, 0.8), (30, 18.0, 0.9)),
    }
    steps, seconds, scores = common_points(runs)
    assert steps.tolist() == [0, 20]
    assert seconds.tolist() == [[0.0, 8.0], [0.0, 12.0]]
    assert scores.tolist() == [[0.2, 0.6], [0.4, 0.8]]


def test_variants_are_the_papers_seven():
    routings = {name: options["routing"] for name, options in VARIANTS.items()}
    assert set(routings.values()) == {"grpo", "sdpo", "srpo", "advantage_mix", "sdpo_failed", "sdpo_correct"}
    assert len(VARIANTS) == 7
    assert VARIANTS["srpo_beta0"] == {"routing": "srpo", "entropy_weight_beta": "0"}


# ---------------------------------------------------------------- runs, made by a trainer that only pretends

FAKE_TRAINER = '''
"""Writes a trainer's checkpoints: a step takes 1 second by its own account; the score is 0.1 a step, by routing."""
import json, os, sys, time
from pathlib import Path

values = dict(zip(sys.argv[2::2], sys.argv[3::2]))
assert sys.argv[1] == "train" and values["--resume_from_checkpoint"] == "auto"
folder = Path(values["--output_dir"])
limit = float(values.get("--max_training_time", "1000s").removesuffix("s"))
scale = {"grpo": 1, "sdpo": 2}.get(values.get("--routing"), 3)
with open(folder.parents[2] / "calls.txt", "a") as file:
    file.write(f"{folder.parent.name} {values['--seed']}\\n")
steps = sorted(int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*"))
log = json.loads((folder / f"checkpoint-{steps[-1]}" / "trainer_state.json").read_text())["log_history"] if steps else []
for step in range(steps[-1] + 1 if steps else 0, 7):
    log.append({"step": step, "eval_reward": scale * step / 100 + int(values["--seed"]) / 10, "training_seconds": float(step)})
    if step == 3 and (folder.parents[2] / "fail").exists():
        sys.exit("out of memory")
    if step == 3 and (folder.parents[2] / "hang").exists():
        (folder.parents[2] / "hanging").touch()
        time.sleep(60)
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
    from harness import build_tiny_model  # noqa: F401

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
