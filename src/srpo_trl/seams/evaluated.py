"""A model that was evaluated before it is trained, which Accelerate takes for one that is ready to train.

Several processes would then train each by itself: it is not wrapped in DDP, and no gradient is averaged.
"""

from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn

_OF_ENGINES = (
    DistributedType.NO,
    DistributedType.FSDP,
    DistributedType.DEEPSPEED,
    DistributedType.MEGATRON_LM,
)


def forget_evaluation(accelerator: Accelerator, model: nn.Module) -> None:
    """Undo what an evaluation has done to a model that DDP is to wrap; one process, and engines, do it by themselves.

    Args:
        accelerator: of the trainer.
        model: as yet without a wrapper.
    """
    if accelerator.distributed_type in _OF_ENGINES or not vars(model).pop("_is_accelerate_prepared", False):
        return
    if "_original_forward" in vars(model):  # beside a forward under autocast, which is made anew
        model.forward = vars(model).pop("_original_forward")
    accelerator._models = [known for known in accelerator._models if known is not model]
