"""Every training config takes one optimizer step through `srpo-trl train`, with a tiny model in its model's place.

Rows are made up in the published formats. The sampler is replaced, because a random model never answers: of the four
rollouts of a question two are right. All else is the config's own: data, reward, routing, teacher, LoRA, optimizer.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from accelerate.utils import is_peft_model
from datasets import Dataset

from harness import flat_parameters
from srpo_trl import SRPOTrainer
from srpo_trl.cli import main
from srpo_trl.commands import train as training_script
from srpo_trl.commands.config_file import read_config_file
from srpo_trl.data.smoke_model import save_tiny_random_qwen3

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
PAPER_BENCHMARKS = {  # each benchmark once
    "srpo": "chemistry",
    "grpo": "physics",
    "sdpo": "biology",
    "advantage_mix": "materials",
    "srpo_without_weights": "tooluse",
}
RECIPES = [
    *((path, PAPER_BENCHMARKS[path.stem]) for path in sorted((CONFIGS / "paper").glob("*.yaml"))),
    *((path, "gsm8k") for path in sorted((CONFIGS / "small").glob("*.yaml"))),
    *((path, "gsm8k") for path in sorted((CONFIGS / "methods").glob("*.yaml"))),
    *(
        (path, "livecodebench" if path.stem == "livecodebench" else "chemistry")
        for path in sorted(CONFIGS.glob("*.yaml"))
    ),
]
NUM_QUESTIONS = 8
TINY = {
    "eval_strategy": "no",
    "use_cpu": "true",
    "use_vllm": "false",
    "num_generations": "4",
    "per_device_train_batch_size": "4",
    "max_completion_length": "64",
    "warmup_steps": "0",  # the first step of a warm-up has learning rate 0
    "max_steps": "1",
}
POLICY_ALONE = (
    "hdpo clip_cov kl_cov negative_control kdrl opd opd_then_rl rlsd rlad g_opd uni_opd scope dmpo rapo f_dpg salsa "
    "ema_anchor eksft apo fg_expo erpd gtpo dgpo tcod"
)
WEIGHTED = (
    "srpo",
    "srpo_stable",
    "srpo_both",
    "cord",
    "paced",
    "sc_sdpo",
    "tip",
    "vopd",
)  # by less than 1 in the mean
# With two right and two wrong rollouts in every group
ROUTES = {
    "srpo": {"policy": 0.5, "distilled": 0.5},
    "srpo_stable": {"policy": 0.5, "distilled": 0.5},
    "srpo_both": {"policy": 0.5, "both": 0.5},
    "advantage_mix": {"both": 1.0},
    "opsd": {"both": 1.0},
    "pi_distill": {"both": 1.0},
    "srpo_unweighted": {"policy": 0.5, "distilled": 0.5},
    "distil": {"distilled": 0.5, "skipped": 0.5},
    "vopd": {"both": 1.0},
    **{name: {"policy": 1.0} for name in POLICY_ALONE.split()},
}


def question(benchmark: str, number: int) -> tuple[dict[str, Any], str, str]:
    """A published row, a right and a wrong completion."""
    if benchmark == "gsm8k":
        row = {"question": f"What is {number} + 1000?", "answer": f"Add.\n#### 1,{number:03}"}
        return row, f"It is \\boxed{{{1000 + number}}}.", "It is \\boxed{7}."
    if benchmark == "livecodebench":
        tests = json.dumps([{"input": "", "output": str(number), "testtype": "stdin"}])
        row = {"question_content": f"Print {number}.", "starter_code": "", "metadata": "{}"}
        row |= {"public_test_cases": tests, "private_test_cases": "[]"}
        return row, f"```python\nprint({number})\n```", "```python\nprint()\n```"
    if benchmark == "tooluse":
        calls = [{"Action": "look", "Action_Input": json.dumps({"page": number})}]
        row = {"system": None, "prompt": f"Look at page {number}.", "answer": json.dumps(calls)}
        right, wrong = (f'Action: look\nAction Input: {{"page": {page}}}' for page in (number, -1))
        return row, right, wrong
    letter = "ABCD"[number % 4]
    row = {"system": "Answer in <answer> tags.", "prompt": f"Question {number}?", "answer": letter}
    return row, f"<answer>{letter}</answer>", "<answer>none of them</answer>"


def write_rows(folder: Path, benchmark: str) -> list[str]:
    """Write the train split as it is published, and return the options that name it."""
    rows = [question(benchmark, number)[0] for number in range(NUM_QUESTIONS)]
    if benchmark == "gsm8k":
        (folder / "main").mkdir(parents=True)
        Dataset.from_list(rows).to_parquet(folder / "main" / "train-00000-of-00001.parquet")
        head = "configs:\n- config_name: main\n  data_files:\n  - {split: train, path: main/train-*}\n"
        (folder / "README.md").write_text(f"---\n{head}---\n", encoding="utf-8")
        return ["--dataset_name", str(folder)]
    if benchmark == "livecodebench":
        folder.mkdir(parents=True)
        file = folder / "test6.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return ["--dataset_name", str(file)]
    science = {"materials": "material"}.get(benchmark, benchmark)
    place = folder / ("tooluse" if benchmark == "tooluse" else f"sciknoweval/{science}")
    place.mkdir(parents=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (place / "train.json").write_text(lines, encoding="utf-8")
    return ["--data_dir", str(folder)]


def half_right(benchmark: str) -> Callable[[list, SRPOTrainer], dict[str, Any]]:
    """A sampler that answers each question twice right and twice wrong."""
    answers = {}
    for number in range(NUM_QUESTIONS):
        row, right, wrong = question(benchmark, number)
        asked = next(row[key] for key in ("prompt", "question", "question_content") if key in row)
        answers[asked] = (right, right, wrong, wrong)

    def rollout(prompts: list, trainer: SRPOTrainer) -> dict[str, Any]:
        tokenizer = trainer.processing_class
        prompt_ids, completion_ids = [], []
        for row, prompt in enumerate(prompts):
            text = prompt[-1]["content"].split("\n\n")[0]
            ids = tokenizer.apply_chat_template(
                prompt, add_generation_prompt=True, return_dict=True, **trainer.chat_template_kwargs
            )
            prompt_ids.append(ids["input_ids"])
            completion = tokenizer(answers[text][row % trainer.num_generations])["input_ids"]
            completion_ids.append([*completion, tokenizer.eos_token_id])
        return {"prompt_ids": prompt_ids, "completion_ids": completion_ids, "logprobs": None}

    return rollout


def fewer_micro_batches(options: dict[str, Any]) -> list[str]:
    """Options with as many rollout batches per optimizer step, or steps per rollout batch, as `options` has."""
    accumulation = options["gradient_accumulation_steps"]
    per_generation = options.get("steps_per_generation", accumulation)
    factor = min(accumulation, per_generation)
    sizes = ("--gradient_accumulation_steps", accumulation, "--steps_per_generation", per_generation)
    return [word if isinstance(word, str) else str(word // factor) for word in sizes]


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_random_qwen3(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def tiny_teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_random_qwen3(tmp_path_factory.mktemp("teacher"), seed=1))


@pytest.mark.parametrize(
    ("path", "benchmark"), RECIPES, ids=[path.relative_to(CONFIGS).as_posix() for path, _ in RECIPES]
)
def test_every_recipe_takes_one_step(
    path: Path,
    benchmark: str,
    tiny_model: str,
    tiny_teacher: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainers, starts = [], []

    def build(**parameters: Any) -> SRPOTrainer:
        trainer = SRPOTrainer(**parameters, rollout_func=half_right(benchmark))
        trainers.append(trainer)
        starts.append(flat_parameters(trainer.model))
        return trainer

    monkeypatch.setattr(training_script, "SRPOTrainer", build)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    options = read_config_file(path)
    tiny = [word for name, value in TINY.items() for word in (f"--{name}", value)]
    tiny += fewer_micro_batches(options)
    data = ["--benchmark", benchmark, *write_rows(tmp_path / "data", benchmark)]
    places = ["--model_name_or_path", tiny_model, "--output_dir", str(tmp_path / "run")]
    teacher = options.get("teacher_model")
    if teacher:
        named = tiny_teacher if isinstance(teacher, str) else json.dumps(dict.fromkeys(teacher, tiny_teacher))
        places += ["--teacher_model", named]
    assert main(["train", "--config", str(path), *tiny, *data, *places]) == 0

    (trainer,), (start,) = trainers, starts
    assert trainer.state.global_step == 1
    change = flat_parameters(trainer.model) - start
    assert change.isfinite().all()
    assert 0 < change.abs().max() <= 2 * trainer.args.learning_rate  # AdamW's first step, weight decay

    assert is_peft_model(trainer.model) == options.get("use_peft", False)
    logs = trainer.state.log_history[0]
    assert logs["reward"] == 0.5
    assert torch.isfinite(torch.tensor(logs["grad_norm"]))
    if options["method"] == "grpo":
        costs = ("srpo/seconds/", "srpo/memory/", "srpo/nonfinite_steps")
        assert not any(name.startswith("srpo/") and not name.startswith(costs) for name in logs)
        return
    routes = {name: logs[f"srpo/route/{name}_frac"] for name in ("policy", "distilled", "both", "skipped")}
    expected = ROUTES.get(options["method"], {"distilled": 1.0})
    assert {name: share for name, share in routes.items() if share} == expected
    if expected == {"policy": 1.0}:
        return
    shares = [1.0 - expected.get("skipped", 0.0)] * bool(trainer.args.method_record.contexts)
    assert [logs[name] for name in ("srpo/teacher/available_frac",) if name in logs] == shares
    assert logs["srpo/distillation/divergence"] != 0.0  # an estimate by the sampled token can be negative
    has_weights = options["method"] in WEIGHTED and options.get("entropy_weight_beta", 1.0) > 0
    assert (logs["srpo/weight/raw_mean"] < 1.0) == has_weights


def test_recipes_are_all_there() -> None:
    assert {path.stem for path, _ in RECIPES if path.parent.name == "paper"} == set(PAPER_BENCHMARKS)
    assert len({path for path, _ in RECIPES}) == len(list(CONFIGS.rglob("*.yaml"))) - len(
        list((CONFIGS / "accelerate").glob("*.yaml"))
    )
