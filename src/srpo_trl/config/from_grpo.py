"""An `SRPOConfig` from the `GRPOConfig` of a script."""

from dataclasses import fields, replace
from typing import Any, Self

from trl import GRPOConfig

from srpo_trl.config.ranges import LARGEST

# Options that GRPOConfig derives from others where they are not given, by what they are derived from.
_DERIVED_FROM = {
    "bf16": ("fp16",),
    "activation_checkpointing": ("gradient_checkpointing",),
    "activation_checkpointing_kwargs": ("gradient_checkpointing_kwargs",),
    "gradient_checkpointing": ("activation_checkpointing",),
    "gradient_checkpointing_kwargs": ("activation_checkpointing_kwargs",),
    "greater_is_better": ("metric_for_best_model",),
}


class FromGRPO:
    """Makes a configuration from one of TRL's."""

    @classmethod
    def from_grpo(cls, args: GRPOConfig, **changes: Any) -> Self:
        """Return the configuration that trains as `args` says, by SRPO.

        Every option of `args` keeps its value and its meaning, including defaults, because a `GRPOConfig` does not
        record which values were set. So the learning rate, the clip of the ratio and the scale of advantages are those
        of `args`, and not the paper's, which are the defaults of `SRPOConfig`; `None` among the changes asks for
        SRPO's default. Options that `GRPOConfig` does not have get SRPO's defaults: evaluation draws samples and scores
        them, as many of a question as `args` says, unless `metric_for_best_model` is a loss.

        A `generation_batch_size` that is not the default stays where `per_device_train_batch_size` changes, as far as
        it can be divided into such batches: `steps_per_generation` follows.

        Attributes of a class derived from `GRPOConfig` are attributes of the result.

        Args:
            args: of a script for `GRPOTrainer`. An `SRPOConfig` is copied.
            changes: options with other values. What follows from them is derived anew.
        Raises:
            TypeError: `args` is no `GRPOConfig`, or a change is no option.
            ValueError: a value is refused, as by `SRPOConfig(...)`.

        Example:

            args = SRPOConfig.from_grpo(GRPOConfig("out", num_generations=4), learning_rate=None)
        """
        if isinstance(args, cls):
            return replace(args, **changes)
        if not isinstance(args, GRPOConfig):
            raise TypeError(f"args is of type {type(args).__name__}; from_grpo needs a trl.GRPOConfig.")
        options = {option.name for option in fields(cls) if option.init}  # type: ignore[arg-type]  # of a dataclass
        values = {
            option.name: getattr(args, option.name) for option in fields(args) if option.name in options
        }
        if isinstance(args, FromGRPO):  # of a class that this one derives from
            config = cls(**values | {"derived": vars(args)["derived"]} | changes)
        else:
            config = cls(**_meant(_rederived(args, values, changes), changes))
        for name, value in vars(args).items():
            if not hasattr(config, name):
                setattr(config, name, value)
        return config


def _rederived(args: GRPOConfig, values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return the values of `args` without those that it derived from options that change."""
    values = dict(values)
    if values["steps_per_generation"] == values["gradient_accumulation_steps"]:
        values["steps_per_generation"] = None  # TRL's default
    micro_batch = changes.get("per_device_train_batch_size", 0) * args.world_size
    keeps_batch = (
        values["steps_per_generation"] and micro_batch and values["generation_batch_size"] % micro_batch == 0
    )
    # TRL takes one of the two; the other follows.
    values["steps_per_generation" if keeps_batch else "generation_batch_size"] = None
    if "generation_batch_size" in changes or "steps_per_generation" in changes:
        values["steps_per_generation"] = values["generation_batch_size"] = None
    for name, sources in _DERIVED_FROM.items():
        if name in values and any(source in changes for source in sources):
            values[name] = None
    follows = values["eval_steps"] == values["logging_steps"]  # its default
    if follows and not {"logging_steps", "eval_strategy"}.isdisjoint(changes):
        values["eval_steps"] = None
    if "eval_strategy" in changes and values["eval_strategy"] != "no":
        values["do_eval"] = False  # TRL switches it on
    if not changes.get("torch_compile", True):
        values["torch_compile_backend"] = values["torch_compile_mode"] = None  # either would switch it on
    loads_best = values["load_best_model_at_end"] and not changes.get("load_best_model_at_end", True)
    if loads_best and values["metric_for_best_model"] == "loss":
        values["metric_for_best_model"] = values["greater_is_better"] = None
    if not changes.get("fsdp", True):
        values["fsdp_config"] = None
    elif isinstance(changes.get("fsdp"), str | list):  # which names what these two say
        former = ("reshard_after_forward", "cpu_offload")
        values["fsdp_config"] = {k: v for k, v in (values["fsdp_config"] or {}).items() if k not in former}
    return values


def _meant(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return the values and changes, with what None means to GRPOTrainer where it means SRPO's default here."""
    given = values | changes
    meant = {
        "num_generations_eval": given["num_generations"],
        "epsilon_high": given["epsilon"],
        "vllm_importance_sampling_clip_max": LARGEST,
    }
    return given | {
        name: value for name, value in meant.items() if values[name] is None and name not in changes
    }
