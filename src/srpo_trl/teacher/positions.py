"""Positions that do not count a row's padding, for backbones that count it unless they are told."""

import inspect
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel


def positions_of(attention_mask_RL: Tensor) -> Tensor:
    """Return (R, L) int64: each token's place in its row without padding, 0 at padding on the left."""
    return (attention_mask_RL.long().cumsum(-1) - 1).clamp(min=0)


def takes_positions(model: PreTrainedModel) -> bool:
    """Return whether the backbone's forward has the parameter `position_ids`."""
    return "position_ids" in inspect.signature(type(model.base_model).forward).parameters


def give_positions(model: PreTrainedModel) -> None:
    """Let the model's backbone count positions from each row's first token, in every call that brings none.

    GPT-2, GPT-BigCode and XGLM number the columns of a batch; TRL pads prompts on the left and, other than `generate`,
    passes no `position_ids`.
    """
    model.base_model.register_forward_pre_hook(_count_from_first_token, with_kwargs=True)


def _count_from_first_token(
    _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    mask_RL = kwargs.get("attention_mask")
    goes_on = kwargs.get("past_key_values") is not None or kwargs.get("cache") is not None
    if (
        kwargs.get("position_ids") is None
        and not goes_on
        and isinstance(mask_RL, Tensor)
        and mask_RL.dim() == 2
    ):
        kwargs = {**kwargs, "position_ids": positions_of(mask_RL)}
    return args, kwargs
