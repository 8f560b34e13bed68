"""The study of every method: each has a row or a reason, is given what it needs, and tables of made results."""

import dataclasses
import inspect
import math
import re
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(
    0, str(Path(__file__).resolve().parents[2])
)  # benchmarks are no part of the installed package

from benchmarks.family import __main__ as command
from benchmarks.family import given, models, report, rollouts, rows
from benchmarks.learning import run, tasks
from benchmarks.learning.report import NOTHING
from benchmarks.learning.results import Study
from benchmarks.learning.rows import ROWS

from srpo_trl.commands.quickstart.prompts import student_prompts, teacher_prompts
from srpo_trl.commands.quickstart.warmup import WarmupRecipe, WarmupResult, save_start
from srpo_trl.data.tiny_model import build_model, build_tokenizer
from srpo_trl.methods import METHODS

ROOT = Path(__file__).resolve().parents[2]
GROUP_OF = {name: group for group, methods in rows.GIVEN.items() for name in methods}
TRAINED = command.trained()
TOKENIZER = build_tokenizer(rows.TASK.words)
QUIZ = rows.TASK.questions(1, seed=1)[0]


def options_of(method, start=0):
    return given.options(Path("study"), method, start)


# --- rows


def test_every_method_has_a_row_or_a_reason():
    assert sorted(GROUP_OF) == sorted(METHODS)
    assert sum(map(len, rows.GIVEN.values())) == len(METHODS)
    assert set(TRAINED) | set(rows.LEFT_OUT) == set(METHODS)
    assert not set(TRAINED) & set(rows.LEFT_OUT)


def test_groups_are_those_of_the_methods_page():
    page = (ROOT / "docs/methods.md").read_text(encoding="utf-8")
    parts = re.split(r"^### (.*)$", page, flags=re.MULTILINE)
    written = dict(zip(parts[1::2], parts[2::2], strict=True))
    for group, methods in rows.GIVEN.items():
        table = [line.split("|")[1] for line in written[group].splitlines() if line.startswith("| `")]
        assert set(re.findall(r"`(\w+)`", " ".join(table))) - {"method"} == set(methods)


def test_methods_without_a_run_are_what_their_reason_says():
    assert rows.own_options("pi_distill") == rows.own_options("opsd") | {"method": "pi_distill"}
    tokens_of_a_rollout = len(TOKENIZER(QUIZ.shown)["input_ids"]) + 1
    tokens_of_a_step = rows.TASK.prompts_per_step * run.NUM_GENERATIONS * tokens_of_a_rollout
    assert tokens_of_a_step == 2112
    assert int(rows.own_options("clip_cov")["method_options"]["share"] * tokens_of_a_step) == 0
    for method in rows.LEFT_OUT:
        assert re.search(r"`(\w+)`", rows.LEFT_OUT[method])[1] in TRAINED


@pytest.mark.parametrize("method", [name for name in TRAINED if name not in rows.STUDIED])
def test_every_row_has_a_configuration(method, tmp_path):
    made = run.config(given.run_of(method, 0), tmp_path, options_of(method))
    assert made.method == method
    assert (made.learning_rate, made.max_steps) == (5e-4, 60)
    for name, value in (rows.own_options(method).get("method_options") or {}).items():
        assert made.method_options[name] == value


def test_rows_of_the_learning_study_are_the_methods():
    assert ROWS[rows.STUDIED["srpo_unweighted"]] == {"method": "srpo", "entropy_weight_beta": 0.0}
    for method in sorted(rows.STUDIED.keys() - {"srpo_unweighted"}):
        assert ROWS[rows.STUDIED[method]].keys() <= {"method", "entropy_weight_beta"}
        assert ROWS[rows.STUDIED[method]]["method"] == method
        parameters = inspect.signature(METHODS[method].factory).parameters
        for name, value in rows.own_options(method).get("method_options", {}).items():
            assert parameters[name].default == value  # the study's row has the recipe's


