"""Parameters that are not where the model computes, brought there for one forward pass.

DeepSpeed and FSDP leave the model on the host until training begins, and under ZeRO-3 transformers shards it while it
loads. A pass before that brings one layer after the other to the device, so that no whole copy is made.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from srpo_trl.seams.parameters import is_sharded_by_zero3


def residence(
    model: PreTrainedModel, device: torch.device, *, zero3: bool = False
) -> Callable[[], AbstractContextManager[Any]]:
    """Return what makes the model's parameters whole and puts them on the device, for the length of a `with` block.

    Nothing happens where nothing is away.

    Args:
        model: the transformers model, not yet prepared by the engine.
        device: that the engine computes on.
        zero3: DeepSpeed ZeRO-3 is the engine; every process then runs the same passes in the block.
    """
    is_away = any(p.device != device or is_sharded_by_zero3(p) for p in model.parameters())
    has_own_hooks = (
        getattr(model, "hf_device_map", None) is not None
    )  # accelerate's bring parameters to the device
    if not zero3 and (not is_away or has_own_hooks):
        return nullcontext
    return lambda: _resident(model, device, zero3)


@contextmanager
def _resident(model: PreTrainedModel, device: torch.device, zero3: bool) -> Iterator[None]:
    layers = list(_outermost(model, set(model._no_split_modules or ())))
    in_layers = {id(p) for layer in layers for p in layer.parameters()}
    rest = [p for p in model.parameters() if id(p) not in in_layers]
    with ExitStack() as everything:
        everything.enter_context(_present([*rest, *model.buffers()], device))
        if zero3:
            everything.enter_context(_said_to_be_whole([p for p in rest if not is_sharded_by_zero3(p)]))
        for layer in layers:
            while_it_runs = everything.enter_context(ExitStack())  # left in any case, should the layer raise
            handles = (
                layer.register_forward_pre_hook(_entering(while_it_runs, layer, device)),
                layer.register_forward_hook(lambda *_, those=while_it_runs: those.close()),
            )
            for handle in handles:
                everything.callback(handle.remove)
        yield


def _outermost(module: nn.Module, class_names: set[str]) -> Iterator[nn.Module]:
    for child in module.children():
        if type(child).__name__ in class_names:
            yield child
        else:
            yield from _outermost(child, class_names)


def _entering(stack: ExitStack, layer: nn.Module, device: torch.device) -> Callable[..., None]:
    def enter(*_: Any) -> None:
        stack.enter_context(_present(list(layer.parameters()), device))

    return enter


@contextmanager
def _present(tensors: Sequence[Any], device: torch.device) -> Iterator[None]:
    """Have the tensors whole and on the device in the block, as they were after it."""
    sharded = [tensor for tensor in tensors if is_sharded_by_zero3(tensor)]
    away = [(t, t.data) for t in tensors if not is_sharded_by_zero3(t) and t.device != device]
    with ExitStack() as stack:
        if sharded:
            import deepspeed  # optional

            stack.enter_context(deepspeed.zero.GatheredParameters(sharded))
        for tensor, data in away:
            tensor.data = data.to(device)
        try:
            yield
        finally:
            for tensor, data in away:
                tensor.data = data


@contextmanager
def _said_to_be_whole(parameters: Sequence[Any]) -> Iterator[None]:
    """Mark parameters that ZeRO-3 has not seen yet as gathered: TRL's fused head asks each for its status."""
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus  # DeepSpeed is optional

    for parameter in parameters:
        parameter.ds_status = ZeroParamStatus.AVAILABLE
    try:
        yield
    finally:
        for parameter in parameters:
            del parameter.ds_status
