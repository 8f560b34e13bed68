"""Every name of TRL's and transformers' inside that this package relies on, in one place.

`GRPOTrainer` is extended by overriding a few of its methods and by reading a few of its attributes. All of them
are listed here and checked at import, so that a TRL release that moves one breaks here, with a clear message,
and nowhere else.
"""

import inspect

import trl
from packaging.version import Version
from transformers.trainer_utils import rotate_checkpoints
from trl import GRPOTrainer
from trl.trainer.grpo_trainer import EnvironmentFactory, RewardFunc, RolloutFunc
from trl.trainer.utils import (
    FusedCausalLMOutput,
    RepeatSampler,
    add_fused_lm_head,
    get_callable_name,
    get_config_model_id,
    maybe_gather_lm_head_ctx,
)

__all__ = [
    "EnvironmentFactory",
    "FusedCausalLMOutput",
    "RepeatSampler",
    "RewardFunc",
    "RolloutFunc",
    "add_fused_lm_head",
    "check",
    "get_callable_name",
    "get_config_model_id",
    "maybe_gather_lm_head_ctx",
    "rotate_checkpoints",
]

SUPPORTED_TRL = ("1.16.0", "2.0.0")  # from, below

# Methods that SRPOTrainer overrides or calls, with the parameters it relies on.
METHODS: dict[str, tuple[str, ...]] = {
    "_prepare_inputs": ("self", "generation_batch"),
    "_generate": ("self", "prompts"),
    "_generate_and_score_completions": ("self", "inputs"),
    "_calculate_rewards": ("self", "inputs", "prompts", "completions", "completion_ids_list"),
    "_log_completion_extra": ("self", "column", "values"),
    "_compute_loss": ("self", "model", "inputs"),
    "_get_train_sampler": ("self", "dataset"),
    "get_batch_samples": ("self", "epoch_iterator", "num_batches", "device"),
    "training_step": ("self", "model", "inputs", "num_items_in_batch"),
    "log": ("self", "logs", "start_time"),
    "evaluate": ("self", "eval_dataset", "ignore_keys", "metric_key_prefix"),
    "_save_checkpoint": ("self", "model", "trial"),
    "_get_output_dir": ("self", "trial"),
    "_push_from_checkpoint": ("self", "checkpoint_folder"),
    "_load_optimizer_and_scheduler": ("self", "checkpoint"),
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
    "num_generations",
    "reward_func_names",
    "reward_weights",
    "tools",
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
        found = tuple(inspect.signature(method).parameters)[: len(parameters)]
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
