"""The LM head of a model as data, whatever its architecture does to logits."""

from typing import Any

from transformers import PreTrainedModel

from srpo_trl.ops import Head


def lm_head_of(model: PreTrainedModel) -> Head:
    """Return the model's LM head as data, with the logit scale and final soft-capping of its architecture."""
    module = model.get_output_embeddings()
    config = model.config.get_text_config()
    return Head(
        module.weight,
        getattr(module, "bias", None),
        _logit_scale(config),
        getattr(config, "final_logit_softcapping", None),
    )


def _logit_scale(config: Any) -> float:
    """Cohere and MPT scale logits, Falcon-H1 multiplies, Granite and MiniCPM3 divide, HyperCLOVA X multiplies."""
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        if getattr(config, name, None) is not None:
            return float(getattr(config, name))
    scaling = getattr(config, "logits_scaling", None)
    if scaling is None:
        return 1.0
    return float(scaling if config.model_type == "hyperclovax" else 1 / scaling)
