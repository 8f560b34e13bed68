"""What became of options that TRL, transformers or a neighboring library had, or have, under another name.

By the former name. `tests/config/test_former_options.py` holds the tables against the installed versions: no key is an
option today, and every name that a remedy gives is one.
"""

from collections.abc import Callable, Collection
from dataclasses import fields
from difflib import get_close_matches
from functools import partial, wraps
from inspect import signature
from typing import Any, TypeVar

Config = TypeVar("Config", bound=type)
Function = TypeVar("Function", bound=Callable[..., Any])

# Today's name of what transformers, TRL and srpo-trl before 0.1.0 had under another one, with the same values: files
# that have the former one are taken (`srpo_trl.config.former`).
FORMER = {
    "torch_dtype": "dtype",
    "evaluation_strategy": "eval_strategy",
    "no_cuda": "use_cpu",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "push_to_hub_token": "hub_token",
    "push_to_hub_model_id": "hub_model_id",
    "warmup_ratio": "warmup_steps",  # which takes a share below 1, too
    "vllm_max_model_len": "vllm_max_model_length",
    "vllm_guided_decoding_regex": "vllm_structured_outputs_regex",
    "wandb_log_unique_prompts": "log_unique_prompts",
    "distillation_hold_steps": "distilled_frac_hold_steps",
    "distillation_decay_steps": "distilled_frac_decay_steps",
    "distillation_until_accuracy": "distilled_frac_until_accuracy",
    "redraw_failed_frac": "resample_failed_frac",
    "teacher_states_on_host": "teacher_states_on_cpu",
}

# The same option under another name; values stay as they are.
RENAMED = FORMER | {
    # transformers and TRL, where the meaning is near
    "include_tokens_per_second": "include_num_input_tokens_seen",
    "num_generation": "num_generations",
    "epsilon_low": "epsilon",
    "dataset_config_name": "dataset_config",
    "init_kl_coef": "beta",
    "cliprange": "epsilon",
    "ppo_epochs": "num_iterations",
    # scripts
    "dataset_id_or_path": "dataset_name",
    "dataset_splits": "dataset_train_split",
    "hub_model_revision": "hub_revision",
    # what people write for them
    "lr": "learning_rate",
    "optimizer": "optim",
    "batch_size": "per_device_train_batch_size",
    "max_tokens": "max_completion_length",
    "num_samples_per_prompt": "num_generations",
    "n_samples_per_prompt": "num_generations",
    "generate_max_len": "max_completion_length",
    # verl, OpenRLHF, ms-swift
    "attn_impl": "attn_implementation",
    "clip_ratio_low": "epsilon",
    "clip_ratio_high": "epsilon_high",
    "kl_coef": "beta",
    "kl_loss_coef": "beta",
    "entropy_coeff": "entropy_coef",
    "rollout_n": "num_generations",
    "response_length": "max_completion_length",
    "max_response_length": "max_completion_length",
    "max_new_tokens": "max_completion_length",
    "total_epochs": "num_train_epochs",
    "total_training_steps": "max_steps",
    "overlong_filter": "mask_truncated_completions",
    "lora_rank": "lora_r",
    "target_modules": "lora_target_modules",
    "modules_to_save": "lora_modules_to_save",
    "model": "model_name_or_path",
    "dataset": "dataset_name",
}

_DROP_LONG = (
    "TRL removed it: prompts are no longer cut. Leave it out; where prompts are longer, drop their rows before "
    "training, dataset.filter(...)"
)
_OF_REWARD = (
    "It belongs to a reward function of a script. Write that function with its value, and give its dotted path in "
    "reward_funcs"
)
_OF_WANDB = "It belongs to a script. Set it under env: in the file, as"
_OF_PUSHING = "It belongs to a script. Give push_to_hub, hub_strategy and hub_revision"
_AUTOMATIC = "transformers removed it: the device is found by itself"
_OF_SFT = "It belongs to supervised fine-tuning"
_OF_PPO = "It belongs to PPO with a value model, which GRPO does without. Leave it out"
_OF_DPO = "It belongs to training on preferences. Leave it out"
_OF_SEQ2SEQ = (
    "It belongs to encoder-decoder models. Give generation_kwargs, num_generations_eval and eval_temperature"
)

