"""Checks of the trainer's arguments against each other, made before a model is loaded where that is possible."""

import functools
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from inspect import signature
from typing import TYPE_CHECKING, Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, is_peft_model
from datasets import Dataset, Value
from torch import nn
from transformers.utils import is_torch_bf16_gpu_available
from trl import GRPOConfig, GRPOTrainer

from srpo_trl.config import SRPOConfig
from srpo_trl.config.teachers import unknown_teacher
from srpo_trl.host.argument_types import check_each_argument
from srpo_trl.host.datasets import context_problems, dataset_problems
from srpo_trl.host.staging import unwritable
from srpo_trl.seams.parameters import is_zero3, shards_parameters
from srpo_trl.seams.trl import get_callable_name, get_config_model_id

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

_REMEDY = "Use method='grpo' there, or"
_SAVED_HEAD = "modules_to_save=['lm_head'] trains a whole copy of it."


def bound_arguments(args: Sequence[Any], keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a trainer by `GRPOTrainer`'s names, checked before a model is loaded.

    Args:
        args, keywords: what the trainer was called with.
    Raises:
        TypeError: an argument is missing or unknown, or `args` is not an `SRPOConfig`.
        ValueError: wrong arguments, or some that do not fit together, all in one message.
    """
    bound = signature(GRPOTrainer).bind(*args, **keywords)
    bound.apply_defaults()
    arguments = bound.arguments
    check_each_argument(arguments)
    if isinstance(arguments["model"], str):
        arguments["model"] = os.path.expanduser(arguments["model"])
    if arguments["args"] is None:
        arguments["args"] = default_config(arguments["model"])
    if isinstance(arguments["args"], GRPOConfig) and not isinstance(arguments["args"], SRPOConfig):
        arguments["args"] = _taken_over(arguments["args"])
    config = arguments["args"]
    if not isinstance(config, SRPOConfig):
        raise TypeError(
            f"args is a {type(config).__name__}; SRPOTrainer needs an srpo_trl.SRPOConfig, which has every option "
            "of trl.GRPOConfig, or a trl.GRPOConfig."
        )
    problems = list(_combined_problems(config, arguments))
    if problems:
        raise ValueError("\n".join(problems))
    check_reference_model(config.beta, arguments["model"], arguments["peft_config"])
    if config.bf16 and config.process_index == 0 and config.device.type == "cuda":
        _warn_of_slow_bfloat16(config.device)
    return arguments


@functools.cache  # once a process
def _warn_of_slow_bfloat16(device: torch.device) -> None:
    """Warn where torch says that a GPU has bfloat16 and emulates it."""
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        logger.warning(
            "bf16=True, TRL's default, but %s (compute capability %d.%d) has no arithmetic in bfloat16: torch emulates "
            "it, slowly. Set bf16=False, fp16=True.",
            torch.cuda.get_device_name(device),
            major,
            minor,
        )


def _taken_over(args: GRPOConfig) -> SRPOConfig:
    """Return a script's configuration with all its values, and say that TRL's defaults are among them."""
    if args.process_index == 0:
        logger.warning(
            "args is a %s, taken as SRPOConfig.from_grpo(args): what it has is kept, TRL's defaults too, such as "
            "learning_rate=%g and scale_rewards=%r. SRPOConfig(...) has the paper's.",
            type(args).__name__,
            args.learning_rate,
            args.scale_rewards,
        )
    return SRPOConfig.from_grpo(args)


def default_config(model: "str | PreTrainedModel | PeftModel") -> SRPOConfig:
    """Return the configuration of a trainer that is given none, named after the model as TRL does.

    Its precision is one that the machine computes in: float16 on GPUs before Ampere, float32 where there is no GPU.
    """
    model_id = model if isinstance(model, str) else get_config_model_id(model.config)
    is_old_gpu = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] < 8
    has_bf16 = is_torch_bf16_gpu_available() and not is_old_gpu
    use_cpu = not (has_bf16 or is_old_gpu)
    return SRPOConfig(f"{model_id.split('/')[-1]}-SRPO", bf16=has_bf16, fp16=is_old_gpu, use_cpu=use_cpu)


def _combined_problems(config: SRPOConfig, arguments: Mapping[str, Any]) -> Iterator[str]:
    """Yield which arguments do not fit together."""
    rewards, train_dataset = _reward_list(arguments["reward_funcs"]), arguments["train_dataset"]
    has_environment = arguments["environment_factory"] is not None
    if not has_environment:  # which can bring reward functions of its own
        yield from correctness_problems(config.correctness_reward, list(map(_reward_name, rewards)))
    yield from dataset_problems(
        train_dataset,
        arguments["eval_dataset"],
        rewards,
        drops_unused=bool(config.remove_unused_columns),
        read_columns=config.read_columns,
        is_evaluated=config.samples_evaluation and config.eval_strategy != "no",
        has_environment=has_environment,
        has_rollout_func=arguments["rollout_func"] is not None,
    )
    if isinstance(train_dataset, Dataset) and config.teacher_column in train_dataset.column_names:
        yield from _teacher_column_problems(train_dataset, str(config.teacher_column), config.teacher_models)
    if arguments["rollout_func"] is None and config.method_record.reads_stored:
        yield (
            f"method={config.method!r} reads stored log-probabilities, which come with stored rollouts: give "
            "srpo_trl.rollout.offline.offline_rollouts(rows) as rollout_func."
        )
    if config.remove_unused_columns:
        for reader in config.read_columns.values():
            yield f"remove_unused_columns=True would drop {reader}; set it to False."
    if config.resample_failed_frac and train_dataset is not None and not hasattr(train_dataset, "__len__"):
        yield (
            f"resample_failed_frac={config.resample_failed_frac!r} needs a dataset whose rows can be looked up, not an "
            f"{type(train_dataset).__name__}; load it whole, or set it to 0."
        )
    if arguments["peft_config"] is not None and not config.method_record.is_plain:
        yield from adapter_problems(arguments["peft_config"])
    reason = unwritable(str(config.output_dir)) if config.save_strategy != "no" else ""
    if reason:
        yield (
            f"output_dir={config.output_dir!r} cannot take checkpoints: {reason}. Give another folder, or set "
            "save_strategy='no'."
        )


def _teacher_column_problems(rows: Dataset, column: str, teachers: Mapping[str, str]) -> Iterator[str]:
    kind = rows.features[column]
    if not (isinstance(kind, Value) and "string" in kind.dtype):
        yield (
            f"teacher_column={column!r} holds {kind}, not text; it must name one of "
            f"{', '.join(map(repr, teachers))} in each row."
        )
    elif problem := unknown_teacher(column, rows.unique(column), teachers):
        yield problem


def _reward_list(reward_funcs: Any) -> list[Any]:
    functions = reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]
    return [function for function in functions if function is not None]


def _reward_name(function: Any) -> str:
    """Return the name that TRL gives to a reward function."""
    if isinstance(function, str):
        return function.split("/")[-1]
    if isinstance(function, nn.Module):
        return get_config_model_id(function.config).split("/")[-1]  # type: ignore[arg-type]
    return get_callable_name(function)


def correctness_problems(correctness_reward: str | None, names: Sequence[str]) -> Iterator[str]:
    """Yield whether `correctness_reward` is given and names not exactly one of the reward functions."""
    if correctness_reward is not None and list(names).count(correctness_reward) != 1:
        yield (
            f"correctness_reward={correctness_reward!r} must name exactly one reward function; the trainer has "
            f"{', '.join(map(repr, names)) or 'none'}."
        )


def check_reference_model(beta: float, model: Any, peft_config: Any) -> None:
    """Raise ValueError where a KL penalty needs a reference model that TRL could load from nowhere."""
    is_named = isinstance(model, str) or bool(get_config_model_id(model.config))
    if beta != 0.0 and not is_named and peft_config is None and not is_peft_model(model):
        raise ValueError(
            f"beta={beta!r} needs a reference model, which TRL loads by the model's name, and the model given has "
            "none: it was made in memory. Save it and give the folder as `model`, or set beta=0."
        )


def adapter_problems(config: "PeftConfig") -> Iterator[str]:
    """Yield why an adapter cannot be trained by self-distillation, as far as its configuration says."""
    if config.is_prompt_learning:
        yield (
            "The adapter learns a prompt, which would not stand in the teacher's pass. "
            f"{_REMEDY} train a LoRA adapter."
        )
    targets = getattr(config, "target_modules", None) or ()
    if not isinstance(targets, str) and any(name.split(".")[-1] == "lm_head" for name in targets):
        yield (
            f"The adapter's target_modules={sorted(targets)} hold the LM head, whose adapter TRL's fused LM head does "
            f"not read. Leave it out, as target_modules='all-linear' does; {_SAVED_HEAD}"
        )


def refuse_unsupported(
    model: nn.Module,
    accelerator: Accelerator,
    *,
    max_completion_length: int | None,
    gradient_share_steps: int | None = None,
    reads_images: bool = False,
    columns: Sequence[str] = (),
) -> None:
    """Raise ValueError where the teacher cannot be built, rather than train with another one.

    Args:
        model: the student.
        accelerator: whose engine may keep parameters in shards.
        max_completion_length, gradient_share_steps: the options.
        reads_images: whether the student is a vision-language model.
        columns: of the dataset that hold whole prompts of scorers.
    """
    _refuse_engines(accelerator)
    for problem in context_problems(model.config, max_completion_length):  # type: ignore[arg-type]
        raise ValueError(problem)
    if gradient_share_steps and shards_parameters(accelerator):
        raise ValueError(
            f"gradient_share_steps={gradient_share_steps} differentiates by whole parameters, which FSDP and "
            "ZeRO-3 do not keep. Leave it out, or measure under DDP or ZeRO-1/2."
        )
    if reads_images and columns:
        raise ValueError(
            f"The method reads whole prompts from the column(s) {', '.join(map(repr, columns))}, which have no images, "
            "but the model is a vision-language model. Take another method, or a text model."
        )
    if reads_images and shards_parameters(accelerator):
        raise ValueError(
            "Self-distillation does not run a vision-language model under FSDP or ZeRO-3: a rank whose teacher pass "
            "has no images would leave the others waiting in the vision tower. Use DDP or ZeRO-1/2."
        )
    if is_peft_model(model):
        adapters = cast("PeftModel", model)
        configs = [adapters.peft_config[name] for name in adapters.active_adapters]
        problems = [problem for config in configs for problem in adapter_problems(config)]
        if problems:
            raise ValueError("\n".join(problems))
    base = cast("PeftModel", model).get_base_model() if is_peft_model(model) else model
    refuse_adapted_head(cast("PreTrainedModel", base))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("The model has no trainable parameter.")


def refuse_adapted_head(student: "PreTrainedModel") -> None:
    """Raise ValueError where the LM head is in an adapter, by a pattern, say, or tied to an embedding that is adapted.

    A copy of it in `modules_to_save` is what both the model's forward and TRL's fused LM head read.
    """
    kind = type(student.get_output_embeddings())
    if kind.__module__.startswith("peft.") and kind.__name__ != "ModulesToSaveWrapper":
        raise ValueError(
            f"The adapter wraps the LM head in a {kind.__name__}, which TRL's fused LM head does not read. Leave the "
            f"LM head, and embeddings that are tied to it, out of the adapter; {_SAVED_HEAD}"
        )


def _refuse_engines(accelerator: Accelerator) -> None:
    """Raise ValueError where the engine keeps parameters in a way that the teacher's values cannot follow."""
    if accelerator.distributed_type == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise ValueError(
            "Self-distillation does not run under FSDP version 1, whose flattened parameters the teacher does not "
            "follow. Set fsdp_version: 2 in the accelerate config."
        )
    if not is_zero3(accelerator):
        return
    zero = accelerator.state.deepspeed_plugin.deepspeed_config["zero_optimization"]
    if (zero.get("offload_param") or {}).get("device") == "nvme":
        raise ValueError(
            "Self-distillation does not run with parameters offloaded to NVMe: teacher and student weights are swapped "
            "in memory. Set offload_param's device to 'cpu' or 'none'."
        )
    if zero.get("zero_hpz_partition_size", 1) > 1 or zero.get("mics_shard_size", -1) > 0:
        raise ValueError(
            "Self-distillation does not run with a second partition of the parameters (zero_hpz_partition_size, "
            "mics_shard_size): a teacher pass would gather the student's. Leave these options out."
        )
