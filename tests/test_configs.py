"""Every file in configs/ is read by the parser that reads it in a run, and says what its comments claim."""

import re
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file

from srpo_trl.training_script import read_arguments

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
TRAINING_CONFIGS = sorted(CONFIGS.glob("*.yaml"))
ACCELERATE_CONFIGS = sorted((CONFIGS / "accelerate").glob("*.yaml"))

# SRPO, arXiv:2604.02288: table 3 and section 3.3
PAPER = {
    "num_generations": 8,
    "max_completion_length": 8192,
    "temperature": 1.0,
    "routing": "srpo",
    "scale_rewards": "none",
    "epsilon": 0.2,
    "epsilon_high": 0.28,
    "beta": 0.0,
    "distillation_alpha": 0.5,
    "distillation_topk": 100,
    "distillation_is_clip": 2.0,
    "entropy_weight_beta": 1.0,
    "teacher_model_kind": "ema",
    "teacher_update_rate": 0.05,
    "learning_rate": 5e-6,
    "warmup_steps": 10,
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
    "chat_template_kwargs": {"enable_thinking": False},
}
COMMENTED_VALUE = re.compile(r"^(?P<option>\w+): (?P<value>.+?) # (?P<comment>.*)$")


def by_name(path: Path) -> str:
    return path.relative_to(CONFIGS).as_posix()


def comments(path: Path) -> dict[str, str]:
    lines = (COMMENTED_VALUE.match(line) for line in path.read_text(encoding="utf-8").splitlines())
    return {found["option"]: found["comment"] for found in lines if found}


def test_configs_are_found() -> None:
    assert {by_name(path) for path in TRAINING_CONFIGS} >= {"smoke_cpu.yaml", "qwen3_0.6b.yaml"}
    engines = ("single", "ddp", "fsdp2", "fsdp2_no_reshard", "zero1", "zero2", "zero3", "zero3_offload")
    names = {f"accelerate/{engine}.yaml" for engine in (*engines, "multi_node")}
    assert {by_name(path) for path in ACCELERATE_CONFIGS} >= names


@pytest.mark.parametrize("path", TRAINING_CONFIGS, ids=by_name)
def test_every_option_is_known_and_taken(path: Path) -> None:
    # use_cpu: whether bf16 can be had depends on the machine that runs the test
    script, config, model_config, problems = read_arguments(["--config", str(path), "--use_cpu", "true"])
    assert problems == []
    values = yaml.safe_load(path.read_text(encoding="utf-8")) | {"use_cpu": True}
    for option, value in values.items():
        holder = next(part for part in (script, config, model_config) if hasattr(part, option))
        taken = getattr(holder, option)
        assert taken == ([] if value == "none" and option == "report_to" else value), option


@pytest.mark.parametrize("path", TRAINING_CONFIGS, ids=by_name)
def test_options_called_the_papers_have_its_values(path: Path) -> None:
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    for option, comment in comments(path).items():
        if re.match(r"paper($|: \D)", comment):
            assert values[option] == PAPER[option], f"{option} in {path.name}"


def test_recipe_gives_a_reason_for_every_option() -> None:
    path = CONFIGS / "qwen3_0.6b.yaml"
    without_reason = {"model_name_or_path", "seed", "output_dir", "save_steps", "logging_steps"}
    options = set(yaml.safe_load(path.read_text(encoding="utf-8"))) - without_reason
    assert options - set(comments(path)) <= {"num_completions_to_print"}


def test_recipe_keeps_the_papers_values_but_the_completion_length() -> None:
    values = yaml.safe_load((CONFIGS / "qwen3_0.6b.yaml").read_text(encoding="utf-8"))
    assert {option for option, value in PAPER.items() if values[option] != value} == {"max_completion_length"}


@pytest.mark.parametrize("path", ACCELERATE_CONFIGS, ids=by_name)
def test_accelerate_takes_its_configs(path: Path) -> None:
    config = load_config_from_file(str(path))  # refuses unknown keys
    assert config.num_processes >= 1
    assert config.mixed_precision == "no"