def test_steps_of_a_recipe_keep_their_share_of_the_run():
    found = {
        name: rows.own_options(name)["method_options"]
        for name in ("paced", "sdpo_then_grpo", "opd_then_rl", "kdrl")
    }
    assert found["paced"]["reverse_from_step"] == 30  # 150 of 300
    assert found["sdpo_then_grpo"]["at_step"] == 10
    assert found["opd_then_rl"]["at_step"] == 12
    assert found["kdrl"]["decay_steps"] == 16
    assert found["kdrl"]["beta"] == 5e-3


def test_recipes_give_the_methods_options_and_none_of_a_run():
    assert rows.own_options("opsd_zhao") == {
        "method": "opsd_zhao",
        "method_options": {"alpha": 0.5},
        "teacher_model_kind": "base",
        "teacher_context": ["reference"],
        "reference_column": "solution",
    }
    assert rows.own_options("srpo_stable")["teacher_update_interval"] == 10


# --- what methods are given


def test_external_teachers_are_what_the_table_says():
    teachers = [str(models.model_folder(Path("study"), "teacher", number)) for number in models.TEACHERS]
    assert options_of("opd")["teacher_model"] == {"teacher": teachers[0]}
    assert options_of("mad_opd")["teacher_model"] == {"first": teachers[0], "second": teachers[1]}
    assert options_of("erpd", start=2)["teacher_model"]["teacher"].endswith("first-stage-2")
    assert options_of("salsa", start=1)["teacher_model"]["teacher"].endswith("average-1")
    assert "teacher_model" not in options_of("tip")
    with_teacher = {name for name in TRAINED if "teacher_model" in options_of(name)}
    assert with_teacher == {*rows.GIVEN["The teacher is another model"]} - {"lightning", *rows.LEFT_OUT}


def test_columns_are_what_the_warm_up_has_taught_to_read():
    questions = rows.TASK.questions(3, seed=2)
    for method, name in (("skill_sd", "skill"), ("trace", "label"), ("selfci", "utility")):
        texts = rows.columns(method)(questions)[name]
        chats = [[{"role": "user", "content": text}] for text in texts]
        prompts = TOKENIZER.apply_chat_template(chats, add_generation_prompt=True, tokenize=False)
        assert TOKENIZER(prompts, add_special_tokens=False)["input_ids"] == teacher_prompts(
            TOKENIZER, questions
        )
    assert all(
        question.shown in text
        for question, text in zip(questions, rows.columns("selfci")(questions)["privacy"], strict=True)
    )
    assert rows.columns("hdpo")(questions)["solution"] == [question.demonstration for question in questions]
    assert rows.columns("opd")(questions) == {}


def test_feedback_names_the_wrong_products_in_known_words():
    texts = ["so 08;well 15;", "so 09;well 15;", "08;", "", "so 08;well 15;now 15;"]
    made = rows.feedback(["4*2;5*3"] * 5, texts, ["08;15;"] * 5)["feedback"]
    assert made == ["", "4*2 is wrong.", "5*3 is wrong.", "4*2 is wrong.5*3 is wrong.", "No answer."]
    assert TOKENIZER.unk_token_id not in TOKENIZER("".join(made))["input_ids"]


def test_spans_are_the_digits():
    assert rows.digit_spans("so 08;well 15;") == [(1, 3), (5, 7)]
    assert rows.digit_spans("so ;7") == [(2, 3)]
    ids = TOKENIZER(QUIZ.demonstration)["input_ids"]
    spans = rows.spans_of_digits([""], [QUIZ.demonstration], [""])["spans"][0]
    assert "".join(TOKENIZER.decode(ids[first:end]) for first, end in spans) == QUIZ.answer.replace(";", "")


def test_teachers_learn_from_a_textbook_without_mistakes(tmp_path, monkeypatch):
    seen = []

    def warm_up(tokenizer, recipe, questions):
        seen.extend(questions)
        return build_model(tokenizer), WarmupResult(0, 0.0)

    monkeypatch.setattr(models, "warm_up", warm_up)
    monkeypatch.setattr(models, "QUIZ_WARMUP", WarmupRecipe(num_steps=2, batch_size=24))
    models.teacher(tmp_path, 100, TOKENIZER)
    assert len(seen) == 48
    assert all(rows.TASK.is_right(question.alone, question.answer) for question in seen)
    assert all(rows.TASK.is_right(question.shown, question.answer) for question in seen)


