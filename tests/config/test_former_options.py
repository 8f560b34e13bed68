"""Options of older recipes: the remedy is named, not the nearest spelling, on the command line and in Python."""

import copy
import inspect
import pickle
import re
from dataclasses import dataclass, fields

import pytest
import yaml
from trl import GRPOTrainer, ModelConfig

from srpo_trl import SRPOConfig, SRPOTrainer
from srpo_trl.commands.train import TrainArguments, train
from srpo_trl.config.former import ANY, IDLE
from srpo_trl.config.renamed import (
    ARGUMENTS,
    AS_ARGUMENTS,
    FORMER,
    IN_PYTHON,
    RENAMED,
    REPLACED,
    what_became_of,
)

CONFIG = {field.name for field in fields(SRPOConfig)}
OPTIONS = CONFIG | {field.name for kind in (ModelConfig, TrainArguments) for field in fields(kind)}
PARAMETERS = set(inspect.signature(SRPOTrainer.__init__).parameters)


def test_no_former_option_is_one_today():
    assert not OPTIONS & {*RENAMED, *REPLACED}
    assert not set(RENAMED) & set(REPLACED)
    assert not PARAMETERS & set(ARGUMENTS)


def test_every_remedy_names_what_there_is():
    assert set(RENAMED.values()) <= OPTIONS
    assert set(IN_PYTHON) <= OPTIONS - CONFIG
    assert set(AS_ARGUMENTS.values()) <= PARAMETERS
    assert not set(AS_ARGUMENTS) & {*OPTIONS, *RENAMED, *REPLACED} - {"reward_funcs"}
    words = set(re.findall(r"\b[a-z]+(?:_[a-z0-9]+)+\b", " ".join([*REPLACED.values(), *IN_PYTHON.values()])))
    elsewhere = {  # inside a value, or of another package
        *(
            "flash_attention_2",
            "min_num_params",
            "transformer_layer_cls_to_wrap",
            "dispatch_batches",
            "split_batches",
        ),
        *(
            "use_reentrant",
            "tpu_metrics_debug",
            "load_dataset",
            "train_dataset",
            "reward_funcs",
            "peft_config",
        ),
        *("model_init_kwargs", "quantization_config", "target_modules", "modules_to_save"),
        *("target_parameters", "task_type", "bnb_4bit_use_double_quant", "stop_strings", "eval_dataset"),
        *("eos_token", "chat_template", "sampled_token", "processing_class"),
    }
    assert words <= OPTIONS | elsewhere, words - OPTIONS - elsewhere
    named = set(re.findall(r"\bargs\.(\w+)", " ".join(ARGUMENTS.values())))
    assert named <= CONFIG


REMEDIES = {
    "torch_dtype": "It is called dtype.",
    "max_prompt_length": "TRL removed it: prompts are no longer cut. Leave it out; where prompts are longer, drop",
    "overwrite_output_dir": "transformers removed it: a run starts anew unless resume_from_checkpoint is given.",
    "evaluation_strategy": "It is called eval_strategy.",
    "warmup_ratio": "It is called warmup_steps, which takes a share of the steps below 1.",
    "logging_dir": "set the environment variable TENSORBOARD_LOGGING_DIR",
    "vllm_guided_decoding_regex": "It is called vllm_structured_outputs_regex.",
    "use-liger-loss": "Give liger_layers",
    "max_tokens": "It is called max_completion_length.",
    "eos_token": "It belongs to supervised fine-tuning. Set tokenizer.eos_token.",
    "tokenizer": "It is an argument of the trainer: SRPOTrainer(processing_class=...).",
    "peft_config": "It is an argument of the trainer: SRPOTrainer(peft_config=...).",
    "target_kl": "It belongs to PPO with a value model",
    "distillation_mode": "It is called distillation_estimator, its values 'logits' and 'sampled_token' 'exact' and",
    "distillation_hold_steps": "It is called distilled_frac_hold_steps.",
    "teacher_states_on_host": "It is called teacher_states_on_cpu.",
    "learning_rat": "Did you mean learning_rate?",
}


