"""The quickstart: tokenizer, task, warm-up, measuring, and a miniature run from end to end."""

import dataclasses
import json
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from srpo_trl.commands.quickstart import held_out
from srpo_trl.commands.quickstart.folder import claimed
from srpo_trl.commands.quickstart.held_out import HeldOut, sample_completions
from srpo_trl.commands.quickstart.prompts import TEMPLATES, student_prompts, teacher_prompts
from srpo_trl.commands.quickstart.quiet import ENVIRONMENT, quiet_libraries
from srpo_trl.commands.quickstart.run import quickstart as run_quickstart
from srpo_trl.commands.quickstart.task import (
    RIGHT_SHARE,
    SLIP,
    SOLUTION_TOKENS,
    WORDS,
    Question,
    addition_reward,
    feedback_text,
    is_held_out,
    is_right,
    sample_questions,
    solution_pieces,
    worked_solution,
)
from srpo_trl.commands.quickstart.train import TrainingRecipe
from srpo_trl.commands.quickstart.warmup import (
    WarmupRecipe,
    WarmupResult,
    load_start,
    save_start,
    solution_loss,
    warm_up,
)
from srpo_trl.data.tiny_model import build_model, build_tokenizer
from srpo_trl.host.run_lock import LOCK_FILE
from srpo_trl.runs.log import LOG_FILE, RunLog
from srpo_trl.runs.read import read_runs
from srpo_trl.teacher.templates import TeacherInformation

SOLUTION = "so fine 5+6=11;well now 4+9=14;so so 0+4=05;here thus 6+3=09;#09541"
QUESTION = Question("6045+3496", "09541", SOLUTION, SOLUTION, SOLUTION)
TEACHER_PROMPT = (
    f"<|user|>6045+3496\nCorrect solution:\n\n{SOLUTION}\n\n"
    "Correctly solve the original question.<|end|><|assistant|>"
)
TINY_WARMUP = WarmupRecipe(batch_size=6, shown_rows=2, num_steps=3)


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(WORDS)


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
    words = solution_words(SOLUTION)
    assert worked_solution(6045, 3496, words) == SOLUTION
    assert worked_solution(7, 9995, words).endswith(";here thus 0+9=10;#10002")
    assert "".join(solution_pieces(SOLUTION)) == SOLUTION
    ids = tokenizer(SOLUTION)["input_ids"]
    assert [tokenizer.decode([token]) for token in ids] == solution_pieces(SOLUTION)


def solution_words(text: str) -> list[str]:
    return [piece for piece in solution_pieces(text) if piece in WORDS]


@pytest.mark.parametrize("held_out", [False, True])
def test_solutions_shown_are_right_and_all_have_one_form(tokenizer, held_out):
    for question in sample_questions(200, seed=1, held_out=held_out):
        first, second = question.prompt.split("+")
        assert int(question.answer) == int(first) + int(second)
        for text in (question.alone, question.demonstration, question.shown):
            assert len(tokenizer(text)["input_ids"]) + 1 == SOLUTION_TOKENS
            assert text == text.strip()  # as the trainer shows it to a teacher
        for text in (question.demonstration, question.shown):
            assert text == worked_solution(int(first), int(second), solution_words(text))
            assert is_right(text, question.answer)


def test_textbook_is_wrong_as_often_as_it_says_always_alike_and_the_answer_repeats_it():
    right: dict[tuple[int, int, int], list[bool]] = {}
    for question in sample_questions(6000, seed=2):
        first, second = map(int, question.prompt.split("+"))
        *columns, written = re.split(";#?", question.alone)
        correct = re.split(";#?", worked_solution(first, second, [""] * 8))[:-1]
        units, carry = [], 0
        for column, expected in zip(columns, correct, strict=True):
            a, b = int(expected[0]), int(expected[2])
            said = int(column[-1])
            right.setdefault((a, b, carry), []).append(said == int(expected[-1]))
            assert (said - int(expected[-1])) % 10 in (0, SLIP[a, b, carry])
            assert column[-2] == expected[-2]  # the carry
            units.append(column[-1])
            carry = int(expected[-2])
        assert written == f"{carry}{''.join(reversed(units))}"
    for share in (0.3, 0.8, 1.0):
        facts = [fact for fact in right if RIGHT_SHARE[fact] == share]
        assert len(facts) > 40  # about a third of the 200
        found = np.concatenate([right[fact] for fact in facts])
        assert abs(found.mean() - share) < 4 * (share * (1 - share) / len(found)) ** 0.5 + 1e-9


def test_words_are_drawn_evenly_and_half_of_them_repeat_the_demonstrations():
    questions = sample_questions(2000, seed=2)
    same = []
    for kind in ("alone", "demonstration", "shown"):
        words = [word for question in questions for word in solution_words(getattr(question, kind))]
        assert all(0.11 < words.count(word) / len(words) < 0.14 for word in WORDS)
        shown = [word for question in questions for word in solution_words(question.demonstration)]
        same.append(np.mean([a == b for a, b in zip(words, shown, strict=True)]))
    assert same[1] == 1
    assert abs(same[0] - 1 / 8) < 0.02
    assert abs(same[2] - (0.5 + 0.5 / 8)) < 0.02


