"""Values of the options of `trl.GRPOConfig` that `GRPOTrainer` fails with, or takes no step with.

A value is refused for no other reason. `tests/config/test_inherited.py` gives GRPOTrainer values that are refused, and
sees it fail. What TRL and transformers refuse by themselves before a model is loaded is left to them.
"""

import json
import re
from collections.abc import Iterator, Mapping
from math import inf, nan
from numbers import Real
from sys import float_info
from typing import Any, get_type_hints

import torch
from transformers import SchedulerType, get_scheduler
from transformers.trainer_utils import IntervalStrategy, SaveStrategy
from transformers.training_args import OptimizerNames, trainer_log_levels
from transformers.utils import is_torch_bf16_gpu_available, is_torch_xla_available
from trl import GRPOConfig

from srpo_trl.config.ranges import Range, Rule, above, at_least, is_of, value_problems

NUMBER, POSITIVE, DECAY = Range(-inf, inf), above(0.0, inf), Range(0.0, 1.0, open_high=True)
FINITE, NOT_NEGATIVE = Range(-float_info.max, float_info.max), Range(0.0, float_info.max)
COUNTS = ("steps_per_generation", "generation_batch_size", "num_iterations", "per_device_train_batch_size")
RANGES: dict[str, Range] = {
    **dict.fromkeys((*COUNTS, "gradient_accumulation_steps"), at_least(1)),
    **dict.fromkeys(("epsilon", "epsilon_high", "delta"), NUMBER),
    **dict.fromkeys(("max_steps", "weight_decay", "entropy_coef"), FINITE),
    **dict.fromkeys(("beta", "learning_rate", "warmup_steps", "neftune_noise_alpha"), NOT_NEGATIVE),
    **{"temperature": POSITIVE, "repetition_penalty": POSITIVE, "min_p": Range(0.0, 1.0)},
    **{"num_generations": at_least(2), "seed": Range(0, 2**32 - 1), "dataloader_num_workers": at_least(0)},
}
VESPO = dict.fromkeys(("vespo_k_pos", "vespo_k_neg", "vespo_lambda_pos", "vespo_lambda_neg"), NUMBER)
SAPO = dict.fromkeys(("sapo_temperature_pos", "sapo_temperature_neg"), FINITE)
ADAM = {"adam_beta1": DECAY, "adam_beta2": DECAY, "adam_epsilon": Range(0.0, inf)}
EVALUATION = {"num_generations_eval": at_least(0), "per_device_eval_batch_size": at_least(1)}
LOOSE = dict.fromkeys(("top_p", "top_entropy_quantile"), Range(0.0, inf))  # NaN and fractions, too
LOOSE |= {"max_completion_length": POSITIVE, "max_grad_norm": NUMBER}
NONE_TOO = ("top_k", "top_p", "repetition_penalty", "max_completion_length")
CHOICES: dict[str, tuple[Any, ...]] = {
    "loss_type": tuple("grpo dr_grpo dapo bnpo cispo sapo luspo vespo".split()),  # noqa: SIM905
    "importance_sampling_level": ("token", "sequence"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
    "scale_rewards": ("group", "batch", "none", True, False),
    "optim": tuple(kind.value for kind in OptimizerNames),
    "lr_scheduler_type": tuple(kind.value for kind in SchedulerType),
    "save_strategy": tuple(kind.value for kind in SaveStrategy),
    **dict.fromkeys(("eval_strategy", "logging_strategy"), tuple(kind.value for kind in IntervalStrategy)),
    **dict.fromkeys(("log_level", "log_level_replica"), tuple(trainer_log_levels)),
}
TEMPLATE_KEYS = ("tools", "chat_template", "add_generation_prompt", "tokenize", "return_dict")
SET_BY_TRL: dict[str, dict[str, Any]] = {  # keys, each with the one value that does no harm
    **{"chat_template_kwargs": dict.fromkeys(TEMPLATE_KEYS, nan), "lr_scheduler_kwargs": {}},
    "generation_kwargs": {"num_return_sequences": 1},
}
# GRPOConfig computes with values before it looks at them, so that a wrong one shows as any of these; the error is
# reported beside our own.
TRL_ERRORS = (
    ValueError,
    TypeError,
    OSError,
    AttributeError,
    ArithmeticError,
    LookupError,
    NotImplementedError,
)
ANNOTATIONS: dict[str, Any] = get_type_hints(GRPOConfig) | {"num_generations": int}


def inherited_problems(values: Mapping[str, Any]) -> dict[str, str]:
    """Return, by name, what is wrong with each inherited option alone: what was given, what is required."""
    ranges = RANGES | ({} if values["use_vllm"] else {"top_k": at_least(0)})
    ranges |= SAPO if values["loss_type"] == "sapo" else {}
    ranges |= ADAM if "adam" in str(values["optim"]).lower() else {}
    ranges |= EVALUATION if values["eval_strategy"] != "no" else {}
    names = [name for name in ranges if values[name] is not None or name not in NONE_TOO]
    numbers = {name: int(v) if isinstance(v := values[name], bool) else v for name in names}
    problems = value_problems(numbers, {name: ANNOTATIONS[name] for name in names}, ranges)
    for name, allowed in (LOOSE | (VESPO if values["loss_type"] == "vespo" else {})).items():
        value = values[name]
        is_number = isinstance(value, Real) and (value != value or allowed.holds(value))
        if not is_number and not (value is None and name in NONE_TOO):
            problems[name] = f"{name}={value!r} must be a number, {allowed}."
    for name, choices in CHOICES.items():
        if values[name] not in choices:
            problems[name] = f"{name}={values[name]!r} is not one of {', '.join(map(repr, choices))}."
    for name, keys in SET_BY_TRL.items():
        given = _dictionary(values[name])
        taken = [key for key, value in (given or {}).items() if key in keys and value != keys[key]]
        if given is None:
            problems[name] = f"{name}={values[name]!r} must be a dictionary, or one as JSON text."
        elif taken:
            problems[name] = f"{name} has {', '.join(taken)}, which TRL sets by itself. Leave them out."
    return problems


def _dictionary(value: Any) -> dict[str, Any] | None:
    """Return an option's dictionary, which may be JSON text; None where it is none."""
    try:
        given = json.loads(value) if isinstance(value, str) else value or {}
    except ValueError:
        return None
    return given if isinstance(given, dict) else None


def _epochs(max_steps: int, num_train_epochs: Any) -> Iterator[str]:
    if max_steps <= 0 and not (isinstance(num_train_epochs, Real) and FINITE.holds(num_train_epochs)):
        yield f"num_train_epochs={num_train_epochs!r} must be a number, or max_steps above 0."


def _sapo(loss_type: str, sapo_temperature_pos: float, sapo_temperature_neg: float) -> Iterator[str]:
    if loss_type == "sapo" and 0 in (sapo_temperature_pos, sapo_temperature_neg):
        yield "sapo_temperature_pos and sapo_temperature_neg, which divide, must not be 0."


def _padding(pad_to_multiple_of: Any) -> Iterator[str]:
    is_text = re.fullmatch(r"auto|none|null|-?0*[1-9]\d*", str(pad_to_multiple_of).lower())
    if not is_text and not (isinstance(pad_to_multiple_of, Real) and pad_to_multiple_of):
        yield f"pad_to_multiple_of={pad_to_multiple_of!r} must be a whole number other than 0, 'auto' or None."


def _reference_model(sync_ref_model: bool, beta: float, ref_model_sync_steps: Any) -> Iterator[str]:
    if sync_ref_model and beta == 0.0:
        yield "sync_ref_model=True has no reference model to move with beta=0. Give beta above 0, or leave it out."
    if sync_ref_model and not ref_model_sync_steps:
        yield f"ref_model_sync_steps={ref_model_sync_steps!r} must be a whole number of at least 1."


def _workers(
    dataloader_num_workers: int, dataloader_persistent_workers: Any, dataloader_multiprocessing_context: Any
) -> Iterator[str]:
    if not dataloader_num_workers and (dataloader_persistent_workers or dataloader_multiprocessing_context):
        options = "dataloader_persistent_workers and dataloader_multiprocessing_context"
        yield f"{options} need dataloader_num_workers of at least 1, or leave them out."


def _lists(reward_weights: Any, report_to: Any, optim_args: Any) -> Iterator[str]:
    is_list = isinstance(reward_weights, list | tuple) and all(isinstance(w, Real) for w in reward_weights)
    if reward_weights is not None and not is_list:
        yield f"reward_weights={reward_weights!r} must be a list of numbers, or None."
    if not is_of(report_to, ANNOTATIONS["report_to"]):
        yield f"report_to={report_to!r} must be text or a list of texts."
    if optim_args and not re.fullmatch(r"[^=,]*=[^=,]*(,[^=,]*=[^=,]*)*", str(optim_args)):
        yield f"optim_args={optim_args!r} must be 'name=value,name=value'."


def _schedule(lr_scheduler_type: Any, lr_scheduler_kwargs: Any, learning_rate: float) -> Iterator[str]:
    """Make the schedule on trial: it checks its own arguments, but is made after the model is loaded."""
    kind, given = SchedulerType(lr_scheduler_type), _dictionary(lr_scheduler_kwargs)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=learning_rate)
    try:
        get_scheduler(kind, optimizer, 0, 1, given)
    except (TypeError, ValueError, ArithmeticError) as error:
        options = f"lr_scheduler_kwargs={given!r} and learning_rate={learning_rate!r}"
        yield f"lr_scheduler_type={kind.value!r} does not go with {options}: {error}"


