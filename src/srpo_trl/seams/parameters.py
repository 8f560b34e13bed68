"""Parameters that an engine shards over processes: this process's part of a value, and the whole of it.

FSDP2 keeps each parameter as a `DTensor`, DeepSpeed ZeRO-3 as a flat `ds_tensor` padded to equal parts. One process,
DDP and ZeRO-1/2 hold whole parameters: there a part is the whole. Parts share their memory with the parameter, so
that what is written to a part is what the engine gathers next, once its gathered copies are released.
"""

from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

# What wrappers inside the model put into parameter names.
_WRAPPER_NAMES = ("_checkpoint_wrapped_module.", "_orig_mod.")


def is_zero3(accelerator: Accelerator) -> bool:
    """Return whether DeepSpeed shards the parameters (ZeRO stage 3)."""
    plugin = accelerator.state.deepspeed_plugin
    return plugin is not None and plugin.zero_stage == 3


def shards_parameters(accelerator: Accelerator) -> bool:
    """Return whether the engine shards parameters, so that every process must make the same forward calls."""
    return accelerator.distributed_type == DistributedType.FSDP or is_zero3(accelerator)


def named_trainable(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the trainable parameters under the names they have without wrappers."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            yield _without_wrappers(name), parameter


def parameters_by_name(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return all parameters by the names they have without wrappers; a shared one has several."""
    return {_without_wrappers(n): p for n, p in model.named_parameters(remove_duplicate=False)}


def _without_wrappers(name: str) -> str:
    for wrapper in _WRAPPER_NAMES:
        name = name.replace(wrapper, "")
    return name


def release_gathered(model: nn.Module, accelerator: Accelerator) -> None:
    """Free every gathered copy of sharded parameters, so that the next forward gathers the shards' values.

    An FSDP2 root keeps its parameters gathered after a forward, as ZeRO-3 does with small ones: a pass after the
    shards were swapped would run stale weights. A collective: all ranks must call it.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    wrapped = getattr(accelerator, "deepspeed_engine_wrapped", None)  # missing outside DeepSpeed
    if wrapped is not None and is_zero3(accelerator):
        wrapped.engine.optimizer.empty_partition_cache()


def local_shard(parameter: Any) -> Tensor:
    """Return this process's part of a parameter, detached, in the parameter's own memory."""
    whole: Any = parameter.detach()
    shard: Tensor = whole
    if isinstance(parameter, DTensor):
        shard = whole.to_local()
    elif is_sharded_by_zero3(parameter):
        start, stop = _zero3_range(parameter)
        shard = parameter.ds_tensor.detach().narrow(0, 0, stop - start)
    return shard


def whole_shape(parameter: Any) -> torch.Size:
    """Return the shape that a parameter has before it is sharded."""
    return torch.Size(parameter.ds_shape) if is_sharded_by_zero3(parameter) else parameter.shape


def full_tensor(parameter: Any, part: Tensor, device: torch.device) -> Tensor:
    """Return the whole value of which each process holds a part laid out like the parameter's.

    Where the parameter is sharded the result is new, and the call a collective that all ranks must make; else it is
    `part`.
    """
    if isinstance(parameter, DTensor):
        sharded = DTensor.from_local(
            part.to(device),
            parameter.device_mesh,
            parameter.placements,
            run_check=False,
            shape=parameter.shape,
            stride=parameter.stride(),
        )
        whole = sharded.full_tensor()
        # One process gathers nothing: what it gets would change with the parameter.
        is_alias = whole.untyped_storage().data_ptr() == part.untyped_storage().data_ptr()
        return whole.clone() if is_alias else whole
    if is_sharded_by_zero3(parameter):
        group = parameter.ds_process_group
        padded = torch.zeros(parameter.ds_tensor.ds_numel, dtype=part.dtype, device=device)
        padded[: part.numel()] = part
        flat = padded.new_empty(padded.numel() * torch.distributed.get_world_size(group))
        torch.distributed.all_gather_into_tensor(flat, padded, group=group)
        return flat[: parameter.ds_numel].view(parameter.ds_shape)
    return part


def shard_of_full(parameter: Any, whole: Tensor) -> Tensor:
    """Return this process's part of a whole value that every process has; no process waits for another."""
    if isinstance(parameter, DTensor):
        mesh = parameter.device_mesh
        return distribute_tensor(whole, mesh, parameter.placements, src_data_rank=None).to_local()
    if is_sharded_by_zero3(parameter):
        start, stop = _zero3_range(parameter)
        return whole.reshape(-1)[start:stop]
    return whole


def is_sharded_by_zero3(parameter: Any) -> bool:
    """Return whether ZeRO-3 holds the parameter in parts, also before training begins."""
    return hasattr(parameter, "ds_tensor")


def _zero3_range(parameter: Any) -> tuple[int, int]:
    """Return where this process's part lies in the flat parameter; the last parts may be short or empty."""
    size = parameter.ds_tensor.ds_numel
    start = min(size * torch.distributed.get_rank(parameter.ds_process_group), parameter.ds_numel)
    return start, min(start + size, parameter.ds_numel)