def test_held_out_questions_are_never_training_questions():
    training, held_out = sample_questions(500, seed=0), sample_questions(500, seed=0, held_out=True)
    for questions, expected in ((training, False), (held_out, True)):
        assert {is_held_out(*map(int, question.prompt.split("+"))) for question in questions} == {expected}
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
    questions = [
        dataclasses.replace(QUESTION, answer=answer) for answer in ("09541", "00003", "00007", "00011")
    ]
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
    torch.testing.assert_close(solution_loss(model, tokenizer, prompts, [SOLUTION]), expected)


def test_rate_rises_then_falls_to_nothing():
    recipe = WarmupRecipe()
    rates = [recipe.rate(step) for step in range(1, recipe.num_steps + 1)]
    assert rates[0] == recipe.learning_rate / recipe.ramp_steps
    assert max(rates) == rates[recipe.ramp_steps - 1] == recipe.learning_rate
    assert rates[-1] == 0
    middle = (recipe.ramp_steps + recipe.num_steps) // 2
    assert recipe.rate(middle) == pytest.approx(recipe.learning_rate / 2)


def test_warmup_learns_both_prompts_and_repeats_exactly(tokenizer):
    recipe = WarmupRecipe(batch_size=16, shown_rows=6, num_steps=25)
    questions = sample_questions(32, seed=9, held_out=True)
    fresh = build_model(tokenizer, recipe.seed, initializer_range=recipe.initializer_range)
    steps: list[int] = []
    (model, result), (again, _) = warm_up(tokenizer, recipe, steps.append), warm_up(tokenizer, recipe)
    assert steps == list(range(1, 26))
    assert result.num_steps == 25
    for prompts, solutions in (
        (student_prompts(tokenizer, questions), [question.alone for question in questions]),
        (teacher_prompts(tokenizer, questions), [question.shown for question in questions]),
    ):
        before, after = (solution_loss(m, tokenizer, prompts, solutions).item() for m in (fresh, model))
        assert after < 0.8 * before
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
    assert key != TINY_WARMUP.key(build_tokenizer())


def test_start_is_not_taken_over_by_other_versions_or_another_task(tokenizer, monkeypatch):
    key = TINY_WARMUP.key(tokenizer)
    with monkeypatch.context() as patch:
        patch.setattr("srpo_trl.commands.quickstart.warmup.version", lambda name: "9.9")
        assert TINY_WARMUP.key(tokenizer) != key
    monkeypatch.setattr("srpo_trl.commands.quickstart.task.REPEATED_WORDS", 0.9)
    assert TINY_WARMUP.key(tokenizer) != key


# ---------------------------------------------------------------- the whole run


def test_methods_differ_in_method_weights_and_logged_examples_alone(tmp_path):
    configs = [TrainingRecipe().config(method, 0, tmp_path).to_dict() for method in ("grpo", "sdpo", "srpo")]
    assert [config.pop("method") for config in configs] == ["grpo", "sdpo", "srpo"]
    assert [config.pop("entropy_weight_beta") for config in configs] == [None, 0.0, 1.0]
    assert [config.pop("log_examples_steps") for config in configs] == [None, 10, 10]
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
    for method, history in zip(
        results["variants"], read_runs([folder / name for name in results["variants"]]), strict=True
    ):
        (run,) = results["variants"][method]["runs"]
        assert history.options["method"] == method
        assert [point["step"] for point in run["points"]] == [0, 1, 2]
        assert [point["score"] for point in run["points"]] == history.series("eval_avg@1").values.tolist()
        seconds = [point["seconds"] for point in run["points"]]
        assert seconds[0] == 0 < seconds[1] < seconds[2]
        assert results["variants"][method]["best_within"]["2steps"]["num_seeds"] == 1
        AutoModelForCausalLM.from_pretrained(folder / method)
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    trained = AutoTokenizer.from_pretrained(folder / "srpo")
    assert teacher_prompts(trained, [QUESTION]) == teacher_prompts(tokenizer, [QUESTION])
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert all(f">{method}" in page for method in results["variants"])

    printed = "".join(capsys.readouterr().out.split())  # lines break at the terminal's width
    for expected in (
        "The start is too weak: 0.0% of its answers are right",
        "SRPO, seed 1: 2/2 steps, right 0.000",
        "Accuracy 0.6: GRPO not reached, SDPO not reached, SRPO not reached; 0.8:",
        "After 2 steps: GRPO 0.000, SDPO 0.000, SRPO 0.000 (one seed;",
        "was picked among nine",
        f"{folder / 'report.html'}",
        "srpo-trl train --config",
    ):
        assert expected.replace(" ", "") in printed


