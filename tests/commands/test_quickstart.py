"""The quickstart: tokenizer, task, warm-up, measuring, report, and a miniature run from end to end."""

import dataclasses
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from srpo_trl.commands.quickstart import held_out
from srpo_trl.commands.quickstart.held_out import HeldOut, sample_completions
from srpo_trl.commands.quickstart.prompts import TEMPLATES, student_prompts, teacher_prompts
from srpo_trl.commands.quickstart.quiet import ENVIRONMENT
from srpo_trl.commands.quickstart.run import quickstart as run_quickstart
from srpo_trl.commands.quickstart.task import (
    SOLUTION_TOKENS,
    Question,
    addition_reward,
    feedback_text,
    is_held_out,
    is_right,
    sample_questions,
)
from srpo_trl.commands.quickstart.train import TrainingRecipe
from srpo_trl.commands.quickstart.warmup import WarmupRecipe, load_start, save_start, solution_loss, warm_up
from srpo_trl.data.tiny_model import build_model, build_tokenizer
from srpo_trl.teacher.templates import TeacherInformation

QUESTION = Question(6045, 3496)
SOLUTION = "5+6=11;4+9=14;0+4=05;6+3=09;#09541"
TEACHER_PROMPT = (
    "<|user|>6045+3496\nCorrect solution:\n\n5+6=11;4+9=14;0+4=05;6+3=09;#09541\n\n"
    "Correctly solve the original question.<|end|><|assistant|>"
)
TINY_WARMUP = WarmupRecipe(
    batch_size=6, teacher_rows=2, max_steps=3, first_check=2, check_every=2, check_questions=4
)


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


# ---------------------------------------------------------------- tokenizer and model


def test_every_sequence_of_ordinary_tokens_survives_text(tokenizer):
    ordinary = sorted(set(range(len(tokenizer))) - set(tokenizer.all_special_ids))
    pairs = [[a, b] for a in ordinary for b in ordinary]
    generator = random.Random(0)
    sequences = pairs + [generator.choices(ordinary, k=40) for _ in range(200)]
    texts = [tokenizer.decode(ids) for ids in sequences]
    assert tokenizer(texts)["input_ids"] == sequences


def test_whole_teacher_vocabulary_is_known_and_comes_back_exactly(tokenizer):
    feedback = [feedback_text("", "09541"), feedback_text("#1", "09541")]
    texts = [TEMPLATES.user_turn(QUESTION.prompt, TeacherInformation(SOLUTION, text)) for text in feedback]
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text
    assert tokenizer.unk_token_id in tokenizer("Hello")["input_ids"]


def test_extra_tokens_are_single_tokens():
    ids = build_tokenizer(extra_tokens=["<think>", "Hello"])("1<think>Hello")["input_ids"]
    assert len(ids) == 3


def test_padding_is_left_and_apart_from_the_end(tokenizer):
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert tokenizer.eos_token == "<|end|>"
    padded = tokenizer(["1", "1+2"], padding=True)["input_ids"]
    assert padded[0][:2] == [tokenizer.pad_token_id] * 2


def test_prompts_are_those_of_the_chat_template_and_the_papers_reprompt(tokenizer):
    assert (
        tokenizer.decode(student_prompts(tokenizer, [QUESTION])[0]) == "<|user|>6045+3496<|end|><|assistant|>"
    )
    assert tokenizer.decode(teacher_prompts(tokenizer, [QUESTION])[0]) == TEACHER_PROMPT