def test_the_average_is_that_of_two_models_from_one_start(tmp_path, monkeypatch):
    start = build_model(TOKENIZER)
    folder = run.start_folder(tmp_path, "quiz8w", 0)
    folder.parent.mkdir()
    save_start(folder, start, TOKENIZER, WarmupResult(0, 0.0))

    def moved(model, tokenizer, seed):
        with torch.no_grad():
            model.model.norm.weight.add_({200: 1.0, 201: 3.0}[seed])
        return model

    monkeypatch.setattr(models, "_trained_on", moved)
    made, _ = models.average(tmp_path, 0, TOKENIZER)
    torch.testing.assert_close(made.model.norm.weight, start.model.norm.weight + 2.0)
    torch.testing.assert_close(made.lm_head.weight, start.lm_head.weight)


def test_stored_rollouts_are_groups_with_log_probabilities():
    questions, model = rows.TASK.questions(2, seed=3), build_model(TOKENIZER)
    made = rollouts.stored(model, TOKENIZER, questions, seed=0)
    assert len(made) == 2 * run.NUM_GENERATIONS
    assert made[0]["prompt"] == made[7]["prompt"] == [{"role": "user", "content": questions[0].prompt}]
    assert made[8]["prompt_ids"] == student_prompts(TOKENIZER, questions)[1]
    ids, end = made[0]["completion_ids"], TOKENIZER.eos_token_id
    assert len(made[0]["teacher_logps"]) == len(ids)
    assert end not in ids[:-1]
    with torch.no_grad():
        logits = model(torch.tensor([made[0]["prompt_ids"] + ids])).logits[0, -len(ids) - 1 : -1]
    expected = logits.log_softmax(-1)[range(len(ids)), ids]
    torch.testing.assert_close(torch.tensor(made[0]["teacher_logps"]), expected, rtol=1e-4, atol=1e-4)


def test_mastered_are_groups_with_seven_right_of_eight():
    questions = rows.TASK.questions(2, seed=3)
    right = [TOKENIZER(question.demonstration)["input_ids"] for question in questions]
    made = [
        {"number": (place, number), "completion_ids": right[place] if number < count else right[1 - place]}
        for place, count in ((0, 6), (1, 7))
        for number in range(8)
    ]
    kept = rollouts.mastered(made, TOKENIZER, questions)
    assert [row["number"] for row in kept] == [(1, number) for number in range(8)]


# --- runs


def test_the_study_rows_come_last_and_runs_are_made_once(tmp_path, monkeypatch):
    assert TRAINED[-len(rows.STUDIED) :] == [name for name in METHODS if name in rows.STUDIED]
    made = []
    monkeypatch.setattr(given, "do", lambda each, study: made.append(each.row))
    monkeypatch.setattr(given, "train", lambda each, study, what: made.append(each.row))
    write(tmp_path, "paced", 0, (0.1, 0.2, 0.3))
    for method in ("srpo_unweighted", "paced", "tip"):
        given.do_method(tmp_path, method, 0)
    assert made == ["srpo_beta0", "tip"]


@pytest.mark.parametrize("method", ["trace", "dph_rl"])
def test_a_method_trains_with_what_it_is_given(method, tmp_path, monkeypatch):
    small = dataclasses.replace(rows.TASK, num_steps=1, prompts_per_step=2)
    monkeypatch.setitem(tasks.TASKS, "quiz8w", small)
    for name, value in (("HELD_OUT_QUESTIONS", 4), ("PASS_QUESTIONS", 2), ("EVAL_STEPS", 1)):
        monkeypatch.setattr(run, name, value)
    folder = run.start_folder(tmp_path, "quiz8w", 0)
    folder.parent.mkdir()
    save_start(folder, build_model(TOKENIZER), TOKENIZER, WarmupResult(0, 0.0))
    asked = []
    monkeypatch.setattr(
        given, "sampled", lambda prompts, trainer: asked.append(len(prompts)) or rollouts_of(prompts)
    )
    given.do_method(tmp_path, method, 0)
    (made,) = Study(tmp_path).runs("quiz8w", method).values()
    assert made.steps == [0, 1]
    # Nothing is mastered by an untrained model: 2 groups of 8 are sampled for, besides two evaluations of 4.
    assert sorted(asked) == ([4, 4, 16] if method == "dph_rl" else [])