def test_quickstart_keeps_the_start_for_the_next_run(quickstart, capsys, monkeypatch):
    monkeypatch.setattr("srpo_trl.commands.report.command.make_report", lambda words: 0)
    folder = quickstart("--steps", "1", "--methods", "grpo")
    (start_folder,) = folder.glob("start-*")
    written = (start_folder / "warmup.json").stat().st_mtime_ns
    quickstart("--steps", "1", "--methods", "grpo", "--seeds", "2")
    assert (start_folder / "warmup.json").stat().st_mtime_ns == written
    assert "Took the start of an earlier run" in capsys.readouterr().out
    variants = json.loads((folder / "results.json").read_text())["variants"]
    assert [run["seed"] for run in variants["grpo"]["runs"]] == [1, 2]
    assert [run.options["seed"] for run in read_runs([folder / "grpo", folder / "grpo-seed2"])] == [1, 2]
    assert not (folder / "srpo").exists()
    quickstart("--steps", "1", "--methods", "grpo", "--fresh")
    assert (start_folder / "warmup.json").stat().st_mtime_ns > written


def test_libraries_have_one_thread_while_it_runs():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with quiet_libraries():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--steps", "0"],
        ["--methods", "ppo"],
        ["--methods", "grpo", "grpo"],
        ["--seeds", "-1"],
        ["--seed", "-3"],
        ["--seed", "99999999999"],
    ],
)
def test_wrong_options_end_the_program(arguments):
    with pytest.raises(SystemExit) as error:
        run_quickstart(arguments)
    assert error.value.code == 2


def test_a_run_stands_for_the_earlier_ones_of_its_folder_and_leaves_the_rest(quickstart, monkeypatch):
    monkeypatch.setattr("srpo_trl.commands.report.command.make_report", lambda words: 0)
    folder = quickstart("--steps", "1", "--methods", "grpo", "sdpo")
    before = (folder / "sdpo" / LOG_FILE).read_bytes()
    (folder / "mine.txt").write_text("kept")
    quickstart("--steps", "2", "--methods", "grpo")
    (run,) = read_runs([folder / "grpo"])
    assert run.num_steps == 2
    assert run.num_earlier_starts == 0
    results = json.loads((folder / "results.json").read_text())["variants"]
    assert [point["step"] for point in results["grpo"]["runs"][0]["points"]] == [0, 1, 2]
    assert (folder / "sdpo" / LOG_FILE).read_bytes() == before
    assert (folder / "mine.txt").read_text() == "kept"
    assert not (folder / LOCK_FILE).exists()


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "warmup.json"])
def test_a_start_that_is_cut_off_is_none(tokenizer, tmp_path, file):
    model = build_model(tokenizer)
    save_start(tmp_path / "start", model, tokenizer, WarmupResult(0, 0.0))
    assert load_start(tmp_path / "start") is not None
    whole = (tmp_path / "start" / file).read_bytes()
    (tmp_path / "start" / file).write_bytes(whole[: len(whole) // 2])
    assert load_start(tmp_path / "start") is None


def test_a_start_without_a_weight_is_none(tokenizer, tmp_path):
    save_start(tmp_path / "start", build_model(tokenizer), tokenizer, WarmupResult(0, 0.0))
    weights = load_file(tmp_path / "start" / "model.safetensors")
    weights.pop("model.norm.weight")
    save_file(weights, tmp_path / "start" / "model.safetensors", {"format": "pt"})
    assert load_start(tmp_path / "start") is None


def test_a_folder_that_is_not_the_quickstarts_is_left_alone(tmp_path):
    RunLog(tmp_path / "srpo" / LOG_FILE).begin(0, model="Qwen/Qwen3-0.6B")
    (tmp_path / "grpo").mkdir()
    (tmp_path / "grpo" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    RunLog(tmp_path / "sdpo" / LOG_FILE).begin(0, model="start-0123456789ab")
    refused = pytest.raises(SystemExit, match=r"/srpo, .*/grpo would be replaced")
    with refused, claimed(tmp_path, ["srpo", "sdpo", "grpo"]):
        pass
    assert all((tmp_path / name).exists() for name in ("srpo/log.jsonl", "sdpo/log.jsonl", "grpo/notes.txt"))
    with pytest.raises(SystemExit, match="file cannot be used: File exists"), claimed(tmp_path / "file", []):
        pass
    with claimed(tmp_path, ["sdpo"]):
        assert not (tmp_path / "sdpo").exists()
        with pytest.raises(SystemExit, match="quickstart: "), claimed(tmp_path, []):
            pass


def test_an_interrupt_is_told_in_one_line(monkeypatch, capsys):
    def interrupted(options, console):
        raise KeyboardInterrupt

    monkeypatch.setattr("srpo_trl.commands.quickstart.run._run", interrupted)
    assert run_quickstart([]) == 130
    out, err = capsys.readouterr()
    assert out.startswith("Interrupted.")
    assert out.count("\n") == 1
    assert not err


def test_an_interrupt_while_the_interpreter_ends_is_not_heard():
    code = (
        "import atexit, signal\n"
        "from srpo_trl.commands.quickstart import run\n"
        "def interrupted(options, console):\n"
        "    atexit.register(signal.raise_signal, signal.SIGINT)\n"
        "    raise KeyboardInterrupt\n"
        "run._run = interrupted\n"
        "raise SystemExit(run.quickstart([]))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stderr) == (130, "")
