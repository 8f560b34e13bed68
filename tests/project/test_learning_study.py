"""The learning study: its tasks, its own methods, which runs there are, and tables of made results."""

import dataclasses
import itertools
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

sys.path.insert(
    0, str(Path(__file__).resolve().parents[2])
)  # benchmarks are no part of the installed package

from benchmarks.learning import __main__ as command
from benchmarks.learning import given, quiz8w, report, results, rollouts, run, supervised, tasks
from benchmarks.learning.add4 import (
    ADD4_TOKENS,
    MeasuredWarmup,
    add4_questions,
    warm_up_to_accuracy,
    written_in,
)
from benchmarks.learning.methods import failed_in_both, with_entropy_bonus, without_forms
from benchmarks.learning.rows import FORMS, LATE, ROWS, SWEPT
from benchmarks.learning.run import Run

from srpo_trl.commands.quickstart.prompts import teacher_prompts
from srpo_trl.commands.quickstart.task import is_right
from srpo_trl.commands.quickstart.warmup import WarmupRecipe
from srpo_trl.data.tiny_model import build_tokenizer
from srpo_trl.evaluation.scores import pass_at_k
from srpo_trl.methods import testing
from srpo_trl.methods.record import Graded, Route

# --- tasks


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


@pytest.mark.parametrize("held_out", [False, True])
def test_quizzes_are_right_where_they_must_be(held_out):
    tokenizer = build_tokenizer(tasks.TASKS["quiz8w"].words)
    quizzes = quiz8w.sample_quizzes(300, seed=1, held_out=held_out)
    right = []
    for quiz in quizzes:
        factors = [[int(digit) for digit in product.split("*")] for product in quiz.prompt.split(";")]
        assert len(factors) == quiz8w.NUM_PRODUCTS
        assert quiz8w.is_held_out(factors) == held_out
        assert quiz.answer == "".join(f"{first * second:02d};" for first, second in factors)
        assert quiz8w.is_right(quiz.demonstration, quiz.answer)
        assert quiz8w.is_right(quiz.shown, quiz.answer)
        right.append(quiz8w.is_right(quiz.alone, quiz.answer))
        expected = np.prod([quiz8w.RIGHT_SHARE[first, second] for first, second in factors])
        assert not right[-1] or expected > 0
        assert tokenizer.unk_token_id not in teacher_prompts(tokenizer, [quiz])[0]
        assert len(tokenizer(quiz.alone)["input_ids"]) == 4 * quiz8w.NUM_PRODUCTS
    # (1/4 (1/4) + 1/4 (9/10) + 1/2)^8 for products drawn evenly; four standard errors of 300.
    share = (0.25 * 0.25 + 0.25 * 0.9 + 0.5) ** 8
    assert abs(sum(right) / 300 - share) < 4 * math.sqrt(share * (1 - share) / 300)


def test_a_quiz_is_right_only_as_a_whole():
    answer = "08;15;"
    assert quiz8w.is_right("so 08;well 15;", answer)
    assert not quiz8w.is_right("so 08;well 16;", answer)
    assert not quiz8w.is_right("so 08;", answer)
    assert not quiz8w.is_right("so 08;well 15;so 15;", answer)


# --- methods


def test_failed_rollouts_are_in_both_branches():
    method = failed_in_both(1.0, policy=0.5, distilled=0.25, decay_steps=10)
    is_correct = torch.tensor([[True, False, False]])
    has_context = torch.tensor([[True, True, False]])
    graded = Graded(is_correct.double(), torch.ones_like(is_correct), is_correct, has_context, 0)
    assert method.route(graded).tolist() == [[Route.POLICY, Route.BOTH, Route.POLICY]]
    tokens = testing.tokens()
    tokens = tokens._replace(route_B=torch.where(tokens.is_correct_B, int(Route.POLICY), int(Route.BOTH)))
    factor_B = torch.where(tokens.is_correct_B, 1.0, 0.5)
    torch.testing.assert_close(method.advantages(tokens), tokens.advantage_B * factor_B, check_dtype=False)
    assert failed_in_both(1.0, advantage=-0.1).advantages(tokens)[~tokens.is_correct_B].unique().tolist() == [
        -0.1
    ]
    assert [method.strength(step) for step in (0, 4, 10, 20)] == [0.25, 0.15, 0.0, 0.0]


