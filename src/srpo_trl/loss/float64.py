"""Values in float64 that belong to a device: they are on the device itself, or on the CPU where it has no float64.

Sums over the tokens of a step and weights of many orders of magnitude are float64. Apple's MPS has no such type.
"""

from typing import TypeVar

import torch
from accelerate.utils import send_to_device
from torch import Tensor

T = TypeVar("T")


def has_float64(device: torch.device) -> bool:
    """Return whether a device computes in float64."""
    return device.type != "mps"


def float64_device(device: torch.device) -> torch.device:
    """Return where a device's values in float64 are."""
    return device if has_float64(device) else torch.device("cpu")


def to_float64(value: Tensor) -> Tensor:
    """Return a device's tensor in float64."""
    return value.to(float64_device(value.device)).double()


def sum_in_float64(value: Tensor) -> Tensor:
    """Return the sum of a device's tensor, () float64."""
    return value.to(float64_device(value.device)).sum(dtype=torch.float64)


def beside_float64(values: T, device: torch.device) -> T:
    """Return nested tensors of a device where its values in float64 are."""
    moved: T = values if has_float64(device) else send_to_device(values, float64_device(device))
    return moved


def back_from_float64(value: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on the device it belongs to: as it is, but float32 where the device has no float64."""
    if has_float64(device):
        return value
    return (value.float() if value.dtype == torch.float64 else value).to(device)