def test_model_is_small_seeded_and_leaves_the_random_state_alone(tokenizer):
    before = torch.get_rng_state()
    first, same, other = (build_model(tokenizer, seed) for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert 1.5e5 < first.num_parameters() < 2.5e5
    weights = [model.lm_head.weight for model in (first, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_model_and_tokenizer_load_again(tokenizer, tmp_path):
    model = build_model(tokenizer, seed=3)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    loaded_tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    prompts = torch.tensor(teacher_prompts(tokenizer, [QUESTION]))
    assert teacher_prompts(loaded_tokenizer, [QUESTION]) == prompts.tolist()
    assert loaded_tokenizer.decode(prompts[0]) == TEACHER_PROMPT
    assert torch.equal(loaded(prompts).logits, model(prompts).logits)


# ---------------------------------------------------------------- task


def test_worked_solution_is_written_as_documented(tokenizer):
    assert QUESTION.prompt == "6045+3496"
    assert QUESTION.solution == SOLUTION
    assert QUESTION.answer == "09541"
    assert Question(7, 9995).solution == "7+5=12;0+9=10;0+9=10;0+9=10;#10002"


def test_columns_may_be_written_in_four_forms(tokenizer):
    question = dataclasses.replace(QUESTION, solution_forms=(0, 1, 2, 3), demonstration_forms=(3, 2, 1, 0))
    assert question.solution == "5+6=11;9+4=14;05=0+4;09=3+6;#09541"
    assert question.demonstration == "11=6+5;14=4+9;4+0=05;6+3=09;#09541"
    assert question.demonstration in tokenizer.decode(teacher_prompts(tokenizer, [question])[0])
    assert QUESTION.demonstration == SOLUTION
    for question in sample_questions(50, seed=1, num_forms=4):
        for text in (question.solution, question.demonstration):
            assert is_right(text, question.answer)
            assert len(tokenizer(text)["input_ids"]) + 1 == SOLUTION_TOKENS


def test_forms_are_drawn_evenly_and_leave_the_demonstration_no_clue():
    questions = sample_questions(2000, seed=2, num_forms=4)
    solved = [form for question in questions for form in question.solution_forms]
    shown = [form for question in questions for form in question.demonstration_forms]
    assert all(0.22 < solved.count(form) / len(solved) < 0.28 for form in range(4))
    same = sum(a == b for a, b in zip(solved, shown, strict=True)) / len(solved)
    assert 0.22 < same < 0.28
    assert {question.solution_forms for question in sample_questions(50, seed=2)} == {(0, 0, 0, 0)}


@pytest.mark.parametrize("held_out", [False, True])
def test_worked_solutions_verify(tokenizer, held_out):
    for question in sample_questions(200, seed=1, held_out=held_out):
        first, second = question.prompt.split("+")
        *columns, tail = question.solution.split(";")
        carry = 0
        for column, a, b in zip(columns, reversed(first), reversed(second), strict=True):
            assert column == f"{a}+{b}={int(a) + int(b) + carry:02d}"
            carry = int(column[-2])
        assert int(tail.removeprefix("#")) == int(first) + int(second)
        assert is_right(question.solution, question.answer)
        assert len(tokenizer(question.solution)["input_ids"]) + 1 == SOLUTION_TOKENS


def test_held_out_questions_are_never_training_questions():
    training, held_out = sample_questions(500, seed=0), sample_questions(500, seed=0, held_out=True)
    assert not any(map(is_held_out, training))
    assert all(map(is_held_out, held_out))
    assert sample_questions(5, seed=0) == training[:5]
    assert sample_questions(5, seed=1) != training[:5]


@pytest.mark.parametrize(
    ("text", "reward", "feedback"),
    [
        (SOLUTION, 1.0, ""),
        ("#09541", 1.0, ""),
        ("#11111;#09541", 1.0, ""),
        ("5+6=11;#09542", 0.0, "The answer after # is wrong."),
        ("#9541", 0.0, "The answer after # is wrong."),
        ("#09541;", 0.0, "The answer after # is wrong."),
        ("#09541#", 0.0, "The answer after # is wrong."),
        ("09541", 0.0, "No answer after #."),
        ("", 0.0, "No answer after #."),
    ],
)
def test_reward_and_feedback(text, reward, feedback):
    extras: dict[str, list[str]] = {}
    completions = [[{"role": "assistant", "content": text}]]
    assert addition_reward(completions=completions, answer=["09541"], log_extra=extras.__setitem__) == [
        reward
    ]
    assert extras == {"feedback": [feedback]}
    assert addition_reward(completions=completions, answer=["09541"]) == [reward]
    assert "09541" not in feedback


# ---------------------------------------------------------------- measuring


def test_sampling_is_seeded_and_leaves_the_random_state_alone(tokenizer):
    model = build_model(tokenizer)
    prompts = [*student_prompts(tokenizer, [QUESTION] * 3), *teacher_prompts(tokenizer, [QUESTION])]
    before = torch.get_rng_state()
    first, same, other = (sample_completions(model, tokenizer, prompts, seed, 5) for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert len(first) == 4
    assert first == same
    assert first != other


def test_accuracy_is_the_share_of_right_completions(tokenizer, monkeypatch):
    questions = [QUESTION, Question(1, 2), Question(3, 4), Question(5, 6)]
    texts = [SOLUTION, "#00004", "#00007", ""]
    asked = []
    monkeypatch.setattr(held_out, "sample_completions", lambda *args: asked.append(args) or texts)
    measure = HeldOut(tokenizer, questions, seed=3)
    assert measure.accuracy(None) == measure.accuracy(None, shown=True) == 0.5
    assert [args[2:] for args in asked] == [
        (student_prompts(tokenizer, questions), 3),
        (teacher_prompts(tokenizer, questions), 3),
    ]


# ---------------------------------------------------------------- warm-up


def test_solution_loss_is_the_mean_over_the_solutions_tokens(tokenizer):
    model = build_model(tokenizer).double()
    prompts = teacher_prompts(tokenizer, [QUESTION])
    ids = [*prompts[0], *tokenizer(SOLUTION)["input_ids"], tokenizer.eos_token_id]
    log_probabilities = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    targets = range(len(prompts[0]), len(ids))
    expected = -sum(log_probabilities[i - 1, ids[i]] for i in targets) / len(targets)
    assert len(targets) == SOLUTION_TOKENS
    torch.testing.assert_close(solution_loss(model, tokenizer, prompts, [QUESTION]), expected)


def test_warmup_stops_on_measured_accuracy(tokenizer):
    anything_goes = dataclasses.replace(TINY_WARMUP, student_accuracy=0.0)
    _, result = warm_up(tokenizer, anything_goes)
    assert (result.reached, result.num_steps) == (True, TINY_WARMUP.first_check)
    notes = []
    _, result = warm_up(tokenizer, TINY_WARMUP, lambda step, note: notes.append((step, bool(note))))
    assert (result.reached, result.num_steps) == (False, TINY_WARMUP.max_steps)
    assert notes == [(1, False), (2, True), (3, True)]


def test_warmup_learns_both_prompts_and_repeats_exactly(tokenizer):
    recipe = dataclasses.replace(TINY_WARMUP, batch_size=16, teacher_rows=6, max_steps=25, first_check=25)
    questions = sample_questions(32, seed=9, held_out=True)
    fresh = build_model(tokenizer, recipe.seed, initializer_range=recipe.initializer_range)
    (model, _), (again, _) = warm_up(tokenizer, recipe), warm_up(tokenizer, recipe)
    for prompts in (student_prompts(tokenizer, questions), teacher_prompts(tokenizer, questions)):
        before, after = (solution_loss(m, tokenizer, prompts, questions).item() for m in (fresh, model))
        assert after < 0.7 * before
    assert all(map(torch.equal, model.parameters(), again.parameters()))


def test_start_is_kept_under_its_recipe(tokenizer, tmp_path):
    model, result = warm_up(tokenizer, TINY_WARMUP)
    assert load_start(tmp_path / "start") is None
    save_start(tmp_path / "start", model, tokenizer, result)
    loaded = load_start(tmp_path / "start")
    assert loaded is not None
    assert loaded[1] == result
    assert all(map(torch.equal, model.parameters(), loaded[0].parameters()))
    assert [path.name for path in tmp_path.iterdir()] == ["start"]
    key = TINY_WARMUP.key(tokenizer)
    assert key == dataclasses.replace(TINY_WARMUP).key(tokenizer)
    assert key != dataclasses.replace(TINY_WARMUP, seed=1).key(tokenizer)
    assert key != TINY_WARMUP.key(build_tokenizer(extra_tokens=["x"]))


# ---------------------------------------------------------------- the whole run


def test_methods_differ_in_method_and_srpo_alone_has_entropy_weights(tmp_path):
    configs = [TrainingRecipe().config(method, 0, tmp_path).to_dict() for method in ("grpo", "sdpo", "srpo")]
    assert [config.pop("method") for config in configs] == ["grpo", "sdpo", "srpo"]
    assert [config.pop("entropy_weight_beta") for config in configs] == [None, 0.0, 1.0]
    assert configs[0] == configs[1] == configs[2]


@pytest.fixture
def quickstart(tmp_path, monkeypatch) -> Callable[..., Path]:
    """Run the quickstart in small, and give the environment back as it was."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)

    def run(*arguments: str) -> Path:
        common = [
            "--output_dir",
            str(tmp_path),
            "--warmup_steps",
            "2",
            "--eval_questions",
            "4",
            "--eval_every",
            "1",
        ]
        assert run_quickstart([*common, *arguments]) == 0
        return tmp_path

    return run


def test_quickstart_trains_all_methods_from_one_start(quickstart, capsys, tokenizer):
    folder = quickstart("--steps", "2")
    results = json.loads((folder / "results.json").read_text())
    assert list(results["variants"]) == ["grpo", "sdpo", "srpo"]
    for method, variant in results["variants"].items():
        (run,) = variant["runs"]
        assert variant["options"]["method"] == method
        assert [point["step"] for point in run["points"]] == [0, 1, 2]
        assert run["points"][0]["score"] == results["start"]["student_accuracy"]
        seconds = [point["seconds"] for point in run["points"]]
        assert seconds[0] == 0 < seconds[1] < seconds[2]
        assert variant["best_within"]["2steps"]["num_seeds"] == 1
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")

    (start_folder,) = folder.glob("start-*")
    start, _ = load_start(start_folder)
    model = AutoModelForCausalLM.from_pretrained(folder / "srpo-model", dtype=torch.float32)
    assert teacher_prompts(
        AutoTokenizer.from_pretrained(folder / "srpo-model"), [QUESTION]
    ) == teacher_prompts(tokenizer, [QUESTION])
    prompts = torch.tensor(student_prompts(tokenizer, [QUESTION]))
    assert model(prompts).logits.shape == start(prompts).logits.shape

    printed = capsys.readouterr().out
    assert "alone" in printed
    assert "with a right solution shown" in printed
    assert "ended after 2 steps without what it aims at" in " ".join(printed.split())
    assert "seconds a step" in printed


def test_quickstart_keeps_the_start_for_the_next_run(quickstart, capsys):
    folder = quickstart("--steps", "1", "--methods", "grpo")
    (start_folder,) = folder.glob("start-*")
    written = (start_folder / "warmup.json").stat().st_mtime_ns
    quickstart("--steps", "1", "--methods", "grpo", "--seeds", "2")
    assert (start_folder / "warmup.json").stat().st_mtime_ns == written
    assert "Took the start of an earlier run" in capsys.readouterr().out
    variants = json.loads((folder / "results.json").read_text())["variants"]
    assert [run["seed"] for run in variants["grpo"]["runs"]] == [0, 1]
    assert not (folder / "srpo-model").exists()
    quickstart("--steps", "1", "--methods", "grpo", "--fresh")
    assert (start_folder / "warmup.json").stat().st_mtime_ns > written


@pytest.mark.parametrize("arguments", [["--steps", "0"], ["--methods", "ppo"], ["--seeds", "-1"]])
def test_wrong_options_end_the_program(arguments):
    with pytest.raises(SystemExit) as error:
        run_quickstart(arguments)
    assert error.value.code == 2
