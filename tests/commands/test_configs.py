"""Every file in configs/ is read by the parser that reads it in a run, and says what its comments claim."""

import inspect
import itertools
import re
import shlex
import subprocess
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file

from method_names import FAMILY, columns
from srpo_trl.commands.config_file import config_path, read_config_file
from srpo_trl.commands.launch import as_one_of, read_launch
from srpo_trl.commands.methods import with_defaults
from srpo_trl.commands.train import read_arguments
from srpo_trl.data import BENCHMARKS
from srpo_trl.methods import METHODS
from srpo_trl.rewards import BENCHMARK_REWARDS

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
PAPER_CONFIGS = sorted((CONFIGS / "paper").glob("*.yaml"))
SMALL_CONFIGS = sorted((CONFIGS / "small").glob("*.yaml"))
METHOD_CONFIGS = sorted((CONFIGS / "methods").glob("*.yaml"))
TRAINING_CONFIGS = [*sorted(CONFIGS.glob("*.yaml")), *PAPER_CONFIGS, *SMALL_CONFIGS, *METHOD_CONFIGS]
ACCELERATE_CONFIGS = sorted((CONFIGS / "accelerate").glob("*.yaml"))

# SRPO, arXiv:2604.02288: table 3, section 3.3 and appendix B.5; the same for every method
PAPER = {
    "num_generations": 8,
    "max_completion_length": 8192,
    "temperature": 1.0,
    "scale_rewards": "none",
    "num_generations_eval": 16,
    "eval_temperature": 0.6,
    "eval_top_p": 0.95,
    "epsilon": 0.2,
    "epsilon_high": 0.28,
    "beta": 0.0,
    "loss_type": "dapo",
    "vllm_importance_sampling_mode": "token_truncate",
    "vllm_importance_sampling_clip_max": 2.0,
    "distillation_alpha": 0.5,
    "distillation_topk": 100,
    "distillation_is_clip": 2.0,
    "teacher_model_kind": "ema",
    "teacher_update_rate": 0.05,
    "remove_thinking_from_demonstration": True,
    "optim": "adamw_torch_fused",
    "warmup_steps": 10,
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
    "chat_template_kwargs": {"enable_thinking": False},
}
PAPER_MODELS = ("Qwen/Qwen3-8B", "Qwen/Qwen3-4B")
PAPER_QUESTIONS = 32  # sampled at a time
PAPER_GPUS = 8
# Per method: what differs, and the questions of one optimizer step. The paper gives no learning rate for the advantage
# mix; ours is SRPO's.
SRPO = {"method": "srpo", "learning_rate": 5e-6, "entropy_weight_beta": 1.0, "questions": 32}
PAPER_METHODS: dict[str, dict[str, Any]] = {
    "srpo": SRPO,
    "grpo": {"method": "grpo", "learning_rate": 1e-6, "questions": 8},
    "sdpo": {"method": "sdpo", "learning_rate": 1e-5, "entropy_weight_beta": 0.0, "questions": 32},
    "advantage_mix": SRPO
    | {"method": "advantage_mix", "advantage_mix_lambda": 0.9, "entropy_weight_beta": 0.0},
    "srpo_without_weights": SRPO | {"entropy_weight_beta": 0.0},
}

# Per small recipe: rollouts sampled at a time, questions of one optimizer step
SMALL_SIZES = {
    "qwen3_0.6b_full_16gb": (8, 8),
    "qwen3_0.6b_full_24gb": (16, 8),
    "qwen3_0.6b_full_80gb": (128, 32),
    "qwen3_0.6b_lora_16gb": (32, 8),
    "qwen3_0.6b_lora_24gb": (64, 8),
    "qwen3_0.6b_lora_80gb": (256, 32),
    "qwen3_1.7b_full_80gb": (64, 32),
    "qwen3_1.7b_lora_16gb": (32, 8),
    "qwen3_1.7b_lora_24gb": (64, 8),
    "qwen3_1.7b_lora_80gb": (256, 32),
}

# GSM8K has none of the columns that the others read, and stored rollouts come from Python.
RECIPES = [name for name in FAMILY if not columns(name) and name not in ("lightning", "dph_rl")]

COMMENTED_VALUE = re.compile(r"^(?P<option>\w+): (?P<value>.+?) # (?P<comment>.*)$")
COMMAND = re.compile(r"srpo-trl train .*")


def by_name(path: Path) -> str:
    return path.relative_to(CONFIGS).as_posix()