def rollouts_of(prompts):
    texts = TOKENIZER.apply_chat_template(prompts, add_generation_prompt=True, tokenize=False)
    ids = TOKENIZER(texts, add_special_tokens=False)["input_ids"]
    return {
        "prompt_ids": ids,
        "completion_ids": [[6, 7, TOKENIZER.eos_token_id]] * len(ids),
        "logprobs": None,
    }


# --- tables


def write(study, row, seed, scores, seconds=10.0):
    """A result as a run writes it, evaluated every 10 steps."""
    each = run.Run("quiz8w", row, 5e-4, start=seed, seed=seed)
    points = [(10 * place, score) for place, score in enumerate(scores)]
    facts = {**dataclasses.asdict(each), "points": points, "seconds": seconds}
    run._write(each.folder(study) / run.RESULT_FILE, facts)


def test_the_table_of_made_results(tmp_path, capsys):
    for seed, end in ((0, 0.5), (1, 0.7)):
        write(tmp_path, "grpo", seed, (0.1, 0.2, 0.3, end))
        write(tmp_path, rows.FIRST_STAGE, seed, (0.1, 0.2, 0.3, end), seconds=20.0)
    for seed, end in ((0, 0.6), (1, 0.9), (2, 0.9)):
        write(tmp_path, "paced", seed, (0.1, 0.3, 0.6, end), seconds=30.0)
    write(tmp_path, "paced", 3, (0.1, 0.1, 0.1, 0.1))  # a seed that not all methods have
    table = report.scores(Study(tmp_path), ["grpo", "paced", "tip"])
    found = {line[0]: dict(zip(table[0], line, strict=True)) for line in table[1:]}
    paced = found["`paced`"]
    assert (paced["seeds"], paced["given"]) == ("3", "sibling")
    assert paced["20 steps"] == "0.600 ± 0.000"
    # Ends 0.6, 0.9, 0.9: mean 0.8, deviation sqrt(0.06 / 2); curves 0.5, 0.6, 0.6.
    assert paced["end"] == f"0.800 ± {math.sqrt(0.03 / 3):.3f}"
    assert paced["mean"] == f"0.567 ± {1 / 30:.3f}"
    # Seed by seed 0.6 - 0.5 and 0.9 - 0.7; the third seed has no pair.
    assert paced["end - GRPO"] == "+0.150 ± 0.050"
    assert paced["seconds"] == "1.50"  # of the GRPO run of the same batch, not of the study's
    # Curves: 0.5 - 1/3 and 0.6 - 0.4.
    assert paced["mean - GRPO"] == f"+{11 / 60:.3f} ± {1 / 60:.3f}"
    assert found["`grpo`"]["end - GRPO"] == ""
    assert found["`grpo`"]["seconds"] == "1.00"
    assert found["`tip`"]["end"] == NOTHING
    run._write(
        models.model_folder(tmp_path, "teacher", 100) / run.RESULT_FILE, {"alone": 0.95, "shown": 0.975}
    )
    assert report.models(Study(tmp_path))[1:] == [["teacher-100", "0.950", "0.975"]]
    report.report(tmp_path)
    printed = capsys.readouterr().out
    assert printed.strip() == (tmp_path / "methods.md").read_text().strip()
    assert all(printed.count(f"`{name}`") >= 1 for name in METHODS)


def test_the_page_has_every_method():
    page = (ROOT / "benchmarks/METHODS.md").read_text(encoding="utf-8")
    assert [name for name in METHODS if f"`{name}`" not in page] == []