# Options that are gone, or that another option replaces with other values.
REPLACED = {
    # srpo-trl before 0.1.0
    "distillation_mode": "It is called distillation_estimator, its values 'logits' and 'sampled_token' 'exact' and "
    "'sampled'",
    # transformers
    "overwrite_output_dir": "transformers removed it: a run starts anew unless resume_from_checkpoint is given. Leave "
    "it out",
    "save_safetensors": "transformers removed it: weights are always saved as safetensors. Leave it out",
    "logging_dir": "transformers removed it: set the environment variable TENSORBOARD_LOGGING_DIR",
    "group_by_length": "transformers removed it; its train_sampling_strategy does not reach GRPO, whose sampler keeps "
    "groups together. Leave it out",
    "half_precision_backend": "transformers removed it: mixed precision is torch's own. Leave it out",
    "fp16_backend": "transformers removed it: mixed precision is torch's own. Leave it out",
    "fp16_opt_level": "transformers removed Apex. Give bf16 or fp16 alone",
    "torchdynamo": "transformers removed it. Give torch_compile_backend",
    "jit_mode_eval": "transformers removed it. Give torch_compile",
    "use_ipex": f"{_AUTOMATIC}. Leave it out",
    "use_mps_device": f"{_AUTOMATIC}. Leave it out",
    "xpu_backend": "transformers removed it. Give ddp_backend",
    "tpu_num_cores": f"{_AUTOMATIC}. Leave it out",
    "tpu_metrics_debug": "transformers removed it. Give debug='tpu_metrics_debug'",
    "past_index": "transformers removed it. Leave it out",
    "mp_parameters": "transformers removed it. Leave it out",
    "ray_scope": "transformers removed it. Leave it out",
    "adafactor": "transformers removed it. Give optim='adafactor'",
    "sharded_ddp": "transformers removed it. Give fsdp or deepspeed",
    "fsdp_min_num_params": "transformers removed it. Give min_num_params in fsdp_config",
    "fsdp_transformer_layer_cls_to_wrap": "transformers removed it. Give transformer_layer_cls_to_wrap in fsdp_config",
    "dispatch_batches": "transformers removed it. Give dispatch_batches in accelerator_config",
    "split_batches": "transformers removed it. Give split_batches in accelerator_config",
    "include_inputs_for_metrics": "transformers removed it. Give include_for_metrics=['inputs']",
    "evaluate_during_training": "transformers removed it. Give eval_strategy='steps'",
    "push_to_hub_organization": "transformers removed it. Give hub_model_id='organization/name'",
    "use_auth_token": "transformers removed it. Give hub_token, or log in with `hf auth login`",
    "use_flash_attention_2": "transformers removed it. Give attn_implementation='flash_attention_2'",
    # TRL
    "max_prompt_length": _DROP_LONG,
    "use_liger_loss": "TRL removed it. Give liger_layers for Liger's kernels; the fused loss needs no option",
    "vllm_device": "TRL removed it. Give vllm_mode='colocate' for the training devices, or 'server' for others",
    "vllm_dtype": "TRL removed it: vLLM takes the model's own. Leave it out",
    "vllm_enable_prefix_caching": "TRL removed it: vLLM decides itself. Leave it out",
    "vllm_guided_decoding": "TRL removed it. Give vllm_structured_outputs_regex",
    "gradient_checkpointing_use_reentrant": "TRL removed it. Give use_reentrant in gradient_checkpointing_kwargs",
    "max_length": f"{_OF_SFT}. Give max_completion_length for what is sampled, and drop rows with long prompts",
    "max_seq_length": f"{_OF_SFT}. Give max_completion_length for what is sampled, and drop rows with long prompts",
    "packing": f"{_OF_SFT}; rollouts are not packed. Leave it out",
    "dataset_text_field": f"{_OF_SFT}. Rename the column of the prompts to 'prompt'",
    "max_seq_len": f"{_OF_SFT}. Give max_completion_length for what is sampled, and drop rows with long prompts",
    "padding_free": f"{_OF_SFT}; rollouts are not packed. Leave it out",
    "eval_packing": f"{_OF_SFT}; rollouts are not packed. Leave it out",
    "assistant_only_loss": f"{_OF_SFT}; only what is sampled is trained on. Leave it out",
    "completion_only_loss": f"{_OF_SFT}; only what is sampled is trained on. Leave it out",
    "dataset_kwargs": f"{_OF_SFT}. Leave it out",
    "eos_token": f"{_OF_SFT}. Set tokenizer.eos_token",
    "chat_template_path": f"{_OF_SFT}. Set tokenizer.chat_template",
    "dataset_num_proc": f"{_OF_SFT}; rows are tokenized when they are sampled for. Leave it out",
    **dict.fromkeys(
        ("gamma", "lam", "vf_coef", "cliprange_value", "whiten_rewards", "target_kl", "adap_kl_ctrl"), _OF_PPO
    ),
    "mini_batch_size": "Give per_device_train_batch_size and gradient_accumulation_steps",
    "num_mini_batches": "Give per_device_train_batch_size and gradient_accumulation_steps",
    "missing_eos_penalty": "Give mask_truncated_completions, or a reward function that takes it off",
    "stop_token": "Give generation_kwargs={'stop_strings': ...}",
    "num_sample_generations": "Give log_completions and num_completions_to_print",
    "sft_model_path": "Give the model itself: SRPOTrainer(model=...)",
    "reward_model_path": "Give reward models in Python: SRPOTrainer(reward_funcs=['name'])",
    **dict.fromkeys(
        (
            "rpo_alpha",
            "precompute_ref_log_probs",
            "generate_during_eval",
            "truncation_mode",
            "max_target_length",
        ),
        _OF_DPO,
    ),
    **dict.fromkeys(("label_smoothing", "is_encoder_decoder", "reference_free", "use_weighting"), _OF_DPO),
    **dict.fromkeys(
        ("predict_with_generate", "generation_max_length", "generation_num_beams", "sortish_sampler"),
        _OF_SEQ2SEQ,
    ),
    "use_legacy_prediction_loop": "transformers removed it. Leave it out",
    "mixed_precision": "Give bf16 or fp16",
    # scripts, such as open-r1's
    "dataset_configs": "Give dataset_config, the name of one; of several data sets, datasets",
    "dataset_mixture": "Give datasets, a list of path, name, split, columns and fraction",
    "dataset_prompt_column": "Rename the column of the prompts to 'prompt'",
    "system_prompt": "Put a message of the role 'system' first in each row's 'prompt'",
    "chat_template": "Save a tokenizer with this chat_template beside the model; in Python give it as processing_class",
    "tokenizer_name_or_path": "The tokenizer is the model's. In Python give another one as processing_class",
    "benchmarks": "It belongs to a script. Evaluate with `srpo-trl eval`",
    "wandb_project": f"{_OF_WANDB} WANDB_PROJECT",
    "wandb_entity": f"{_OF_WANDB} WANDB_ENTITY",
    "wandb_run_group": f"{_OF_WANDB} WANDB_RUN_GROUP",
    **dict.fromkeys(("push_to_hub_revision", "overwrite_hub_revision"), _OF_PUSHING),
    **dict.fromkeys(
        (
            *("cosine_min_value_wrong", "cosine_max_value_wrong", "cosine_min_value_correct"),
            *("cosine_max_value_correct", "cosine_max_len", "repetition_n_grams", "repetition_max_penalty"),
            *("code_language", "code_provider", "code_eval_test_batch_size", "parallel_code_exec_per_proc"),
            *(
                "ioi_provider",
                "e2b_router_url",
                "morph_router_url",
                "max_completion_len",
                "soft_punish_cache",
            ),
        ),
        _OF_REWARD,
    ),
    # verl, OpenRLHF, ms-swift
    "prompt_max_len": _DROP_LONG,
    "clip_ratio": "Give epsilon and epsilon_high",
    "advantage_estimator": "Give method and scale_rewards",
    "loss_agg_mode": "Give loss_type",
    "train_batch_size": "Give per_device_train_batch_size, gradient_accumulation_steps and num_generations",
    "rollout_batch_size": "Give generation_batch_size",
    "ppo_mini_batch_size": "Give per_device_train_batch_size and gradient_accumulation_steps",
    "num_ppo_epochs": "Give num_iterations",
    "reward_fn": "Give reward_funcs",
    "tuner_type": "Give use_peft",
    "train_type": "Give use_peft",
    "sleep_level": "Give vllm_enable_sleep_mode",
}

