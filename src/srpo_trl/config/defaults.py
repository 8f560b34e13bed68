"""Defaults that follow from the routing: the paper's, or with "grpo" GRPOTrainer's own and none of the extras.

An option named here is None until it is given or resolved. With `routing="grpo"` a trainer thus is `GRPOTrainer` unless
more is asked for: an extra that is given by name works there, too.
"""

from typing import TYPE_CHECKING, Any

from trl import GRPOConfig

if TYPE_CHECKING:
    from srpo_trl.config import SRPOConfig

# Inherited options (SRPO, table 3 and section 3.3).
PAPER_DEFAULTS: dict[str, Any] = {
    "learning_rate": 5e-6,
    "epsilon_high": 0.28,
    "scale_rewards": "none",
    "vllm_importance_sampling_mode": "token_truncate",
    "vllm_importance_sampling_clip_max": 2.0,
    "num_generations_eval": 16,
}
# Evaluation by samples, as the paper does it. One of them given asks for all.
SAMPLED_EVALUATION: dict[str, Any] = {
    "eval_temperature": 0.6,
    "eval_top_p": 0.95,
    "eval_tokens_per_batch": 65536,
}
EXTRAS: dict[str, Any] = {"max_nonfinite_steps": 3, "guard_action": "warn", "run_log": True}
WITHOUT_EXTRAS: dict[str, Any] = {"max_nonfinite_steps": None, "guard_action": "off", "run_log": False}

DEFAULTS = PAPER_DEFAULTS | SAMPLED_EVALUATION | EXTRAS


def resolve_defaults(config: "SRPOConfig") -> frozenset[str]:
    """Give every option of this file that is None its default; return the names of these options.

    With `routing="grpo"`: the options that GRPOConfig has get its defaults, evaluation is GRPOTrainer's unless one of
    `SAMPLED_EVALUATION` is given, and each of `EXTRAS` is off.
    """
    missing = frozenset(name for name in DEFAULTS if getattr(config, name) is None)
    defaults = DEFAULTS
    if config.routing == "grpo":
        defaults = {
            name: GRPOConfig.__dataclass_fields__[name].default for name in PAPER_DEFAULTS
        } | WITHOUT_EXTRAS
        if not missing.issuperset(SAMPLED_EVALUATION):
            defaults |= SAMPLED_EVALUATION | {"num_generations_eval": PAPER_DEFAULTS["num_generations_eval"]}
    for name in missing & defaults.keys():
        setattr(config, name, defaults[name])
    return missing
