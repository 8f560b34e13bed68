"""Every name of TRL's and transformers' inside that this package relies on, in one place.

`GRPOTrainer` is extended by overriding a few of its methods and by reading a few of its attributes. All of them
are listed here and checked at import, so that a TRL release that moves one breaks here, with a clear message,
and nowhere else.
"""

import inspect

import trl
from packaging.version import Version
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import PrefixChange, convert_and_load_state_dict_in_model
from transformers.modeling_utils import LoadStateDictConfig
from transformers.trainer_jit_checkpoint import JITCheckpointCallback
from trl import GRPOTrainer
from trl.trainer.grpo_trainer import EnvironmentFactory, RewardFunc, RolloutFunc
from trl.trainer.utils import (
    FusedCausalLMOutput,
    RepeatSampler,
    add_fused_lm_head,
    get_callable_name,
    get_config_model_id,
    is_async_callable,
    split_pixel_values_by_grid,
    start_event_loop_in_daemon,
)

__all__ = [
    "EnvironmentFactory",
    "FusedCausalLMOutput",
    "JITCheckpointCallback",
    "LoadStateDictConfig",
    "PrefixChange",
    "RepeatSampler",
    "RewardFunc",
    "RolloutFunc",
    "add_fused_lm_head",
    "check",
    "convert_and_load_state_dict_in_model",
    "get_callable_name",
    "get_config_model_id",
    "get_model_conversion_mapping",
    "is_async_callable",
    "split_pixel_values_by_grid",
    "start_event_loop_in_daemon",
]

SUPPORTED_TRL = ("1.16.0", "1.17.0")  # from, below

# Methods that SRPOTrainer overrides or calls, with the parameters it relies on.
METHODS: dict[str, tuple[str, ...]] = {
    "_prepare_inputs": ("self", "generation_batch"),
    "_generate": ("self", "prompts"),
    "_generate_and_score_completions": ("self", "inputs"),
    "_tokenize_prompts": ("self", "prompts"),
    "_get_per_token_logps_and_entropies": ("self", "model", "input_ids"),
    "get_eval_dataloader": ("self", "eval_dataset"),
    "get_test_dataloader": ("self", "test_dataset"),
    "evaluate": ("self", "eval_dataset", "ignore_keys", "metric_key_prefix"),
    "evaluation_loop": (
        "self",
        "dataloader",
        "description",
        "prediction_loss_only",
        "ignore_keys",
        "metric_key_prefix",
    ),
    "prediction_step": ("self", "model", "inputs", "prediction_loss_only", "ignore_keys"),
    "_calculate_rewards": ("self", "inputs", "prompts", "completions", "completion_ids_list"),
    "_log_completion_extra": ("self", "column", "values"),
    "compute_loss": ("self", "model", "inputs", "return_outputs", "num_items_in_batch"),
    "_compute_loss": ("self", "model", "inputs"),
    "_get_train_sampler": ("self", "dataset"),
    "get_batch_samples": ("self", "epoch_iterator", "num_batches", "device"),
    "training_step": ("self", "model", "inputs", "num_items_in_batch"),
    "_get_grad_norm": ("self", "model", "grad_norm"),
    "log": ("self", "logs", "start_time"),
    "train": ("self", "resume_from_checkpoint"),
    "_run_epoch": ("self", "model", "epoch"),
    "_finalize_training": ("self", "trial", "num_train_samples", "start_time"),
    "_save_checkpoint": ("self", "model", "trial"),
    "_get_output_dir": ("self", "trial"),
    "_push_from_checkpoint": ("self", "checkpoint_folder"),
    "_load_optimizer_and_scheduler": ("self", "checkpoint"),
    "_load_from_checkpoint": ("self", "resume_from_checkpoint", "model"),
    "_load_best_model": ("self",),
    "_issue_warnings_after_load": ("self", "load_result"),
    "_maybe_log_save_evaluate": ("self", "tr_loss", "grad_norm", "model", "trial"),
}

# Attributes that GRPOTrainer sets and SRPOTrainer reads or writes; looked for in the source of its methods.
ATTRIBUTES = (
    "_step",
    "_buffered_inputs",
    "_metrics",
    "_pending_extra_logs",
    "_logs",
    "_tokenizer",
    "_is_vlm",
    "_env_tools",
    "_batch_environments",
    "chat_template",
    "chat_template_kwargs",
    "current_gradient_accumulation_steps",
    "environment_factories",
    "eos_token_ids",
    "generation_config",
    "max_completion_length",
    "num_generations",
    "num_generations_eval",
    "reward_func_names",
    "reward_funcs",
    "reward_weights",
    "temperature",
    "tools",
    "top_p",
    "use_transformers_continuous_batching",
    "use_vllm",
    "vllm_generation",
    "vllm_importance_sampling_correction",
)

# Keys of the batch that GRPOTrainer._generate_and_score_completions returns and _compute_loss reads.
BATCH_KEYS = (
    "prompt_ids",
    "prompt_mask",
    "completion_ids",
    "completion_mask",
    "num_items_in_batch",
    "old_per_token_logps",
    "ref_per_token_logps",
    "sampling_per_token_logps",
    "importance_sampling_ratio",
    "tool_mask",
    "pixel_values",
    "image_grid_thw",
    "image_position_ids",
    "image_sizes",
    "pixel_attention_mask",
    "spatial_shapes",
    "token_type_ids",
    "mm_token_type_ids",
    "num_images",
)


def check() -> None:
    """Raise ImportError, naming what moved, unless the installed TRL has every seam this package relies on."""
    low, high = map(Version, SUPPORTED_TRL)
    problems = []
    if not low <= Version(trl.__version__) < high:
        problems.append(f"TRL {trl.__version__} is outside the supported range >={low},<{high}")
    for name, parameters in METHODS.items():
        method = getattr(GRPOTrainer, name, None)
        if method is None:
            problems.append(f"GRPOTrainer.{name} is gone")
            continue
        found = tuple(inspect.signature(method).parameters)
        if parameters != ("self",):  # what is called with nothing must take nothing; others may take more
            found = found[: len(parameters)]
        if found != parameters:
            problems.append(f"GRPOTrainer.{name} takes {found}, expected {parameters}")
    source = inspect.getsource(GRPOTrainer)
    problems += [f"GRPOTrainer sets no self.{name}" for name in ATTRIBUTES if f"self.{name}" not in source]
    problems += [f"GRPOTrainer's batch has no {key!r}" for key in BATCH_KEYS if f'"{key}"' not in source]
    if "fused_lm_head=True" not in source:
        problems.append("GRPOTrainer does not call its fused LM head")
    if problems:
        raise ImportError(
            "srpo_trl does not fit the installed TRL:\n- "
            + "\n- ".join(problems)
            + f"\nInstall TRL >={low},<{high} with these seams, or a newer srpo-trl."
        )


check()
