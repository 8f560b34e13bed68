"""Liger's layer kernels (normalization, rotary embedding, MLP) on the student, and so on its teacher.

Liger's fused losses stay off: they return one locally normalized scalar, without token weights, top K or teacher
entropy, and replace the forward that the fused LM head lives in.
"""

import torch
from transformers import PreTrainedModel


def check_liger_layers(model: PreTrainedModel, device: torch.device) -> None:
    """Raise, with what to do, where Liger's layer kernels cannot be applied.

    Raises:
        ImportError: liger-kernel is not installed.
        ValueError: it has no kernels for the model's architecture, or the device runs no Triton kernels.
    """
    try:
        from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN
    except ImportError as error:
        raise ImportError("liger_layers=True needs liger-kernel: pip install liger-kernel") from error
    model_type = model.config.model_type
    if model_type not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        known = ", ".join(sorted(MODEL_TYPE_TO_APPLY_LIGER_FN))
        raise ValueError(f"liger_layers=True, but Liger has no kernels for {model_type!r}, only for {known}.")
    if device.type not in ("cuda", "xpu"):
        raise ValueError(
            f"liger_layers=True, but Liger's kernels do not run on {device.type!r}. Set it to False."
        )


def apply_liger_layers(model: PreTrainedModel) -> None:
    """Replace the layers' forwards by Liger's; weights, and the forward of the model itself, stay."""
    from liger_kernel.transformers import _apply_liger_kernel_to_instance

    _apply_liger_kernel_to_instance(model=model, cross_entropy=False, fused_linear_cross_entropy=False)
