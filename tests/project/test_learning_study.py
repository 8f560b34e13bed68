"""The learning study's tables: differences seed by seed, unfinished runs left out; its two tasks and its recipe."""

import dataclasses
import json
import math
import sys
from pathlib import Path

import pytest

sys.path.insert(
    0, str(Path(__file__).resolve().parents[2])
)  # benchmarks are no part of the installed package

from benchmarks import learning, learning_report
from benchmarks.add4 import ADD4_TOKENS, MeasuredWarmup, add4_questions, warm_up_to_accuracy, written_in

from srpo_trl.commands.quickstart.prompts import teacher_prompts
from srpo_trl.commands.quickstart.task import HELD_OUT_MODULUS, is_right
from srpo_trl.commands.train import read_arguments
from srpo_trl.data.tiny_model import build_tokenizer


def run(seed, *scores, is_finished=True):
    points = [{"step": 40 * i, "seconds": 10.0 * i, "score": score} for i, score in enumerate(scores)]
    return {"seed": seed, "is_finished": is_finished, "points": points}


@pytest.fixture
def study(tmp_path) -> Path:
    variants = {
        "grpo": {"runs": [run(0, 0.1, 0.4, 0.6), run(1, 0.1, 0.5, 0.7), run(2, 0.1, 0.9, 0.9)]},
        "srpo": {"runs": [run(0, 0.1, 0.5, 0.6), run(1, 0.1, 0.8, 0.7), run(2, 0.1, 0.0, is_finished=False)]},
        "sdpo": {"runs": []},
    }
    (tmp_path / "add4").mkdir()
    (tmp_path / "add4" / "results.json").write_text(json.dumps({"variants": variants}))
    return tmp_path


def test_tables_and_picture(study, capsys):
    learning_report.report(study)
    lines = capsys.readouterr().out.splitlines()
    cells = {line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ") for line in lines if "|" in line}
    # Means of the curves 0.5, 0.6, 0.9 and best 0.6, 0.7, 0.9: deviations sqrt(0.13 / 3), sqrt(0.07 / 3).
    mean, early, best, last = cells["grpo"][3:]
    assert mean == f"0.667 ± {math.sqrt(0.13 / 3 / 3):.3f}"
    assert best == last == f"0.733 ± {math.sqrt(0.07 / 3 / 3):.3f}"
    assert early == f"0.600 ± {math.sqrt(0.07 / 3):.3f}"  # of 0.4, 0.5, 0.9
    assert cells["srpo"][1] == "2"  # the third has not finished
    # Seed by seed: 0.55 - 0.5 and 0.75 - 0.6 have mean 0.1 and standard error 0.05; the third seed has no pair.
    assert cells["srpo - grpo"][1:] == ["2", "+0.100 ± 0.050", "+0.200 ± 0.100", "+0.000 ± 0.000"]
    assert "sdpo" not in cells
    assert (study / "learning.png").read_bytes().startswith(b"\x89PNG")


def test_recipe_is_taken_and_fits_the_task(tmp_path):
    words = ["--config", str(learning.RECIPE), "--model_name_or_path", str(tmp_path), "--dataset_name", "x"]
    _, config, _, problems = read_arguments([*words, "--output_dir", str(tmp_path)])
    assert problems == []
    assert config.max_completion_length == ADD4_TOKENS + 1
    prompts = config.per_device_train_batch_size // config.num_generations
    assert prompts * config.max_steps == learning.TRAIN_QUESTIONS  # one epoch
    assert config.max_steps % config.eval_steps == 0


def test_tasks_are_prepared_once_with_held_out_questions(tmp_path, monkeypatch):
    monkeypatch.setitem(
        learning.WARMUPS, "add4_forms", {"num_forms": 4, "max_steps": 1, "check_questions": 4}
    )
    learning.prepare_task("add4_forms", tmp_path)
    written = (tmp_path / "start" / "warmup.json").stat().st_mtime_ns
    learning.prepare_task("add4_forms", tmp_path)
    assert (tmp_path / "start" / "warmup.json").stat().st_mtime_ns == written
    for split, num_rows in (("train", learning.TRAIN_QUESTIONS), ("test", learning.HELD_OUT_QUESTIONS)):
        rows = [json.loads(line) for line in (tmp_path / "data" / f"{split}.jsonl").read_text().splitlines()]
        assert len(rows) == num_rows
        for row in rows:
            first, second = row["prompt"][0]["content"].split("+")
            assert (int(first + second) % HELD_OUT_MODULUS == 0) == (split == "test")
            assert int(first) + int(second) == int(row["answer"])


def test_plain_addition_is_written_as_documented():
    assert written_in((0, 0, 0, 0), 6045, 3496) == "5+6=11;4+9=14;0+4=05;6+3=09;#09541"
    assert written_in((0, 1, 2, 3), 6045, 3496) == "5+6=11;9+4=14;05=0+4;09=3+6;#09541"
    assert written_in((0, 0, 0, 0), 7, 9995) == "7+5=12;0+9=10;0+9=10;0+9=10;#10002"


@pytest.mark.parametrize("num_forms", [1, 4])
def test_solutions_verify_and_forms_are_drawn_evenly(num_forms):
    tokenizer = build_tokenizer()
    questions = add4_questions(1000, seed=2, num_forms=num_forms)
    starts = []
    for question in questions:
        first, second = question.prompt.split("+")
        assert int(question.answer) == int(first) + int(second)
        assert question.alone == question.shown
        for text in (question.alone, question.demonstration):
            assert is_right(text, question.answer)
        starts += [
            column[:2] == f"{a}+"
            for column, a in zip(question.alone.split(";"), reversed(first), strict=False)
        ]
    assert len(tokenizer(question.alone)["input_ids"]) + 1 == ADD4_TOKENS
    assert tokenizer.decode(teacher_prompts(tokenizer, [question])[0]).count(question.demonstration) == 1
    same = sum(question.alone == question.demonstration for question in questions) / len(questions)
    assert same == 1 if num_forms == 1 else same < 0.02
    assert sum(starts) / len(starts) == 1 if num_forms == 1 else sum(starts) / len(starts) < 0.4


def test_warmup_stops_on_measured_accuracy():
    recipe = MeasuredWarmup(
        batch_size=6, teacher_rows=2, max_steps=3, first_check=2, check_every=2, check_questions=4
    )
    _, result = warm_up_to_accuracy(build_tokenizer(), dataclasses.replace(recipe, student_accuracy=0.0))
    assert result.num_steps == recipe.first_check
    _, result = warm_up_to_accuracy(build_tokenizer(), recipe)
    assert result.num_steps == recipe.max_steps