@pytest.mark.parametrize("name", REMEDIES)
def test_the_remedy_is_named(name):
    assert REMEDIES[name] in what_became_of(name, OPTIONS)
    assert "mean" not in what_became_of(name, OPTIONS) or name == "learning_rat"


@pytest.mark.parametrize("way", ["file", "command line"])
def test_a_recipe_of_2025_is_told_what_became_of_its_options(tmp_path, capsys, way):
    taken = {*FORMER, *(name for name, values in IDLE.items() if values is ANY)} - {
        "warmup_ratio"
    }  # of a share
    old = {name: 1 for name in REMEDIES if "-" not in name and name not in taken}
    values = {"model_name_or_path": "some/model", "dataset_name": "rows.jsonl", "output_dir": str(tmp_path)}
    given = values | (old if way == "file" else {})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(given))
    words = [word for name in old for word in (f"--{name}", "1")] if way == "command line" else []
    assert train(["--config", str(tmp_path / "recipe.yaml"), *words]) == 2
    said = capsys.readouterr().err
    for name in old:
        assert f"{name} is not an option. " in said
        assert REMEDIES[name] in said


def test_python_says_it_too(tmp_path):
    with pytest.raises(TypeError) as error:
        SRPOConfig(
            str(tmp_path), max_prompt_length=512, torch_dtype="bfloat16", learning_rat=1, lora_r=8, zzzzz=1
        )
    assert str(error.value).split("\n- ")[1:] == [
        "max_prompt_length is not an option. TRL removed it: prompts are no longer cut. Leave it out; where "
        "prompts are longer, drop their rows before training, dataset.filter(...).",
        "torch_dtype is not an option. Give model_init_kwargs={'dtype': ...}.",
        "learning_rat is not an option. Did you mean learning_rate?",
        "lora_r is not an option. Give SRPOTrainer(peft_config=peft.LoraConfig(r=...)).",
        "zzzzz is not an option.",
    ]


def test_the_trainer_says_what_became_of_its_arguments():
    with pytest.raises(TypeError) as error:
        SRPOTrainer("some/model", tokenizer=1, num_generations=4, max_prompt_length=512, train_datasets=1)
    assert str(error.value).split("\n- ")[1:] == [
        "tokenizer is not an argument. It is called processing_class now.",
        "num_generations is not an argument. It is an option: args=SRPOConfig(num_generations=...).",
        "max_prompt_length is not an argument. TRL removed it: prompts are no longer cut. Leave it out; where "
        "prompts are longer, drop their rows before training, dataset.filter(...).",
        "train_datasets is not an argument. Did you mean train_dataset?",
    ]


def test_signatures_stay_and_configurations_are_copied(tmp_path):
    parameters = list(inspect.signature(SRPOTrainer.__init__).parameters)
    assert parameters == list(inspect.signature(GRPOTrainer.__init__).parameters)
    options = {f.name for f in fields(SRPOConfig) if f.init}
    assert set(inspect.signature(SRPOConfig).parameters) == options | {"derived"}  # for dataclasses.replace
    config = SRPOConfig(str(tmp_path), use_cpu=True, bf16=False, temperature=0.7)
    for made in (copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert made.temperature == 0.7

    @dataclass
    class Wider(SRPOConfig):
        own: int = 3

    assert Wider(str(tmp_path), use_cpu=True, bf16=False, own=4).own == 4

    class Free(SRPOConfig):
        def __init__(self, folder, **options):
            super().__init__(str(folder), use_cpu=True, bf16=False, **options)

    assert Free(tmp_path, beta=0.1).beta == 0.1
    with pytest.raises(TypeError, match=r"lr is not an option\. It is called learning_rate."):
        Free(tmp_path, lr=1e-6)
