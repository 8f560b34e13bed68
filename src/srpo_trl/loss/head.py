"""The LM head of a model as data, whatever its architecture does to logits."""

from enum import Enum
from typing import Any, Final

import torch
from torch import Tensor
from transformers import PreTrainedModel

from srpo_trl.loss.ops import Head


class StudentHead(Enum):
    """Says that hidden states are projected by the student's own LM head, which has never trained."""

    STUDENT_HEAD = "the student's own"


STUDENT_HEAD: Final = StudentHead.STUDENT_HEAD
TeacherHead = Head | StudentHead


def lm_head_of(model: PreTrainedModel) -> Head:
    """Return the model's LM head as data, with the logit scale and final soft-capping of its architecture.

    Raises:
        ValueError: it has no LM head that is one matrix.
    """
    embedded: Any = model  # transformers leaves the method without types
    module = embedded.get_output_embeddings()
    if not isinstance(getattr(module, "weight", None), Tensor):
        raise ValueError(
            f"{type(model).__name__} has no LM head that is one matrix: get_output_embeddings() is {module!r}. Take a "
            "causal language model that has one."
        )
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


_VOCABULARY_TILE = 16384


def head_logits(hidden_ND: Tensor, head: Head) -> Tensor:
    """Return softcap(logit_scale * (hidden W^T + bias)) in float32, for a few tokens.

    Args:
        hidden_ND: (..., D), any float dtype.
        head: a matrix of D columns; read in tiles, so that no second one is made in float32.
    Returns:
        (..., V).
    """
    hidden_ND = hidden_ND.to(head.weight_VD.device).float()
    with torch.autocast(hidden_ND.device.type, enabled=False):
        tiles = [hidden_ND @ tile_CD.float().T for tile_CD in torch.split(head.weight_VD, _VOCABULARY_TILE)]
    logits_NV = torch.cat(tiles, dim=-1)
    if head.bias_V is not None:
        logits_NV += head.bias_V.float()
    logits_NV *= head.logit_scale
    return logits_NV if head.softcap is None else head.softcap * torch.tanh(logits_NV / head.softcap)
