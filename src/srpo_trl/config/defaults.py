"""Defaults that follow from the method: the paper's, or those of `GRPOTrainer`.

An option of `DEFERRED` is None until it is given or resolved.
"""

from collections.abc import Mapping
from typing import Any

from trl import GRPOConfig

from srpo_trl.methods import METHODS, PAPER_DEFAULTS, WEIGHTED

DEFERRED = tuple(WEIGHTED)
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