# Options of `srpo-trl train` that are no options of `SRPOConfig`: what they are in Python.
IN_PYTHON = {
    "dtype": "model_init_kwargs={'dtype': ...}",
    "attn_implementation": "model_init_kwargs={'attn_implementation': ...}",
    "model_revision": "model_init_kwargs={'revision': ...}",
    "model_name_or_path": "SRPOTrainer(model=...)",
    "dataset_name": "SRPOTrainer(train_dataset=...)",
    "dataset_config": "SRPOTrainer(train_dataset=...)",
    "reward_funcs": "SRPOTrainer(reward_funcs=...)",
    "use_peft": "SRPOTrainer(peft_config=...)",
    "lora_r": "SRPOTrainer(peft_config=peft.LoraConfig(r=...))",
    "lora_alpha": "SRPOTrainer(peft_config=peft.LoraConfig(lora_alpha=...))",
    "lora_dropout": "SRPOTrainer(peft_config=peft.LoraConfig(lora_dropout=...))",
    "lora_target_modules": "SRPOTrainer(peft_config=peft.LoraConfig(target_modules=...))",
    "lora_modules_to_save": "SRPOTrainer(peft_config=peft.LoraConfig(modules_to_save=...))",
    "use_dora": "SRPOTrainer(peft_config=peft.LoraConfig(use_dora=True))",
    "use_rslora": "SRPOTrainer(peft_config=peft.LoraConfig(use_rslora=True))",
    "lora_target_parameters": "SRPOTrainer(peft_config=peft.LoraConfig(target_parameters=...))",
    "lora_task_type": "SRPOTrainer(peft_config=peft.LoraConfig(task_type=...))",
    "bnb_4bit_quant_type": "SRPOTrainer(quantization_config=transformers.BitsAndBytesConfig(bnb_4bit_quant_type=...))",
    "bnb_4bit_quant_storage": "SRPOTrainer(quantization_config=transformers.BitsAndBytesConfig("
    "bnb_4bit_quant_storage=...))",
    "use_bnb_nested_quant": "SRPOTrainer(quantization_config=transformers.BitsAndBytesConfig("
    "bnb_4bit_use_double_quant=True))",
    "dataset_train_split": "SRPOTrainer(train_dataset=...)",
    "dataset_test_split": "SRPOTrainer(eval_dataset=...)",
    "load_in_4bit": "SRPOTrainer(quantization_config=transformers.BitsAndBytesConfig(load_in_4bit=True))",
    "load_in_8bit": "SRPOTrainer(quantization_config=transformers.BitsAndBytesConfig(load_in_8bit=True))",
}

