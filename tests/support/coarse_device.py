"""Training on a device without float64, on any machine: `coarse` computes on the CPU and refuses what MPS refuses.

    python tests/support/coarse_device.py METHOD...

Trains each method for three steps on the CPU and on the device, the first one with a checkpoint, and prints the logs of
both as one JSON object.
"""

import io
import json
import sys
import tempfile
from contextlib import redirect_stdout
from typing import Any
from unittest.mock import patch

import torch
from accelerate.state import AcceleratorState
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from harness import make_trainer
from srpo_trl.loss import float64


class Module:
    """What torch looks for in `torch.coarse`; random numbers are the CPU's."""

    device_count = staticmethod(lambda: 1)
    is_available = is_initialized = staticmethod(lambda: True)
    current_device = staticmethod(lambda: 0)
    _is_in_bad_fork = staticmethod(lambda: False)
    manual_seed_all = set_rng_state = empty_cache = synchronize = staticmethod(lambda *given: None)
    get_amp_supported_dtype = staticmethod(lambda: [torch.bfloat16, torch.float16])
    get_rng_state = staticmethod(lambda device: torch.empty(0))


_setup_privateuseone_for_python_backend("coarse", Module())
# Tied parameters stay one on their way to the device.
torch.__future__.set_swap_module_params_on_conversion(True)
DEVICE = torch.device("coarse", 0)


class CoarseTensor(Tensor):
    """A tensor of the device, whose values are in one of the CPU."""

    @staticmethod
    def __new__(cls, values: Tensor) -> "CoarseTensor":
        if values.dtype == torch.float64:
            raise TypeError("This device does not support float64.")
        made = torch.Tensor._make_wrapper_subclass(
            cls, values.size(), strides=values.stride(), dtype=values.dtype, device=DEVICE
        )
        made.on_cpu = values
        return made

    def tolist(self) -> Any:
        return self.on_cpu.tolist()

    def untyped_storage(self) -> Any:
        return self.on_cpu.untyped_storage()

    def __repr__(self) -> str:
        return f"on the device: {self.on_cpu}"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, *args, **(kwargs or {}))


def compute(func: Any, *args: Any, **kwargs: Any) -> Any:
    """Run an operator on the CPU's values, and return what is on the device as its tensors."""
    tensors = tensors_in((args, kwargs))
    coarse = {id(tensor.on_cpu): tensor for tensor in tensors if isinstance(tensor, CoarseTensor)}
    place = kwargs.get("device")
    is_coarse = bool(coarse) if place is None else torch.device(place).type == DEVICE.type
    if coarse and any(
        tensor.dim() and not isinstance(tensor, CoarseTensor) for tensor in must_be_beside(func, args)
    ):
        raise RuntimeError(f"{func}: tensors of the device and of the CPU")
    if place is not None:
        kwargs["device"] = torch.device("cpu")
    made = func(*tree_map(values_of, args), **tree_map(values_of, kwargs))

    def placed(value: Any) -> Any:
        if not isinstance(value, Tensor) or not is_coarse:
            return value
        return coarse.get(id(value)) if id(value) in coarse else CoarseTensor(value)

    return tree_map(placed, made)


def must_be_beside(func: Any, args: Any) -> list[Tensor]:
    """Return the tensors that may not be of two devices: all, but of a copy none, and not the indices of the CPU."""
    name = func._schema.name.removeprefix("aten::")
    if name in ("copy_", "_to_copy"):
        return []
    is_indexed = name in ("index", "index_put", "index_put_", "_index_put_impl_") and isinstance(
        args[0], CoarseTensor
    )
    return tensors_in([args[0], *args[2:]] if is_indexed else args)


def tensors_in(values: Any) -> list[Tensor]:
    return [value for value in tree_flatten(values)[0] if isinstance(value, Tensor)]


def values_of(value: Any) -> Any:
    return value.on_cpu if isinstance(value, CoarseTensor) else value


library = torch.library.Library("_", "IMPL")
library.fallback(compute, "PrivateUse1")


class ThroughTheCpu(TorchFunctionMode):
    """Makes a tensor of numbers on the CPU first, as a backend in Python cannot make one."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = dict(kwargs or {})
        is_made = (
            func in (torch.tensor, torch.as_tensor) and torch.device(options.get("device") or "cpu") == DEVICE
        )
        return func(*args, **options | {"device": None}).to(DEVICE) if is_made else func(*args, **options)


def logs_of(method: str, device: torch.device, **options: Any) -> list[dict[str, float]]:
    """Train for three steps; return the logs."""
    AcceleratorState._reset_state(reset_partial_state=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        patch.dict("os.environ", {"ACCELERATE_TORCH_DEVICE": str(device)}),
        patch.object(float64, "has_float64", lambda device: device.type != DEVICE.type),
        ThroughTheCpu(),
        redirect_stdout(io.StringIO()),  # the table of completions
    ):
        given = {"method": method, "use_cpu": device.type == "cpu", "max_steps": 3, "learning_rate": 0.1}
        observed = {"gradient_share_steps": 1, "log_completions": True}
        trainer = make_trainer(folder, **given, **observed, **options)
        assert trainer.accelerator.device.type == device.type
        trainer.train()
        return trainer.state.log_history


def both(method: str, **options: Any) -> list[list[dict[str, float]]]:
    return [logs_of(method, device, **options) for device in (torch.device("cpu"), DEVICE)]


if __name__ == "__main__":
    first, *others = sys.argv[1:]
    saving = {"save_strategy": "steps", "save_steps": 2}
    print(json.dumps({first: both(first, **saving)} | {name: both(name) for name in others}))
