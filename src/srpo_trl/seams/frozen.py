"""Further models that only score: loaded as TRL loads its reference model, and sharded as the engine shards."""

from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedType
from transformers import PreTrainedModel

from srpo_trl.seams.parameters import is_zero3
from srpo_trl.seams.trl import create_model_from_path, prepare_deepspeed, prepare_fsdp


def load_frozen(path: str, **given: Any) -> PreTrainedModel:
    """Return the model of a folder or hub id in its own dtype, in evaluation mode, without trainable parameters."""
    model = create_model_from_path(path, dtype="auto", device_map=None, **given)
    model.eval().requires_grad_(False)
    return model


def prepare_frozen(model: PreTrainedModel, accelerator: Accelerator) -> Any:
    """Return the model as the engine runs it: its parameters in shards under FSDP2 and ZeRO-3, else on the device."""
    if accelerator.distributed_type == DistributedType.FSDP:
        return prepare_fsdp(model, accelerator)
    if is_zero3(accelerator):
        return prepare_deepspeed(model, accelerator)
    return model.to(accelerator.device)