# Arguments of the trainer that are given as options, and under which name it takes them.
AS_ARGUMENTS = {
    "train_dataset": "train_dataset",
    "eval_dataset": "eval_dataset",
    "processing_class": "processing_class",
    "tokenizer": "processing_class",
    "reward_processing_classes": "reward_processing_classes",
    "callbacks": "callbacks",
    "optimizers": "optimizers",
    "quantization_config": "quantization_config",
    "peft_config": "peft_config",
    "tools": "tools",
    "rollout_func": "rollout_func",
    "environment_factory": "environment_factory",
    "reward_model": "reward_funcs",
    "reward_functions": "reward_funcs",
}

# Arguments that the trainer does not take.
ARGUMENTS = {
    "tokenizer": "It is called processing_class now.",
    "config": "It is called args.",
    "reward_model": "Give reward models as reward_funcs.",
    "reward_function": "It is called reward_funcs.",
    "reward_functions": "It is called reward_funcs.",
    "ref_model": "With args.beta above 0 TRL loads the reference by the model's name. Leave it out.",
    "reference_model": "With args.beta above 0 TRL loads the reference by the model's name. Leave it out.",
    "teacher_model": "Give it in args: SRPOConfig(teacher_model=...), with a method that has an external teacher; the "
    "self-teacher is made from the model (teacher_model_kind).",
    "data_collator": "Rows reach the trainer as they are. Leave it out.",
    "compute_metrics": "Metrics come from reward functions, which may call log_metric. Leave it out.",
    "preprocess_logits_for_metrics": "Metrics come from reward functions. Leave it out.",
    "model_init": "Give the model itself as model.",
    "compute_loss_func": "The loss is args.loss_type and args.method. Leave it out.",
    "optimizer_cls_and_kwargs": "Give args.optim and args.optim_args, or optimizers.",
    "formatting_func": "It belongs to supervised fine-tuning. Give a column 'prompt'.",
    "dataset_text_field": "It belongs to supervised fine-tuning. Rename the column of the prompts to 'prompt'.",
    "model_init_kwargs": "It is an option: SRPOConfig(model_init_kwargs=...).",
}