def comments(path: Path) -> dict[str, str]:
    lines = (COMMENTED_VALUE.match(line) for line in path.read_text(encoding="utf-8").splitlines())
    return {found["option"]: found["comment"] for found in lines if found}


def own_values(path: Path) -> dict[str, Any]:
    """What stands in the file itself, without the files that it builds on."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def test_configs_are_found() -> None:
    assert {by_name(path) for path in TRAINING_CONFIGS} >= {"smoke_cpu.yaml", "qwen3_0.6b.yaml"}
    assert {path.stem for path in PAPER_CONFIGS} == set(PAPER_METHODS)
    assert {path.stem for path in SMALL_CONFIGS} == {*SMALL_SIZES, "lora"}
    assert {path.stem for path in METHOD_CONFIGS} == set(RECIPES)
    engines = ("single", "ddp", "fsdp2", "fsdp2_no_reshard", "multi_node")
    stages = (f"zero{stage}{offload}" for stage in (1, 2, 3) for offload in ("", "_offload"))
    names = {f"accelerate/{engine}.yaml" for engine in (*engines, *stages)}
    assert {by_name(path) for path in ACCELERATE_CONFIGS} >= names


@pytest.mark.parametrize("path", TRAINING_CONFIGS, ids=by_name)
def test_every_option_is_known_and_taken(path: Path) -> None:
    # use_cpu: whether bf16 can be had depends on the machine that runs the test
    script, config, model_config, problems = read_arguments(["--config", str(path), "--use_cpu", "true"])
    assert problems == []
    values = read_config_file(path) | {"use_cpu": True}
    for option, value in values.items():
        holder = next(part for part in (script, config, model_config) if hasattr(part, option))
        taken = getattr(holder, option)
        assert taken == ([] if value == "none" and option == "report_to" else value), option


@pytest.mark.parametrize("path", TRAINING_CONFIGS, ids=by_name)
def test_options_called_the_papers_have_its_values(path: Path) -> None:
    values = own_values(path)
    paper = PAPER | PAPER_METHODS[path.stem if path in PAPER_CONFIGS else "srpo"]
    for option, comment in comments(path).items():
        if re.match(r"paper($|[:,] \D)", comment):
            if option == "model_name_or_path":
                assert values[option] in PAPER_MODELS
            elif option != "gradient_accumulation_steps":  # counted in the next test
                assert values[option] == paper[option], f"{option} in {path.name}"


@pytest.mark.parametrize("method", PAPER_METHODS)
def test_paper_recipes_have_the_papers_values(method: str) -> None:
    path = CONFIGS / "paper" / f"{method}.yaml"
    _, config, model_config, problems = read_arguments(["--config", str(path), "--use_cpu", "true"])
    assert problems == []
    assert config is not None
    assert model_config is not None
    expected = PAPER | PAPER_METHODS[method]
    questions = expected.pop("questions")
    assert {option: getattr(config, option) for option in expected} == expected
    assert model_config.model_name_or_path == "Qwen/Qwen3-8B"
    rollouts_per_micro_batch = PAPER_GPUS * config.per_device_train_batch_size
    assert rollouts_per_micro_batch * config.steps_per_generation == PAPER_QUESTIONS * 8
    assert rollouts_per_micro_batch * config.gradient_accumulation_steps == questions * 8
    assert config.num_iterations == 1
    assert config.vllm_max_model_length == 2048 + 8192


@pytest.mark.parametrize("method", sorted(set(PAPER_METHODS) - {"srpo"}))
def test_other_methods_say_only_what_differs_from_srpo(method: str) -> None:
    own = own_values(CONFIGS / "paper" / f"{method}.yaml")
    assert own.pop("base") == "srpo.yaml"
    srpo = read_config_file(CONFIGS / "paper" / "srpo.yaml")
    for option, value in own.items():
        assert srpo.get(option) != value, option
    rollout_batches = {
        name: values["max_steps"] * values["gradient_accumulation_steps"] / values["steps_per_generation"]
        for name, values in (("srpo", srpo), (method, srpo | own))
    }
    assert rollout_batches[method] == rollout_batches["srpo"]


@pytest.mark.parametrize("path", [CONFIGS / "qwen3_0.6b.yaml", CONFIGS / "paper" / "srpo.yaml"], ids=by_name)
def test_recipes_give_a_reason_for_every_option(path: Path) -> None:
    without_reason = {"model_name_or_path", "seed", "output_dir", "save_steps", "logging_steps"}
    options = set(own_values(path)) - without_reason
    assert options - set(comments(path)) <= {"num_completions_to_print"}


def test_small_recipe_keeps_the_papers_values_but_the_completion_length() -> None:
    values = own_values(CONFIGS / "qwen3_0.6b.yaml")
    method = {option: value for option, value in SRPO.items() if option != "questions"}
    paper = {option: value for option, value in (PAPER | method).items() if option in values}
    differing = {option for option, value in paper.items() if values[option] != value}
    assert differing == {"max_completion_length", "teacher_update_rate"}
    left_out = {"optim", "remove_thinking_from_demonstration"}
    left_out |= {o for o in PAPER if o.startswith(("vllm_", "eval_", "num_generations_eval"))}
    assert set(PAPER) - set(values) == left_out  # defaults


@pytest.mark.parametrize("path", TRAINING_CONFIGS, ids=by_name)
def test_teachers_move_by_the_papers_rate_a_step(path: Path) -> None:
    """Once per rollout batch: n of them in an optimizer step move the teacher by 1 - (1 - rate)^n."""
    values = read_config_file(path)
    has_teacher = bool(with_defaults(METHODS[values["method"]].factory).scorers)
    if "teacher_update_rate" not in values or not has_teacher or values.get("teacher_update_interval"):
        return  # the default, with one rollout batch a step; no teacher; or the student's weights now and then
    num_batches = values["gradient_accumulation_steps"] / values["steps_per_generation"]
    assert 1 - (1 - values["teacher_update_rate"]) ** num_batches == pytest.approx(0.05, abs=2e-4)


@pytest.mark.parametrize("name", RECIPES)
def test_methods_recipes_name_the_method_and_what_differs_alone(name: str) -> None:
    path = CONFIGS / "methods" / f"{name}.yaml"
    own = own_values(path)
    first = inspect.getdoc(inspect.getmodule(METHODS[name].factory)).partition(": ")[0]
    assert path.read_text(encoding="utf-8").startswith(f"# {first.removesuffix(' (id unknown)')} on GSM8K")
    assert (own["method"], own["output_dir"]) == (name, f"outputs/methods/{name}")
    base = read_config_file(path.parent / own.pop("base"))
    assert all(base.get(option) != value for option, value in own.items())
    parameters = inspect.signature(METHODS[name].factory).parameters.values()
    own_options = [
        p.name for p in parameters if p.default is not p.empty
    ]  # the others are the configuration's
    assert list(own.get("method_options", {})) == own_options


@pytest.mark.parametrize("name", SMALL_SIZES)
def test_small_recipes_have_the_sizes_that_their_comments_say(name: str) -> None:
    path = CONFIGS / "small" / f"{name}.yaml"
    own, values, said = own_values(path), read_config_file(path), comments(path)
    rollouts, questions = SMALL_SIZES[name]
    micro_batch, generations = values["per_device_train_batch_size"], values["num_generations"]
    assert micro_batch * values["steps_per_generation"] == rollouts
    assert micro_batch * values["gradient_accumulation_steps"] == questions * generations
    assert said["steps_per_generation"] == f"{rollouts} rollouts are sampled at a time"
    assert said["gradient_accumulation_steps"].startswith(f"{questions} questions x {generations} rollouts")
    model, kind, _ = name.removeprefix("qwen3_").split("_")
    assert values["model_name_or_path"].lower() == f"qwen/qwen3-{model}"
    assert values.get("use_peft", False) == (kind == "lora")
    assert values["dtype"] == {"full": "float32", "lora": "bfloat16"}[kind]
    assert own["base"] == {"full": "../qwen3_0.6b.yaml", "lora": "lora.yaml"}[kind]
    assert own["output_dir"] == f"outputs/{name}"


@pytest.mark.parametrize("name", SMALL_SIZES)
def test_small_recipes_fit_by_the_arithmetic_of_their_comments(name: str) -> None:
    text = " ".join(
        (CONFIGS / "small" / f"{name}.yaml").read_text(encoding="utf-8").replace("#", " ").split()
    )
    model, kind, memory = name.removeprefix("qwen3_").split("_")
    billions = {"0.6b": 0.6, "1.7b": 1.72}[model]
    layers_heads_width = 28 * 8 * 128  # of keys, and as many of values; the same for both models
    cache_bytes = 2 * layers_heads_width * {"full": 4, "lora": 2}[kind]
    rollouts, _ = SMALL_SIZES[name]
    cache = rollouts * 1700 * cache_bytes / 1e9
    assert f"{rollouts} rollouts x 1,700 tokens x {cache_bytes / 1e3:.0f} kB = {cache:.0f} GB" in text
    if kind == "full":
        training, sampling = billions * 4 * 5, billions * 4 * 4
        assert f"5 x {billions * 4:.1f} GB = {training:.0f} GB" in text
        assert f"sampling holds {sampling:.0f} GB" in text
    else:
        training = sampling = billions * 2
        assert f"{billions * 2:.1f} GB of bf16 weights" in text
    assert max(training, sampling + cache) < 0.8 * int(memory.removesuffix("gb"))


def commands(path: Path) -> list[list[str]]:
    """Words of the commands in a config's comments, or in a page."""
    lines = re.sub(r"\\\n#?", " ", path.read_text(encoding="utf-8")).splitlines()
    return [shlex.split(line.lstrip("# ")) for line in lines if COMMAND.fullmatch(line.lstrip("# "))]


