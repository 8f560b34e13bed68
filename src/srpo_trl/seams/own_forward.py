"""Forwards that run the model they are called on, and so its copies, too.

TRL's fused LM head, and its LM head in float32, replace a `forward` by a function that holds one model's modules. A
copy of the model has the same function, and would compute with the first one's weights, whatever it holds itself.
"""

import functools
import types
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from srpo_trl.seams.trl import has_float32_forward, split_fused_forward

_REPLACED = "_forward_before_fused_lm_head"  # attribute of a model whose forward was a hook's


def use_own_weights(model: PreTrainedModel, *, scores_labelled_only: bool = False) -> None:
    """Let a model to which TRL has given a fused LM head compute with the weights of what its forward is called on.

    What it returns stays the same. `copy.deepcopy`, `pickle`, `torch.save` and averaged models then give models of
    their own. Call after TRL has added the head, and before an engine or mixed precision wraps the forward.

    Args:
        model: the transformers model inside wrappers.
        scores_labelled_only: only positions with a label go through the fused head, also where TRL gives it all and
            drops the rest. Values then differ by the rounding of a product with other rows. Where no position has a
            label, the head has no part in the graph: something else must give it its gradient.
    """
    forward = _independent_forward(model.forward, model, scores_labelled_only)
    model.forward = types.MethodType(forward, model)
    head = model.get_output_embeddings()
    if head is not None and has_float32_forward(head):
        head.forward = types.MethodType(_float32_logits, head)


def _independent_forward(method: Any, model: PreTrainedModel, labelled_only: bool) -> Callable[..., Any]:
    """Return the function that `method`, bound to the model, runs; it takes the model and holds none."""
    parts = split_fused_forward(method)
    if parts is None:
        if getattr(method, "__self__", None) is model:
            function: Callable[..., Any] = method.__func__
            return function
        setattr(model, _REPLACED, method)  # copied with the model, as the hook is
        return _replaced_forward
    fused_forward = parts.labelled if labelled_only else parts.fused
    plain_forward = _independent_forward(parts.replaced, model, labelled_only)

    @functools.wraps(type(model).forward)  # `generate` checks its arguments by this signature
    def forward(self: PreTrainedModel, *args: Any, fused_lm_head: bool = False, **kwargs: Any) -> Any:
        if fused_lm_head:
            return fused_forward(self, *args, fused_lm_head=True, **kwargs)
        return plain_forward(self, *args, **kwargs)

    return forward


def _replaced_forward(self: PreTrainedModel, *args: Any, **kwargs: Any) -> Any:
    return getattr(self, _REPLACED)(*args, **kwargs)


def _float32_logits(self: nn.Linear, hidden: Tensor) -> Tensor:
    """Return logits in float32, as `cast_lm_head_to_fp32` asks for."""
    bias = None if self.bias is None else self.bias.float()
    return linear(hidden.float(), self.weight.float(), bias)