def what_became_of(name: str, known: Collection[str]) -> str:
    """Return what to do about an option that does not exist; empty where no known one is near.

    Args:
        name: as it was given; dashes count as underscores.
        known: the options there are.
    """
    name = name.replace("-", "_")
    if name in REPLACED:
        return f"{REPLACED[name]}."
    new = RENAMED.get(name, name)
    if new in known:
        of_share = ", which takes a share of the steps below 1" if name == "warmup_ratio" else ""
        return f"It is called {new}{of_share}."
    if new in IN_PYTHON:
        return f"Give {IN_PYTHON[new]}."
    if name in AS_ARGUMENTS and AS_ARGUMENTS[name] not in known:
        return f"It is an argument of the trainer: SRPOTrainer({AS_ARGUMENTS[name]}=...)."
    near = get_close_matches(name, known, n=1)
    return f"Did you mean {near[0]}?" if near else ""


def unknown_option(name: str, known: Collection[str]) -> str:
    """Return the message for a name that is no option."""
    return f"{name} is not an option. {what_became_of(name, known)}".rstrip()


def unknown_argument(name: str, known: Collection[str], config: type) -> str:
    """Return the message for a name that is no argument of the trainer, whose options `config` has as fields."""
    options = {field.name for field in fields(config)}
    if name in options:
        remedy = f"It is an option: args={config.__name__}({name}=...)."
    else:
        is_former_option = name in REPLACED or name in RENAMED
        remedy = ARGUMENTS.get(name) or what_became_of(name, options if is_former_option else known)
    return f"{name} is not an argument. {remedy}".rstrip()


def explains_unknown_options(config: Config) -> Config:
    """Let a dataclass of options name every keyword that it does not take, with its remedy, in one TypeError."""
    known = list(signature(config.__init__).parameters)[1:]  # type: ignore[misc]
    config.__init__ = _explaining(config.__init__, known, unknown_option)  # type: ignore[misc]  # of this class alone
    return config


def explains_unknown_arguments(config: type) -> Callable[[Function], Function]:
    """Let a trainer's `__init__` do the same for its arguments; the fields of `config` are options."""
    return lambda initialize: _explaining(
        initialize, list(signature(initialize).parameters)[1:], partial(unknown_argument, config=config)
    )


def _explaining(
    initialize: Function, known: Collection[str], message: Callable[[str, Collection[str]], str]
) -> Function:
    @wraps(initialize)
    def explaining(self: Any, *args: Any, **given: Any) -> None:
        problems = [message(name, known) for name in given if name not in known]
        if problems:
            head = f"{type(self).__name__} got {len(problems)} unexpected keyword(s):"
            raise TypeError("\n- ".join([head, *problems]))
        initialize(self, *args, **given)

    return explaining  # type: ignore[return-value]