def test_the_bonus_is_the_entropys_gradient():
    """Summed over the vocabulary with its probabilities, the pull times grad log pi is bonus times grad H."""
    logits = torch.randn(
        7, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True
    )
    logps = logits.log_softmax(0)
    entropy = -(logps.exp() * logps).sum()
    (wanted,) = torch.autograd.grad(entropy, logits, retain_graph=True)
    every = SimpleNamespace(
        student=SimpleNamespace(logps_BT=logps.detach()[None], entropy_BT=entropy.detach().expand(1, 7)),
        policy_BT=torch.ones(1, 7),
    )
    pull = with_entropy_bonus(1.0, bonus=0.3).pull(every)[0]
    (got,) = torch.autograd.grad((logps.exp().detach() * pull * logps).sum(), logits)
    torch.testing.assert_close(got, 0.3 * wanted)


def test_forms_have_no_weight():
    tokens = testing.tokens()
    weights = without_forms(1.0).raw_weights(tokens)[0]
    others = failed_in_both(1.0).raw_weights(tokens)[0]
    place = torch.arange(weights.shape[1])
    chooses = (place % 7 == 0) & (place < 28)
    assert (weights[:, chooses] == 0).all()
    assert chooses.any()
    torch.testing.assert_close(weights[:, ~chooses], others[:, ~chooses])


# --- runs


def test_every_row_of_every_task_has_a_configuration(tmp_path):
    runs = [each for each in command.equal_runs(list(tasks.TASKS)) if each.seed == 0]
    assert {each.row for each in runs} == set(ROWS)
    for each in runs:
        made = run.config(each, tmp_path, ROWS[each.row])
        assert made.learning_rate == tasks.TASKS[each.task].rate
        assert made.max_steps % run.EVAL_STEPS == 0
        for option, value in ROWS[each.row].items():
            assert getattr(made, option) == value


def test_rates_are_chosen_on_two_seeds_of_rows_that_are_swept():
    chosen = command.choosing_runs(list(tasks.TASKS))
    assert {each.task for each in chosen} == {"slip4s", "quiz8w"}
    assert len({*chosen}) == len(chosen) == 2 * len(SWEPT) * 2 * len(results.CHOOSING_SEEDS)
    assert not {*chosen} & {*command.equal_runs(list(tasks.TASKS))}
    assert all(row in command.rows_of(task) for row in LATE for task in command.LATE_TASKS)
    assert all(row in command.rows_of("add4_forms") for row in FORMS)


def test_pass_at_n_is_the_share_of_subsets():
    for num_right, n in ((0, 2), (1, 2), (3, 2), (5, 4), (6, 6)):
        subsets = [*itertools.combinations([i < num_right for i in range(6)], n)]
        verdicts = [i < num_right for i in range(6)]
        assert pass_at_k(verdicts, n) == pytest.approx(sum(map(any, subsets)) / len(subsets))


@pytest.fixture
def small(monkeypatch) -> tasks.Task:
    """slip4s in the study's own way, in two steps of two questions."""
    small = dataclasses.replace(
        tasks.TASKS["slip4s"],
        start=tasks._of_textbook(tasks.TASKS["slip4s"].questions, WarmupRecipe(num_steps=2, batch_size=24)),
        num_steps=2,
        prompts_per_step=2,
    )
    monkeypatch.setitem(tasks.TASKS, "slip4s", small)
    monkeypatch.setattr(run, "HELD_OUT_QUESTIONS", 4)
    monkeypatch.setattr(run, "PASS_QUESTIONS", 2)
    monkeypatch.setattr(run, "EVAL_STEPS", 1)
    return small


def test_a_run_is_made_once_and_writes_its_result(tmp_path, small):
    run.make_start(tmp_path, "slip4s", 0)
    written = (run.start_folder(tmp_path, "slip4s", 0) / "warmup.json").stat().st_mtime_ns
    run.make_start(tmp_path, "slip4s", 0)
    assert (run.start_folder(tmp_path, "slip4s", 0) / "warmup.json").stat().st_mtime_ns == written
    each = Run("slip4s", "grpo", small.rate, start=0, seed=0)
    assert not each.is_done(tmp_path)
    given.do(each, tmp_path)
    assert each.is_done(tmp_path)
    (made,) = results.Study(tmp_path).runs("slip4s", "grpo").values()
    assert made.steps == [0, 1, 2]
    assert made.facts["rollouts"] == 2 * 2 * run.NUM_GENERATIONS
    assert made.facts["seconds"] > 0
    assert set(made.facts["pass"]) == {"1", "2", "4", "8", "16"}
    assert results.Study(tmp_path).start("slip4s", 0)["num_steps"] == 2