@pytest.mark.parametrize("path", [*TRAINING_CONFIGS, CONFIGS / "README.md"], ids=by_name)
def test_commands_in_comments_parse(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # recipes are found by name, from any folder
    output_dirs = []
    for words in commands(path):
        assert words[1] == "train"
        launch, problems = read_launch("train", words[2:])
        assert problems == []
        with as_one_of(launch.num_processes) if launch else nullcontext():
            script, config, _, problems = read_arguments([*words[2:], "--use_cpu", "true"])
        assert problems == []
        assert config is not None
        assert script.benchmark in BENCHMARK_REWARDS
        assert script.data_dir == (None if script.benchmark in ("gsm8k", "livecodebench") else "DIR")
        output_dirs.append(config.output_dir)
        if path.suffix == ".yaml":
            assert config_path(words[words.index("--config") + 1]).samefile(path)
    if path.parent.name in ("paper", "small", "methods") and path.stem != "lora":
        assert output_dirs
        assert len(set(output_dirs)) == len(output_dirs)


def test_the_loop_of_all_runs_makes_every_cell() -> None:
    """2 models x 5 benchmarks x 5 methods, each with an output folder of its own."""
    text = (ROOT / "docs" / "reproducing.md").read_text(encoding="utf-8")
    loop = next(
        block for block in re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE) if "for " in block
    )
    printed = subprocess.run(
        ["bash", "-euc", 'srpo-trl() { echo "$*"; }\n' + loop],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    ).stdout
    cells, output_dirs = set(), set()
    for line in printed.splitlines():
        words = shlex.split(line)
        launch, problems = read_launch(words[0], words[1:])
        assert problems == []
        assert launch is not None
        assert (launch.num_processes, launch.command[0]) == (PAPER_GPUS, "train")
        arguments = launch.command[1:]
        method = config_path(arguments[arguments.index("--config") + 1]).stem
        script, config, model_config, problems = read_arguments([*arguments, "--use_cpu", "true"])
        assert problems == []
        assert config is not None
        assert model_config is not None
        assert config.method == PAPER_METHODS[method]["method"]
        cells.add((model_config.model_name_or_path, script.benchmark, method))
        output_dirs.add(config.output_dir)
    assert cells == set(itertools.product(PAPER_MODELS, BENCHMARKS, PAPER_METHODS))
    assert len(output_dirs) == len(cells)


def test_published_numbers_are_consistent() -> None:
    """Each mean of the paper's table 1 is the mean of its row, within the rounding of both."""
    text = (ROOT / "docs" / "reproducing.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (base model|GRPO|SDPO|SRPO) \| (\d.*\|.*) \|$", text, re.MULTILINE)
    assert [name for name, _ in rows] == ["base model", "GRPO", "SDPO", "SRPO"]
    for _, cells in rows:
        *benchmarks, means = [[float(n) for n in cell.split(" / ")] for cell in cells.split(" | ")]
        assert len(benchmarks) == len(BENCHMARKS)
        for values, mean in zip(zip(*benchmarks, strict=True), means, strict=True):
            assert abs(sum(values) / len(values) - mean) < 0.11


@pytest.mark.parametrize("path", ACCELERATE_CONFIGS, ids=by_name)
def test_accelerate_takes_its_configs(path: Path) -> None:
    config = load_config_from_file(str(path))  # refuses unknown keys
    assert config.num_processes >= 1
    assert config.mixed_precision == "no"
