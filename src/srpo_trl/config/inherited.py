"""What can be wrong with the options that `SRPOConfig` inherits from TRL and transformers.

Both check few of them at construction; the others fail in the middle of a run, or change it without a word. Types are
read from the options' own annotations, choices from their enums; ranges stand here.
"""

import functools
import json
import math
import os
import types
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any, get_type_hints

from transformers.trainer_pt_utils import AcceleratorConfig
from trl import GRPOConfig

from srpo_trl.config.option_types import choices_of, described, is_of

if TYPE_CHECKING:
    from srpo_trl.config import SRPOConfig

MAX_COUNT = 2**31 - 1  # of anything that is counted, rollouts of a batch included
TEMPERATURES = 1e-4, 1e4  # logits are divided by them in float32
MAX_LEARNING_RATE = 100.0  # weights are of order 1; a few larger steps overflow them


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, without the bounds that are open; never NaN."""

    low: float
    high: float
    open_low: bool = False
    open_high: bool = False

    def holds(self, value: float) -> bool:
        """Return whether the number lies inside."""
        is_above = self.low < value if self.open_low else self.low <= value
        return is_above and (value < self.high if self.open_high else value <= self.high)

    def __str__(self) -> str:
        low = f"above {self.low:g}" if self.open_low else f"at least {self.low:g}"
        return f"{low} and {'below' if self.open_high else 'at most'} {self.high:g}"


ANY_NUMBER = Range(-1e30, 1e30)
NOT_NEGATIVE = Range(0.0, 1e30)
POSITIVE = Range(0.0, 1e30, open_low=True)
SHARE = Range(0.0, 1.0)
COUNT = Range(1, MAX_COUNT)
COUNT_FROM_ZERO = Range(0, MAX_COUNT)

RANGES: dict[str, Range] = {
    # rollouts
    "num_generations": Range(2, MAX_COUNT),
    "num_generations_eval": COUNT,
    "generation_batch_size": COUNT,
    "steps_per_generation": COUNT,
    "num_iterations": COUNT,
    "max_completion_length": COUNT,
    "max_tool_calling_iterations": COUNT_FROM_ZERO,
    "num_completions_to_print": COUNT_FROM_ZERO,
    "temperature": Range(*TEMPERATURES),
    "top_p": Range(0.0, 1.0, open_low=True),
    "min_p": SHARE,
    "repetition_penalty": POSITIVE,
    # policy loss
    "beta": NOT_NEGATIVE,
    "epsilon": NOT_NEGATIVE,
    "epsilon_high": NOT_NEGATIVE,
    "delta": POSITIVE,
    "sapo_temperature_neg": POSITIVE,
    "sapo_temperature_pos": POSITIVE,
    "vespo_k_pos": NOT_NEGATIVE,
    "vespo_k_neg": NOT_NEGATIVE,
    "vespo_lambda_pos": NOT_NEGATIVE,
    "vespo_lambda_neg": NOT_NEGATIVE,
    "router_aux_loss_coef": NOT_NEGATIVE,
    "top_entropy_quantile": SHARE,
    "ref_model_mixup_alpha": SHARE,
    "ref_model_sync_steps": COUNT,
    "pad_to_multiple_of": Range(1, 65536),
    "vllm_importance_sampling_clip_max": Range(0.0, math.inf, open_low=True),
    "vllm_importance_sampling_clip_min": NOT_NEGATIVE,
    "vllm_importance_sampling_cap": Range(0.0, math.inf, open_low=True),
    # vLLM
    "vllm_server_port": Range(1, 65535),
    "vllm_group_port": Range(1, 65535),
    "vllm_server_timeout": POSITIVE,
    "vllm_gpu_memory_utilization": Range(0.0, 1.0, open_low=True),
    "vllm_max_model_length": COUNT,
    "vllm_tensor_parallel_size": COUNT,
    # optimizer
    "per_device_train_batch_size": COUNT,
    "gradient_accumulation_steps": COUNT,
    "learning_rate": Range(0.0, MAX_LEARNING_RATE),
    "weight_decay": Range(0.0, MAX_LEARNING_RATE),
    "adam_beta1": Range(0.0, 1.0, open_high=True),
    "adam_beta2": Range(0.0, 1.0, open_high=True),
    "adam_epsilon": Range(0.0, 1.0, open_low=True),
    "max_grad_norm": Range(0.0, math.inf),  # 0: no clipping
    "warmup_steps": Range(0.0, MAX_COUNT),
    "num_train_epochs": Range(0.0, MAX_COUNT, open_low=True),
    "label_smoothing_factor": SHARE,
    "neftune_noise_alpha": NOT_NEGATIVE,
    # logging, evaluation, checkpoints
    "per_device_eval_batch_size": COUNT,
    "eval_steps": NOT_NEGATIVE,
    "eval_delay": NOT_NEGATIVE,
    "eval_accumulation_steps": COUNT,
    "save_total_limit": COUNT,
    # the process
    "seed": Range(0, 2**32 - 1),  # NumPy's
    "data_seed": Range(0, 2**32 - 1),
    "dataloader_num_workers": COUNT_FROM_ZERO,
    "dataloader_prefetch_factor": COUNT,
    "ddp_bucket_cap_mb": COUNT,
    "ddp_timeout": COUNT,
}
CHOICES: dict[str, tuple[str, ...]] = {  # of options that TRL annotates as text
    "loss_type": ("grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo"),
    "importance_sampling_level": ("token", "sequence"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
    "scale_rewards": ("group", "batch", "none"),
    "vllm_mode": ("server", "colocate"),
    "vllm_model_impl": ("vllm", "transformers"),
    "vllm_importance_sampling_mode": ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask"),
}
ALSO_TAKEN: dict[str, Any] = {  # beside the annotation
    "scale_rewards": bool,  # TRL reads True as "group", False as "none"
    "output_dir": os.PathLike,
    "resume_from_checkpoint": os.PathLike,
    "accelerator_config": AcceleratorConfig,
    "fsdp": bool | list,
    "debug": types.NoneType,  # transformers' parser gives it for an option that is left out
}
DICTIONARIES = (  # text in them is JSON, never a path
    "lr_scheduler_kwargs",
    "activation_checkpointing_kwargs",
    "gradient_checkpointing_kwargs",
    "model_init_kwargs",
    "generation_kwargs",
    "chat_template_kwargs",
    "transformers_continuous_batching_config",
)
REQUIRED = ("num_generations",)  # TRL's annotation takes None; its code does not


def inherited_problems(config: "SRPOConfig") -> dict[str, str]:
    """Return, by name, what is wrong with each inherited option alone: what was given, what is required."""
    problems = {
        name: _problem(name, getattr(config, name), annotation) for name, annotation in _annotations().items()
    }
    return {name: problem for name, problem in problems.items() if problem}


def _problem(name: str, value: Any, annotation: Any) -> str:
    """Return what is wrong with an option's value; empty where it is right."""
    if name in REQUIRED and value is None:
        return f"{name}=None must be a whole number, {RANGES[name]}."
    if name in ALSO_TAKEN and is_of(value, ALSO_TAKEN[name]):
        return ""
    if not is_of(value, annotation):
        return f"{name}={value!r} must be {described(annotation)}."
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    choices = CHOICES.get(name) or choices_of(GRPOConfig.__dataclass_fields__[name], annotation)
    allowed = RANGES.get(name, ANY_NUMBER)
    if choices and isinstance(value, str) and value not in choices:
        return f"{name}={value!r} is not one of {', '.join(map(repr, choices))}."
    if is_number and not allowed.holds(value):
        return f"{name}={value!r} must be a number, {allowed}."
    if name in DICTIONARIES and isinstance(value, str) and not _is_dictionary(value):
        return f"{name}={value!r} must be a dictionary, or one as JSON text."
    return ""


def _is_dictionary(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except json.JSONDecodeError:
        return False


@functools.cache
def _annotations() -> dict[str, Any]:
    hints = get_type_hints(GRPOConfig)
    return {name: hints[name] for name, field in GRPOConfig.__dataclass_fields__.items() if field.init}