def test_supervised_training_sees_each_question_of_the_other_rows_once(tmp_path, small, monkeypatch):
    run.make_start(tmp_path, "slip4s", 0)
    each = Run("slip4s", "sft", small.rate, start=0, seed=0)
    seen = []
    monkeypatch.setattr(supervised, "EVAL_STEPS", 1)
    monkeypatch.setattr(
        supervised,
        "train_on",
        lambda model, tokenizer, optimizer, rate, rows, num_shown: seen.append((rate, rows, num_shown)),
    )
    given.do(each, tmp_path)
    (made,) = results.Study(tmp_path).runs("slip4s", "sft").values()
    assert made.steps == [0, 1, 2]
    assert len(set(made.scores)) == 1  # nothing was trained
    assert made.facts["rollouts"] == 0
    assert [rate for rate, _, _ in seen] == [small.rate, small.rate / 2]  # linear, to 0
    trained = [question for _, rows, _ in seen for question in rows]
    assert [each.prompt for each in trained] == [each.prompt for each in run.training_questions(each)]
    assert all(is_right(question.alone, question.answer) for question in trained)
    assert {num_shown for _, _, num_shown in seen} == {0}


def test_the_reference_takes_a_place_where_all_rollouts_fail(small, monkeypatch):
    each = Run("slip4s", "grpo_reference", small.rate, start=0, seed=0)
    failed, rescued = run.training_questions(each)[:2]
    (unseen,) = tasks.TASKS["slip4s"].questions(1, seed=3, held_out=True)
    tokenizer = build_tokenizer()
    wrong, right = (tokenizer(text)["input_ids"] for text in ("#", failed.demonstration))
    size = run.NUM_GENERATIONS
    groups = [[wrong] * size, [wrong] * (size - 1) + [tokenizer(rescued.demonstration)["input_ids"]], [wrong]]
    sampled = {"completion_ids": [list(ids) for group in groups for ids in group]}
    monkeypatch.setattr(rollouts, "sampled", lambda prompts, trainer: sampled)
    asked = [
        [{"role": "user", "content": question.prompt}]
        for question, group in zip((failed, rescued, unseen), groups, strict=True)
        for _ in group
    ]
    made = rollouts.with_references(each)(asked, SimpleNamespace(processing_class=tokenizer))[
        "completion_ids"
    ]
    assert made[0] == [*right, tokenizer.eos_token_id]
    assert made[1:] == [ids for group in groups for ids in group][1:]


def test_groups_with_a_reference_train(tmp_path, small, monkeypatch):
    """A model that is never right is rewarded for the right solution of each question."""
    run.make_start(tmp_path, "slip4s", 0)
    each = Run("slip4s", "grpo_reference", small.rate, start=0, seed=0)
    graded = []
    spy = dataclasses.replace(
        small, is_right=lambda text, answer: graded.append(text) or is_right(text, answer)
    )
    monkeypatch.setitem(tasks.TASKS, "slip4s", spy)
    given.do(each, tmp_path)
    (made,) = results.Study(tmp_path).runs("slip4s", "grpo_reference").values()
    assert made.steps == [0, 1, 2]
    references = {question.demonstration for question in run.training_questions(each)}
    assert sum(text in references for text in graded) == len(references) == 4


# --- tables


def write(study, row, seed, scores, rate=5e-4, seconds=10.0):
    """A result of slip4s as a run writes it, evaluated every 10 steps."""
    each = Run("slip4s", row, rate, start=seed, seed=seed)
    facts = {
        **dataclasses.asdict(each),
        "points": [(10 * place, score) for place, score in enumerate(scores)],
        **{"seconds": seconds, "rollouts": 640, "tokens": 9000, "distinct_share": 0.5},
        **{"logged": {"entropy": 0.25}, "pass": {"1": scores[-1], "16": 1.0}},
    }
    run._write(each.folder(study) / run.RESULT_FILE, facts)
    start = {"alone": scores[0], "shown": 0.9 + seed / 1000}
    run._write(run.start_folder(study, "slip4s", seed) / run.RESULT_FILE, start)
    words = {"tokens": ["so ", "1", "+"], "divergence": [0.3, 0.1, 0.0], "weight": [0.2, 1.2, 1.6]}
    (each.folder(study) / "examples.jsonl").write_text(
        "\n".join(map(json.dumps, [{"begin": {"step": 0}}, words])) + "\n"
    )


