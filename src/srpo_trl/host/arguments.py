"""Checks of the trainer's arguments against each other, made before a model is loaded where that is possible."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

from accelerate import Accelerator
from accelerate.utils import DistributedType, is_peft_model
from torch import nn

from srpo_trl.config import SRPOConfig
from srpo_trl.host.checkpoints import unwritable
from srpo_trl.host.datasets import context_problems, dataset_problems
from srpo_trl.seams.parameters import is_zero3, shards_parameters
from srpo_trl.seams.trl import get_callable_name, get_config_model_id

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import PreTrainedModel

_REMEDY = "Use method='grpo' there, or"
_SAVED_HEAD = "modules_to_save=['lm_head'] trains a whole copy of it."


def default_config(model: "str | PreTrainedModel | PeftModel") -> SRPOConfig:
    """Return the configuration of a trainer that is given none, named after the model as TRL does."""
    model_id = model if isinstance(model, str) else get_config_model_id(model.config)
    return SRPOConfig(f"{model_id.split('/')[-1]}-SRPO")


def check_arguments(
    args: Any,
    reward_funcs: Any,
    train_dataset: Any,
    eval_dataset: Any,
    environment_factory: Any,
    rollout_func: Any,
    peft_config: "PeftConfig | None" = None,
) -> None:
    """Refuse arguments that do not fit together.

    Raises:
        TypeError: `args` is not an `SRPOConfig`.
        ValueError: every problem found, in one message.
    """
    if not isinstance(args, SRPOConfig):
        raise TypeError(
            f"args is a {type(args).__name__}; SRPOTrainer needs an srpo_trl.SRPOConfig, which takes every option "
            "of trl.GRPOConfig."
        )
    problems = []
    if environment_factory is None:  # an environment can bring reward functions of its own
        try:
            check_correctness_reward(args, reward_names(reward_funcs))
        except ValueError as error:
            problems.append(str(error))
    problems += dataset_problems(
        args,
        train_dataset,
        eval_dataset,
        _reward_list(reward_funcs),
        has_environment=environment_factory is not None,
        has_rollout_func=rollout_func is not None,
    )
    if args.reference_column is not None and args.remove_unused_columns:
        problems.append(
            f"remove_unused_columns=True would drop reference_column={args.reference_column!r}; set it to False."
        )
    if args.resample_failed_frac and train_dataset is not None and not hasattr(train_dataset, "__len__"):
        problems.append(
            f"resample_failed_frac={args.resample_failed_frac!r} needs a dataset whose rows can be looked up, not an "
            f"{type(train_dataset).__name__}; load it whole, or set it to 0."
        )
    if peft_config is not None and not args.method_record.is_plain:
        problems += adapter_problems(peft_config)
    reason = unwritable(str(args.output_dir)) if args.save_strategy != "no" else ""
    if reason:
        problems.append(
            f"output_dir={args.output_dir!r} cannot take checkpoints: {reason}. Give another folder, or set "
            "save_strategy='no'."
        )
    if problems:
        raise ValueError("\n".join(problems))


def reward_names(reward_funcs: Any) -> list[str]:
    """Return the names that TRL gives to reward functions."""
    return [_reward_name(function) for function in _reward_list(reward_funcs)]


def _reward_list(reward_funcs: Any) -> list[Any]:
    functions = reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]
    return [function for function in functions if function is not None]


def _reward_name(function: Any) -> str:
    if isinstance(function, str):
        return function.split("/")[-1]
    if isinstance(function, nn.Module):
        return get_config_model_id(function.config).split("/")[-1]  # type: ignore[arg-type]
    return get_callable_name(function)


def check_correctness_reward(args: SRPOConfig, names: Sequence[str]) -> None:
    """Raise ValueError unless `correctness_reward` names exactly one of the reward functions, or none is asked for."""
    name = args.correctness_reward
    if name is not None and list(names).count(name) != 1:
        raise ValueError(
            f"correctness_reward={name!r} must name exactly one reward function; the trainer has "
            f"{', '.join(map(repr, names)) or 'none'}."
        )


def check_reference_model(args: SRPOConfig, model: Any, peft_config: Any) -> None:
    """Raise ValueError where a KL penalty needs a reference model that TRL could load from nowhere."""
    is_named = isinstance(model, str) or bool(get_config_model_id(model.config))
    if args.beta != 0.0 and not is_named and peft_config is None and not is_peft_model(model):
        raise ValueError(
            f"beta={args.beta!r} needs a reference model, which TRL loads by the model's name, and the model given has "
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
    args: SRPOConfig, model: nn.Module, accelerator: Accelerator, is_vision_language_model: bool
) -> None:
    """Raise ValueError where the teacher cannot be built, rather than train with another one."""
    _refuse_engines(accelerator)
    for problem in context_problems(model.config, args.max_completion_length):  # type: ignore[arg-type]
        raise ValueError(problem)
    if args.gradient_share_steps and shards_parameters(accelerator):
        raise ValueError(
            f"gradient_share_steps={args.gradient_share_steps} differentiates by whole parameters, which FSDP and "
            "ZeRO-3 do not keep. Leave it out, or measure under DDP or ZeRO-1/2."
        )
    if is_vision_language_model and shards_parameters(accelerator):
        raise ValueError(
            "Self-distillation does not run a vision-language model under FSDP or ZeRO-3: a process whose teacher pass "
            "has no images would leave the others waiting in the vision tower. Use DDP or ZeRO-1/2."
        )
    if is_peft_model(model):
        _refuse_adapters(model)  # type: ignore[arg-type]
    base = cast("PeftModel", model).get_base_model() if is_peft_model(model) else model
    refuse_adapted_head(cast("PreTrainedModel", base))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("The model has no trainable parameter.")


def _refuse_adapters(model: "PeftModel") -> None:
    """Raise ValueError where the configuration of an adapter in use says that it cannot be trained."""
    problems = [
        problem for name in model.active_adapters for problem in adapter_problems(model.peft_config[name])
    ]
    if problems:
        raise ValueError("\n".join(problems))


def refuse_adapted_head(student: "PreTrainedModel") -> None:
    """Raise ValueError where the LM head is in an adapter, by a pattern, say, or tied to an embedding that is adapted.

    A copy of it in `modules_to_save` is what the model's forward and TRL's fused LM head read alike.
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
            "Self-distillation does not run with parameters offloaded to NVMe: the teacher exchanges its values with "
            "the student's in memory. Set offload_param's device to 'cpu' or 'none'."
        )
    if zero.get("zero_hpz_partition_size", 1) > 1 or zero.get("mics_shard_size", -1) > 0:
        raise ValueError(
            "Self-distillation does not run with a second partition of the parameters (zero_hpz_partition_size, "
            "mics_shard_size): a teacher pass would gather the student's. Leave these options out."
        )