def bfloat16_is_there(bf16: Any, fp16: Any, bf16_full_eval: Any, use_cpu: Any) -> Iterator[str]:
    """Yield whether bfloat16, TRL's default, is asked for where nothing computes in it, and what to give instead."""
    is_default = bf16 is None and not fp16
    if use_cpu or not (bf16 or bf16_full_eval or is_default):
        return
    if is_torch_bf16_gpu_available() or is_torch_xla_available():
        return
    name = "bf16_full_eval" if bf16_full_eval and not (bf16 or is_default) else "bf16"
    asked = f"{name}=True{', the default,' if is_default else ''} needs a GPU with bfloat16"
    others = ", bf16_full_eval=False" if bf16_full_eval else ""
    if torch.accelerator.is_available():
        yield (
            f"{asked}, which the one here does not have. Give fp16=True, bf16=False{others} (on the command line "
            "--fp16 true --bf16 false)."
        )
    else:
        yield (
            f"{asked}, and torch finds no GPU here. To run on the CPU, give use_cpu=True, bf16=False{others} (on the "
            "command line --use_cpu true --bf16 false)."
        )


INHERITED_RULES: tuple[Rule, ...] = (
    *(_epochs, _sapo, _padding, _reference_model, _workers, _lists, _schedule, bfloat16_is_there),
)