@pytest.fixture
def study(tmp_path) -> Path:
    for seed, grpo, srpo in ((0, (0.1, 0.4, 0.6), (0.1, 0.5, 0.6)), (1, (0.1, 0.5, 0.7), (0.1, 0.8, 0.7))):
        write(tmp_path, "grpo", seed, grpo)
        write(tmp_path, "srpo", seed, srpo, seconds=12.0)
    write(tmp_path, "grpo", 2, (0.1, 0.9, 0.9))
    for seed in (0, 1):
        write(tmp_path, "srpo", seed, (0.1, 0.1, 0.3), 2.5e-4)
        write(tmp_path, "srpo", seed, (0.1, 0.6 + seed / 5, 0.9), 8e-4)
        write(tmp_path, "grpo", seed, (0.1, 0.5, 0.9), 2.5e-4)
    write(tmp_path, "grpo", 0, (0.1, 0.9, 0.9), 8e-4)
    return tmp_path


def cells(table, row):
    (found,) = (line for line in table if line[0] == row)
    return dict(zip(table[0], found, strict=True))


def test_differences_are_taken_seed_by_seed(study):
    table = report.scores(results.Study(study), "slip4s", ["grpo", "srpo", "sdpo"])
    grpo, srpo = cells(table, "grpo"), cells(table, "srpo")
    # Means of the curves 0.5, 0.6, 0.9: deviation sqrt(0.13 / 3).
    assert grpo["mean of the curve"] == f"0.667 ± {math.sqrt(0.13 / 3 / 3):.3f}"
    assert grpo["seeds"] == "3"
    assert srpo["seeds"] == "2"
    # Seed by seed: 0.55 - 0.5 and 0.75 - 0.6 have mean 0.1 and standard error 0.05; the third seed has no pair.
    assert srpo["Δ mean of the curve"] == "+0.100 ± 0.050"
    assert srpo["Δ end"] == "+0.000 ± 0.000"
    assert cells(table, "sdpo")["end"] == report.NOTHING


def test_each_row_has_the_rate_that_was_best_where_it_was_chosen(study):
    found = results.Study(study)
    assert found.best_rate("slip4s", "srpo") == 8e-4
    assert found.best_rate("slip4s", "grpo") == 2.5e-4  # 8e-4 lacks a seed
    assert found.best_rate("slip4s", "sdpo") == 5e-4  # never tried
    assert cells(report.scores(found, "slip4s", ["srpo"], at_best=True), "srpo")["end"] == "0.900 ± 0.000"
    assert cells(report.rates(found, "slip4s", ["srpo"]), "srpo")["0.0008"] == "0.800 ± 0.050"
    best = command.best_runs(["slip4s"], found)
    assert {each.rate for each in best if each.row == "srpo"} == {8e-4}
    assert len(best) == command.NUM_SEEDS * len(SWEPT)


def test_tables_and_picture_of_what_there_is(study, capsys):
    report.report(study)
    printed = capsys.readouterr().out
    assert printed.strip() == (study / "tables.md").read_text().strip()
    assert "3 starts: right 0.100, 0.100, 0.100 alone, 0.900 to 0.902 with a right solution shown." in printed
    assert (study / "learning.png").read_bytes().startswith(b"\x89PNG")
    # seconds of seeds 0 and 1: 12 for 10
    assert (
        cells(report.answers(results.Study(study), "slip4s", ["srpo"]), "srpo")[
            "processor's seconds, of GRPO's"
        ]
        == "1.20"
    )
    pair = cells(report.pairs(results.Study(study)), "both - grpo")
    assert pair["slip4s, end"] == report.NOTHING
    weights = cells(report.where_weights_act(results.Study(study)), "slip4s")
    # one free token of three; 0.3 of 0.4 nats; 0.06 of 0.18
    assert [weights[name] for name in ("free tokens", "of the divergence", "of the weighted divergence")] == [
        *("0.333", "0.750", "0.333")
    ]
