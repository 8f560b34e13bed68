"""Defaults that follow from the method: the paper's, or those of `GRPOTrainer`.

An option of `DEFERRED` is None until it is given or resolved.
"""

from collections.abc import Mapping
from typing import Any

from trl import GRPOConfig

from srpo_trl.methods import METHODS, PAPER_DEFAULTS, WEIGHTED

DEFERRED = tuple(WEIGHTED)
LOSS_METRICS = ("loss", "eval_loss")  # as metric_for_best_model they choose TRL's evaluation
SAMPLED_EVALUATION = ("eval_temperature", "eval_top_p", "eval_tokens_per_batch")  # one given asks for all


def resolved_defaults(method: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the default of every option of `DEFERRED` that is None.

    It is the method's, SRPO's for a method of the user's own; where the method has none it is `GRPOConfig`'s, or None.
    """
    defaults = METHODS[method].defaults if isinstance(method, str) and method in METHODS else WEIGHTED
    if any(options[name] is not None for name in SAMPLED_EVALUATION):
        asked = (*SAMPLED_EVALUATION, "num_generations_eval")
        defaults = {name: PAPER_DEFAULTS[name] for name in asked} | dict(defaults)
    inherited = GRPOConfig.__dataclass_fields__
    trls = {name: inherited[name].default for name in DEFERRED if name in inherited}
    return {name: defaults.get(name, trls.get(name)) for name in DEFERRED if options[name] is None}


def choose_evaluation(config: Any) -> None:
    """Set what follows from the kind of evaluation, before TRL and transformers check and derive options.

    A loss as `metric_for_best_model` chooses TRL's evaluation, unless one of the options of sampled evaluation is
    given. With samples `metric_for_best_model` becomes avg@n where none is given, so that the best checkpoint is
    kept; `per_device_eval_batch_size` becomes n: batches hold a token budget instead, and TRL would refuse a
    number that n does not divide.
    """
    if config.metric_for_best_model in LOSS_METRICS and config.defaulted.issuperset(SAMPLED_EVALUATION):
        for name in SAMPLED_EVALUATION:
            setattr(config, name, None)
        if "num_generations_eval" in config.defaulted:
            config.num_generations_eval = None
    num_samples = config.num_generations_eval or config.num_generations
    if not config.samples_evaluation or not isinstance(num_samples, int):
        return
    if config.metric_for_best_model is None and config.eval_strategy != "no":
        config.metric_for_best_model = f"eval_avg@{num_samples}"
    config.per_device_eval_batch_size = num_samples


def set_implied(config: Any) -> None:
    """Set the inherited options that others imply, where they are not given.

    Since 5.24 transformers calls `gradient_checkpointing`, which TRL has a default for, by another name, and warns of a
    value that only the former name has.
    """
    config.log_completions = config.log_completions or config.log_completions_steps is not None
    for ending in ("", "_kwargs"):
        name = f"activation_checkpointing{ending}"
        if getattr(config, name, ...) is None:  # older transformers have no such option
            setattr(config, name, getattr(config, f"gradient_checkpointing{ending}"))
