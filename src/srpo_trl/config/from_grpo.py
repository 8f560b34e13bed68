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
    "steps_per_generation": ("generation_batch_size",),
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
        if values["steps_per_generation"] == values["gradient_accumulation_steps"]:
            values["steps_per_generation"] = None  # TRL's default
        values["generation_batch_size"] = None  # follows from the other; TRL takes one of the two
        for name, sources in _DERIVED_FROM.items():
            if name in values and any(source in changes for source in sources):
                values[name] = None
        given = values | changes
        # What None means to GRPOTrainer, where it means SRPO's default here.
        meant = {
            "num_generations_eval": given["num_generations"],
            "epsilon_high": given["epsilon"],
            "vllm_importance_sampling_clip_max": LARGEST,
        }
        given |= {
            name: value for name, value in meant.items() if values[name] is None and name not in changes
        }
        config = cls(**given)
        for name, value in vars(args).items():
            if not hasattr(config, name):
                setattr(config, name, value)
        return config
