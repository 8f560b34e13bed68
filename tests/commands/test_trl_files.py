"""Files of `trl grpo`, and of scripts around TRL's trainer, given to `srpo-trl train`."""

import json
import re
from dataclasses import fields

import pytest
import transformers
import yaml
from trl import ModelConfig
from trl import rewards as trl_rewards
from trl.scripts.grpo import make_parser

from srpo_trl import SRPOConfig
from srpo_trl import rewards as own_rewards
from srpo_trl.commands.inputs import REWARDS_BY_NAME, import_reward, load_eval_rows, load_rows
from srpo_trl.commands.train import TrainArguments, prepare, read_arguments, train
from srpo_trl.config.former import IDLE, taken_over
from srpo_trl.config.inherited import bfloat16_is_there
from srpo_trl.config.renamed import FORMER, RENAMED, REPLACED
from srpo_trl.data.smoke_model import save_tiny_random_qwen3

KNOWN = {field.name for kind in (TrainArguments, SRPOConfig, ModelConfig) for field in fields(kind)}
ON_CPU = {"use_cpu": True, "bf16": False, "max_completion_length": 8, "report_to": "none", "max_steps": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a tiny model and rows of prompts."""
    folder = tmp_path_factory.mktemp("trl")
    save_tiny_random_qwen3(folder / "model")
    rows = [
        {"prompt": [{"role": "user", "content": f"What is {n} + {n}?"}], "solution": str(2 * n)}
        for n in range(1, 17)
    ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    (folder / "more.jsonl").write_text("\n".join(map(json.dumps, rows[:4])) + "\n")
    return folder


@pytest.fixture
def here(folder, tmp_path, monkeypatch):
    """An empty current folder that has the model and the rows."""
    for name in ("model", "rows.jsonl", "more.jsonl"):
        (tmp_path / name).symlink_to(folder / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(folder / "cache"))
    yield tmp_path
    transformers.logging.set_verbosity_warning()  # which `log_level` of a run changes


def written(values):
    with open("file.yaml", "w") as file:
        yaml.safe_dump(values, file)
    return ["--config", "file.yaml"]


# ------------------------------------------------------------------ what trl grpo takes


def test_every_option_of_trl_grpo_is_taken():
    theirs = {action.dest for action in make_parser()._actions} - {"help"}
    assert len(theirs) > 200
    assert theirs <= KNOWN, theirs - KNOWN


TRL_FILE = """
model_name_or_path: model
dataset_name: rows.jsonl
reward_funcs: [accuracy_reward, think_format_reward, get_soft_overlong_punishment]
reward_weights: [1.0, 0.5, 0.25]
learning_rate: 1.0e-5
num_generations: 4
per_device_train_batch_size: 4
use_peft: true
lora_r: 4
lora_target_modules: [q_proj, v_proj]
ignore_bias_buffers: true
env:
  SOME_VARIABLE: "3"
"""


def test_trls_documented_file_trains(here, capsys, monkeypatch):
    monkeypatch.delenv("SOME_VARIABLE", raising=False)
    assert train([*written(yaml.safe_load(TRL_FILE) | ON_CPU), "--output_dir", "out"]) == 0
    assert (
        "rewards accuracy_reward, think_format_reward, soft_overlong_punishment_reward"
        in capsys.readouterr().out
    )
    assert (here / "out" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("file", [TRL_FILE, "datasets: [{path: json, data_files: a.jsonl, fraction: 0.5}]"])
def test_values_are_read_as_trl_grpo_reads_them(here, file):
    words = [*written(yaml.safe_load(file) | ON_CPU), "--output_dir", "out"]
    theirs = {}
    for part in make_parser().parse_args_and_config(list(words)):
        theirs |= {field.name: getattr(part, field.name) for field in fields(part)}
    ours = {}
    for part in read_arguments(words)[:3]:
        ours |= {field.name: getattr(part, field.name) for field in fields(part)}
    differ = {name for name in theirs if theirs[name] != ours[name]}
    of_srpo = {
        "epsilon_high",
        "scale_rewards",
        "num_generations_eval",
        "per_device_eval_batch_size",
        "learning_rate",
    }
    of_vllm = {"vllm_importance_sampling_mode", "vllm_importance_sampling_clip_max"}
    assert differ <= of_srpo | of_vllm
    assert ("learning_rate" in differ) == ("learning_rate" not in file)


def test_rewards_have_their_names():
    for name in ("accuracy_reward", "reasoning_accuracy_reward", "think_format_reward"):
        assert import_reward(name) is getattr(trl_rewards, name) is import_reward(f"trl.rewards.{name}")
    assert import_reward("math_reward") is own_rewards.math_reward
    punish = import_reward("get_soft_overlong_punishment")
    assert punish(completion_ids=[[0] * n for n in (1024, 1152, 1281)]) == [0, -0.5, -1]
    assert set(REWARDS_BY_NAME) & set(own_rewards.__all__) == {
        name for name in own_rewards.__all__ if name.endswith("_reward") and not name.startswith("get_")
    }
    with pytest.raises(
        ValueError, match=r"neither one of accuracy_reward, .* Did you mean accuracy_reward\?"
    ):
        import_reward("accuracy")


def test_a_reward_model_comes_first(here, capsys):
    given = (
        yaml.safe_load(TRL_FILE) | ON_CPU | {"reward_funcs": "think_format_reward", "reward_weights": [1, 1]}
    )
    words = written(given | {"reward_model_name_or_path": "model", "max_completion_length": 4})
    assert train([*words, "--output_dir", "out"]) == 0
    assert "rewards model, think_format_reward;" in capsys.readouterr().out
    assert train([*words, "--reward_model_name_or_path", "./nowhere", "--output_dir", "out2"]) == 2
    assert "reward_model_name_or_path='./nowhere' is not a folder." in capsys.readouterr().err


MIXTURE = [
    {"path": "json", "data_files": "rows.jsonl", "columns": ["prompt", "solution"]},
    {"path": "json", "data_files": "more.jsonl"},
]


def test_a_mixture_is_split_alike_each_time(here):
    script = TrainArguments(datasets=[dict(one) for one in MIXTURE], test_split_size=0.25)
    train_rows, test_rows = load_rows(script, "train", None), load_eval_rows(script)
    assert (len(train_rows), len(test_rows)) == (15, 5)
    assert load_rows(script, "test", None)["solution"] == test_rows["solution"]
    assert len(load_rows(TrainArguments(datasets=[dict(one) for one in MIXTURE]), "train", 3)) == 3
    with pytest.raises(ValueError, match=r"no split 'test', but train\. Give test_split_size"):
        load_eval_rows(TrainArguments(datasets=[dict(one) for one in MIXTURE]))


def test_a_data_set_that_is_not_read_is_told(here, caplog):
    words = written(
        {"datasets": MIXTURE, "dataset_name": "rows.jsonl", "model_name_or_path": "model"} | ON_CPU
    )
    training, problems = prepare([*words, "--reward_funcs", "math_reward", "--output_dir", "out"])
    assert problems == []
    assert len(training.train_rows) == 20
    assert "dataset_name='rows.jsonl' is not read: datasets comes before it." in caplog.messages


def test_streams_train_for_max_steps(here, capsys):
    given = {
        "model_name_or_path": "model",
        "reward_funcs": "accuracy_reward",
        "datasets": MIXTURE,
        "streaming": True,
    }
    words = [*written(given | ON_CPU), "--output_dir", "out"]
    assert train([*words, "--max_steps", "-1"]) == 2
    assert "streaming gives rows without their number: give max_steps" in capsys.readouterr().err
    assert train(words) == 0
    assert "streamed training prompts" in capsys.readouterr().out
    stream = TrainArguments(dataset_name="rows.jsonl", dataset_streaming=True, max_eval_rows=3)
    assert load_eval_rows(stream)["solution"] == ["2", "4", "6"]


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (
            {"datasets": [{"data_files": "a"}]},
            "each data set is a mapping with path, and may have name, data_dir",
        ),
        ({"datasets": [{"path": "json", "weight": 1}]}, "each data set is a mapping with path"),
        (
            {"datasets": MIXTURE, "reward_funcs": None},
            "datasets has no rewards of its own: give reward_funcs.",
        ),
        ({"datasets": MIXTURE, "benchmark": "gsm8k"}, "datasets has other rows than benchmark='gsm8k'."),
        ({"benchmark": "gsm8k", "dataset_streaming": True}, "benchmark='gsm8k' is loaded whole"),
        ({"datasets": MIXTURE, "streaming": True, "test_split_size": 0.5}, "leave streaming out"),
        (
            {"datasets": [{"path": "json", "data_files": "rows.jsonl", "fraction": 0}]},
            "datasets has fractions [0]; each must be a number of at least 0, and one of them above 0.",
        ),
        (
            {"datasets": [{"path": "json", "data_files": "rows.jsonl", "fraction": "half"}]},
            "datasets has fractions ['half'];",
        ),
        ({"dataset_name": "broken.jsonl"}, "dataset_name='broken.jsonl' cannot be read: "),
        ({"dataset_name": "empty.jsonl"}, "dataset_name='empty.jsonl' has no rows."),
        (
            {"datasets": [{"path": "json", "data_files": "broken.jsonl"}]},
            "datasets cannot be read: ",
        ),
        ({"reward_funcs": [3]}, "reward_funcs: 3 must be text, a name or a dotted path."),
        ({"reward_funcs": 3}, "reward_funcs: 3 must be text"),
        (
            {"reward_funcs": "raises_srpo.f"},
            "'raises_srpo.f' cannot be imported: RuntimeError: no.",
        ),
        ({"reward_funcs": "exits_srpo.f"}, "'exits_srpo.f' cannot be imported: SystemExit: 3."),
        ({"reward_funcs": "..above.f"}, "'..above.f' cannot be imported: TypeError: "),
    ],
)
def test_wrong_choices_of_rows_and_rewards_are_refused(here, monkeypatch, given, problem):
    monkeypatch.syspath_prepend(here)
    (here / "broken.jsonl").write_text("{bad\n")
    (here / "empty.jsonl").write_text("")
    (here / "raises_srpo.py").write_text("raise RuntimeError('no')\n")
    (here / "exits_srpo.py").write_text("import sys\nsys.exit(3)\n")
    words = written(
        {"model_name_or_path": "model", "output_dir": "out", "reward_funcs": "math_reward"} | ON_CPU | given
    )
    training, problems = prepare(words)
    assert training is None
    assert any(problem in one for one in problems), problems


# ------------------------------------------------------------------ files of scripts and of earlier versions

# Keys as in the public recipes, values of our own; those of vLLM, trackers and the hub are off for a CPU.
OF_2025 = """
model_name_or_path: model
model_revision: main
torch_dtype: float32
attn_implementation: sdpa
bf16: false
gradient_accumulation_steps: 2
gradient_checkpointing: true
gradient_checkpointing_kwargs: {use_reentrant: false}
learning_rate: 3.0e-06
logging_steps: 5
logging_strategy: steps
lr_scheduler_type: cosine
max_prompt_length: 300
max_completion_length: 200
num_generations: 4
output_dir: data/run
per_device_train_batch_size: 4
push_to_hub: false
report_to: []
save_strategy: "no"
seed: 7
use_vllm: false
vllm_device: auto
vllm_gpu_memory_utilization: 0.4
warmup_ratio: 0.2
"""
DEMO = """
dataset_name: rows.jsonl
dataset_configs: [all]
do_eval: true
eval_strategy: steps
eval_steps: 50
hub_model_id: some/model
hub_strategy: every_save
log_completions: true
log_level: info
logging_first_step: true
max_steps: -1
num_train_epochs: 1
overwrite_output_dir: true
per_device_eval_batch_size: 16
save_total_limit: 1
"""
ZERO = """
chat_template: "{{ messages[0]['content'] }}"
dataset_name: rows.jsonl
callbacks: [push_to_hub_revision]
benchmarks: [math_500]
beta: 0.0
do_eval: false
eval_strategy: "no"
generation_batch_size: 16
hub_model_id: some/model
hub_model_revision: v1
hub_strategy: every_save
log_completions: true
log_level: info
logging_first_step: true
mask_truncated_completions: true
max_grad_norm: 0.5
max_steps: -1
num_iterations: 1
num_train_epochs: 1
overwrite_output_dir: true
reward_funcs: [accuracy, format, soft_format]
reward_weights: [1.0, 0.5, 0.5]
save_steps: 0.2
save_total_limit: 1
sync_ref_model: false
temperature: 0.9
epsilon: 0.1
"""
COUNTDOWN = """
tf32: false
dataset_id_or_path: rows.jsonl
max_steps: 30
beta: 0.01
save_steps: 10
hub_strategy: every_save
"""
REMEDIES = {
    "max_prompt_length": "TRL removed it: prompts are no longer cut. Leave it out; where prompts are longer, drop",
    "vllm_device": "TRL removed it. Give vllm_mode='colocate' for the training devices, or 'server' for others.",
    "dataset_configs": "Give dataset_config, the name of one; of several data sets, datasets.",
    "chat_template": "Save a tokenizer with this chat_template beside the model; in Python give it as",
    "callbacks": "It is an argument of the trainer: SRPOTrainer(callbacks=...).",
    "benchmarks": "It belongs to a script. Evaluate with `srpo-trl eval`.",
    "hub_model_revision": "It is called hub_revision.",
    "dataset_id_or_path": "It is called dataset_name.",
}
FILES = {
    "demo": (DEMO, {"dataset_configs", "max_prompt_length", "vllm_device"}),
    "zero": (
        ZERO,
        {
            "chat_template",
            "callbacks",
            "benchmarks",
            "hub_model_revision",
            "max_prompt_length",
            "vllm_device",
        },
    ),
    "countdown": (COUNTDOWN, {"dataset_id_or_path", "max_prompt_length", "vllm_device"}),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_a_script_is_told_what_to_change(here, capsys, name):
    """One message names every key that means something else; with these changed it trains."""
    text, refused = FILES[name]
    values = yaml.safe_load(OF_2025) | yaml.safe_load(text) | {"use_cpu": True}
    assert train(written(values)) == 2
    said = capsys.readouterr().err
    assert set(re.findall(r"- (\w+) is not an option", said)) == refused
    for key in refused:
        assert f"- {key} is not an option. {REMEDIES[key]}" in said
    for reward in values.get("reward_funcs", ()):
        assert f"reward_funcs: {reward!r} is neither one of accuracy_reward, " in said
    assert not {"torch_dtype", "warmup_ratio", "overwrite_output_dir"} & set(re.findall(r"- (\w+) is", said))

    values |= {"dataset_name": "rows.jsonl", "reward_funcs": ["accuracy_reward"], "reward_weights": None}
    kept = {key: value for key, value in values.items() if key not in refused}
    assert train(written(kept | {"max_completion_length": 4, "max_steps": 1})) == 0
    assert "method srpo; model model; 16 training prompts" in capsys.readouterr().out


def test_former_options_are_taken_with_a_line_about_each(here, caplog):
    values = {
        "torch_dtype": "float32",
        "warmup_ratio": 0.1,
        "overwrite_output_dir": False,
        "max_prompt_length": None,
    }
    words = [*written(values | ON_CPU), "--output_dir", "out"]
    words += ["--evaluation_strategy=no", "--use-liger-loss", "false"]
    with caplog.at_level("WARNING"):
        _, config, model_config, problems = read_arguments(words)
    assert problems == []
    assert (config.warmup_steps, config.eval_strategy, model_config.dtype) == (0.1, "no", "float32")
    for line in (
        "torch_dtype is called dtype now: taken as dtype='float32'.",
        "warmup_ratio is called warmup_steps now: taken as warmup_steps=0.1.",
        "evaluation_strategy is called eval_strategy now: taken as eval_strategy='no'.",
        "overwrite_output_dir=False changes nothing any more: leave it out.",
        "max_prompt_length=None changes nothing any more: leave it out.",
        "use_liger_loss='false' changes nothing any more: leave it out.",
    ):
        assert line in caplog.messages
    _, _, _, problems = read_arguments(written({"no_cuda": True} | ON_CPU))
    assert problems == ["no_cuda is not an option. It is called use_cpu."]


@pytest.mark.parametrize(
    ("base", "own", "words", "expected"),
    [
        ({"torch_dtype": "bfloat16"}, {"dtype": "float32"}, [], "float32"),
        ({"dtype": "bfloat16"}, {"torch_dtype": "float32"}, [], "float32"),
        ({"torch_dtype": "bfloat16"}, {"torch_dtype": "float32"}, [], "float32"),
        ({}, {"torch_dtype": "bfloat16"}, ["--dtype", "float32"], "float32"),
        ({}, {"dtype": "bfloat16"}, ["--torch-dtype=float32"], "float32"),
    ],
)
def test_a_former_name_is_where_todays_would_be(here, base, own, words, expected):
    (here / "base.yaml").write_text(yaml.safe_dump(base | ON_CPU))
    _, _, model_config, problems = read_arguments([*written(own | {"base": "base.yaml"}), *words])
    assert problems == []
    assert model_config.dtype == expected


def test_both_names_on_one_line_are_refused(here):
    words = [*written(ON_CPU), "--dtype", "float32", "--torch_dtype", "bfloat16"]
    assert read_arguments(words)[3] == ["torch_dtype is not an option. It is called dtype."]


def test_a_share_of_no_steps_changes_nothing_beside_warmup_steps(here, caplog):
    _, config, _, problems = read_arguments(written({"warmup_ratio": 0.0, "warmup_steps": 10} | ON_CPU))
    assert problems == []
    assert config.warmup_steps == 10
    assert "warmup_ratio=0.0 changes nothing beside warmup_steps: leave it out." in caplog.messages
    both = {"warmup_ratio": 0.1, "warmup_steps": 10}
    assert taken_over(both, KNOWN) == (both, [])


def test_secrets_are_not_told(here, caplog):
    _, config, _, problems = read_arguments([*written(ON_CPU), "--push_to_hub_token", "hf_SECRET"])
    assert problems == []
    assert config.hub_token == "hf_SECRET"
    assert caplog.messages == ["push_to_hub_token is called hub_token now: taken as hub_token."]
    assert taken_over({"use_auth_token": "false"}, KNOWN)[1] == [
        "use_auth_token changes nothing any more: leave it out."
    ]


def test_what_means_something_else_is_not_taken():
    for name, value in {
        "warmup_ratio": 1.5,
        "save_safetensors": False,
        "max_prompt_length": 512,
        "group_by_length": True,
        "callbacks": ["x"],
        "num_generation": 4,
    }.items():
        assert taken_over({name: value}, KNOWN) == ({name: value}, [])
    assert not set(FORMER) & set(IDLE)
    assert set(IDLE) - {"callbacks"} <= {*RENAMED, *REPLACED}
    assert not set(IDLE) & KNOWN


def test_values_of_another_type_join_the_other_problems(here, capsys):
    words = [*written({"bf16": "perhaps", "max_grad_norm": "high"} | {"use_cpu": True}), "--max_steps", "abc"]
    assert train([*words, "--routing", "srop", "--max_step", "5"]) == 2
    said = capsys.readouterr().err
    for problem in (
        "- bf16='perhaps' must be true or false or None.",
        "- max_grad_norm='high' must be a number.",
        "- max_steps='abc' must be a whole number.",
        "- max_step is not an option. Did you mean max_steps?",
        "routing='srop'",
        "There is no data",
    ):
        assert problem in said
    assert said.count("max_steps='abc'") == 1


def test_home_folders_are_expanded(here, monkeypatch):
    monkeypatch.setenv("HOME", str(here))
    words = written(
        {"model_name_or_path": "~/model", "dataset_name": "~/rows.jsonl", "output_dir": "~/out"} | ON_CPU
    )
    training, problems = prepare([*words, "--reward_funcs", "accuracy_reward"])
    assert problems == []
    assert training.model_config.model_name_or_path == str(here / "model")
    assert len(training.train_rows) == 16
    script = TrainArguments(datasets=[{"path": "~/rows"}])
    assert script.datasets[0].path == str(here / "rows")


# ------------------------------------------------------------------ precision


def precision_problem(monkeypatch, *, has_gpu, **options):
    monkeypatch.setattr("srpo_trl.config.inherited.is_torch_bf16_gpu_available", lambda: False)
    monkeypatch.setattr("torch.accelerator.is_available", lambda: has_gpu)
    given = {"bf16": None, "fp16": False, "bf16_full_eval": False, "use_cpu": False} | options
    return list(bfloat16_is_there(**given))


def test_a_machine_without_bfloat16_is_told_what_to_give(monkeypatch):
    (problem,) = precision_problem(monkeypatch, has_gpu=False)
    assert "use_cpu=True, bf16=False (on the command line --use_cpu true --bf16 false)" in problem
    (problem,) = precision_problem(monkeypatch, has_gpu=True, bf16=True)
    assert "fp16=True, bf16=False (on the command line --fp16 true --bf16 false)" in problem
    (problem,) = precision_problem(monkeypatch, has_gpu=True, bf16=False, bf16_full_eval=True)
    assert problem.startswith("bf16_full_eval=True needs a GPU")
    assert not precision_problem(monkeypatch, has_gpu=True, fp16=True)
    assert not precision_problem(monkeypatch, has_gpu=False, use_cpu=True, bf16=True)
    with pytest.raises(ValueError, match=r"(?s)1 problem.*use_cpu=True, bf16=False"):
        SRPOConfig("unused")
