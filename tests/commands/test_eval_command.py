"""`srpo-trl eval` on tiny models of random weights: what it refuses, prints and writes, and that adapters load."""

import importlib.util
import json
import os
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from srpo_trl.cli import main
from srpo_trl.commands.evaluate import Score, paired
from srpo_trl.data.smoke_model import save_tiny_random_qwen3

REPOSITORY = Path(__file__).resolve().parents[2]
SMALL = ("--use_cpu", "true", "--max_completion_length", "6", "--num_generations_eval", "2")


def vowels_reward(completions, answer, **kwargs):
    """Share of vowels, None where the row's answer is empty."""
    texts = [completion[-1]["content"] for completion in completions]
    shares = [sum(letter in "aeiou" for letter in text) / max(1, len(text)) for text in texts]
    return [share if row else None for share, row in zip(shares, answer, strict=True)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_random_qwen3(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def rows(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "rows.jsonl"
    questions = [(f"Question {number}?", "a" if number else "") for number in range(3)]
    lines = [{"prompt": [{"role": "user", "content": text}], "answer": answer} for text, answer in questions]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    return path


def read_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def evaluate_rows(model, rows, output, *options):
    return main(
        [
            *("eval", str(model), "--dataset_name", str(rows)),
            *("--reward_funcs", "test_eval_command.vowels_reward"),
            *("--output", str(output), *SMALL, *options),
        ]
    )


def test_scores_and_completions_are_written(model, rows, tmp_path, capsys):
    output = tmp_path / "results" / "scores.json"
    training = ("--metric_for_best_model", "loss", "--eval_strategy", "steps", "--eval_steps", "1")
    assert (
        evaluate_rows(model, rows, output, "--success_reward_threshold", "0.01", "--seed", "3", *training)
        == 0
    )
    printed = capsys.readouterr().out
    assert "avg@2" in printed
    assert str(output) in printed.replace("\n", "")
    report = json.loads(output.read_text(encoding="utf-8"))
    lines = read_lines(output.with_suffix(".jsonl"))
    assert report["model"] == str(model)
    assert report["reward_funcs"] == ["vowels_reward"]
    sampling = {name: report["sampling"][name] for name in ("samples", "temperature", "top_p", "seed")}
    assert sampling == {"samples": 2, "temperature": 0.6, "top_p": 0.95, "seed": 3}
    scores = report["scores"]
    assert [line["question"] for line in lines] == [0, 0, 1, 1, 2, 2]
    assert [line["prompt"][0]["content"][:10] for line in lines[::2]] == [f"Question {n}" for n in range(3)]
    assert scores["unscored_samples"]["value"] == 2
    assert [line["score"] for line in lines[:2]] == [None, None]
    expected = vowels_reward([[{"content": line["text"]}] for line in lines[2:]], ["a"] * 4)
    assert [line["score"] for line in lines[2:]] == pytest.approx(expected)
    means = [sum(line["is_correct"] for line in lines[n : n + 2]) / 2 for n in (2, 4)]
    assert scores["avg@2"]["value"] == pytest.approx(sum(means) / 2)
    assert scores["avg@2"]["standard_error"] == pytest.approx(abs(means[0] - means[1]) / 2)
    assert scores["completions/max_length"]["value"] == max(line["num_tokens"] for line in lines) <= 6
    assert {Path(p).name for p in tmp_path.iterdir()} <= {"results", "rows.jsonl", "cache"}


def test_same_seed_same_completions_and_an_adapter_is_loaded(model, rows, tmp_path):
    """An untrained adapter answers as its base model, one of other weights does not."""

    def completions(path, name):
        assert evaluate_rows(path, rows, tmp_path / f"{name}.json", "--eval_temperature", "2.0") == 0
        return [line["text"] for line in read_lines(tmp_path / f"{name}.jsonl")]

    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(model), LoraConfig(r=2, target_modules=["q_proj"])
    )
    adapted.save_pretrained(tmp_path / "untrained")
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.fill_(1.0)
    adapted.save_pretrained(tmp_path / "trained")
    for folder in ("untrained", "trained"):
        AutoTokenizer.from_pretrained(model).save_pretrained(tmp_path / folder)
    base = completions(model, "base")
    assert completions(model, "again") == base
    assert completions(tmp_path / "untrained", "untrained") == base
    assert completions(tmp_path / "trained", "trained") != base


def test_a_training_runs_yaml_file_serves(model, tmp_path, capsys, chemistry):
    """Also with what only training needs: a teacher, a reference model, trackers, evaluation steps."""
    output = tmp_path / "scores.json"
    options = (
        "--beta",
        "0.1",
        "--eval_strategy",
        "steps",
        "--eval_steps",
        "1",
        "--load_best_model_at_end",
        "true",
    )
    arguments = ["eval", str(model), "--config", str(REPOSITORY / "configs" / "smoke_cpu.yaml")]
    arguments += ["--data_dir", chemistry, "--max_eval_rows", "3", "--output", str(output), *SMALL, *options]
    assert main(arguments) == 0
    scores = json.loads(output.read_text(encoding="utf-8"))["scores"]
    assert scores["questions"]["value"] == 3
    assert {"avg@2", "maj@2", "pass@2", "format_rate"} <= set(scores)
    lines = read_lines(output.with_suffix(".jsonl"))
    assert [line["is_correct"] for line in lines] == [False] * 6  # random bytes hold no <answer> element
    assert lines[0]["prompt"][0]["role"] == "system"
    assert not (REPOSITORY / "outputs" / "smoke_cpu").exists()


@pytest.fixture
def chemistry():
    for folder in (os.environ.get("SRPO_DATA_DIR"), REPOSITORY.parent / "shared" / "data"):
        if folder and (Path(folder) / "sciknoweval" / "chemistry" / "test.json").is_file():
            return str(folder)
    pytest.skip(
        "no published Chemistry rows: set SRPO_DATA_DIR to the folder that holds sciknoweval/chemistry"
    )


def test_vllm_is_asked_once_for_everything(model, rows, tmp_path, monkeypatch):
    """With an engine that stands in for TRL's `VLLMGeneration`."""
    engines = []

    class Engine:
        def __init__(self, **options):
            self.options, self.calls = options, []
            self.temperature, self.top_p, self.generation_kwargs = (
                options["temperature"],
                options["top_p"],
                {},
            )
            engines.append(self)

        def sync_weights(self):
            self.calls.append("weights")

        def generate(self, prompts, images, num_generations, profiler):
            self.calls.append((len(prompts), num_generations, self.temperature, self.top_p))
            return prompts, [[97, 98] for _ in prompts], [[[-1.0], [-1.0]] for _ in prompts], None

    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "vllm" or find_spec(name))
    monkeypatch.setattr("trl.trainer.grpo_trainer.VLLMGeneration", Engine)
    output = tmp_path / "scores.json"
    options = ("--use_vllm", "true", "--vllm_mode", "colocate", "--eval_top_p", "0.9")
    assert evaluate_rows(model, rows, output, *options) == 0
    (engine,) = engines
    assert engine.calls == ["weights", (6, 1, 0.6, 0.9)]
    assert engine.options["max_num_seqs"] >= 256
    assert json.loads(output.read_text(encoding="utf-8"))["sampling"]["vllm"]
    assert {line["num_tokens"] for line in read_lines(output.with_suffix(".jsonl"))} == {2}


def test_all_problems_come_in_one_message(tmp_path, capsys):
    arguments = ["eval", "./nowhere", "--output", "scores.txt", "--eval_top_p", "2", "--max_eval_row", "3"]
    assert main([*arguments, "--use_cpu", "true"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("srpo-trl eval: nothing was started, because")
    for part in (
        "model_name_or_path='./nowhere' is not a folder",
        "output='scores.txt' must end in .json",
        "eval_top_p=2.0 must be a number or None, above 0 and at most 1.",
        "max_eval_row is not an option. Did you mean max_eval_rows?",
        "There is no data: give benchmark",
    ):
        assert part in message


def test_scores_are_paired_with_their_errors():
    metrics = {
        "eval_avg@4": 0.5,
        "eval_avg@4_stderr": 0.1,
        "eval_questions": 3,
        "epoch": 0,
        "eval_num_tokens": 0,
    }
    assert paired(metrics) == {"avg@4": Score(0.5, 0.1), "questions": Score(3, None)}
