"""Bytes that a piece of torch code holds, counted while it runs on tensors without data.

Fake tensors have shapes and dtypes, but no memory: a model of any size runs forward and backward on a laptop, and
everything it would allocate passes by here. Nothing is estimated; kernels' own workspaces alone are not seen.
"""

import weakref
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only


class Held(NamedTuple):
    """Bytes held at one moment.

    Attributes:
        total: of everything allocated since the count began.
        weight_copies: the part that is copies of weights in another dtype, as autocast makes them.
    """

    total: int
    weight_copies: int


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensor memory that is made, and not yet freed, while it is switched on.

    Args:
        existing: tensors that were there before and do not count.
    """

    def __init__(self, existing: Iterable[Tensor]) -> None:
        super().__init__()
        self._seen: dict[int, weakref.ref] = {}
        self._existing: set[int] = set()
        self._total = self._weight_copies = 0
        self._peak = Held(0, 0)
        for tensor in existing:
            storage = tensor.untyped_storage()
            self._seen[storage._cdata] = weakref.ref(storage)
            self._existing.add(storage._cdata)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator, and count the memory of what it returns."""
        result = func(*args, **(kwargs or {}))
        copies_weight = (
            func is torch.ops.aten._to_copy.default and args[0].untyped_storage()._cdata in self._existing
        )
        tree_map_only(Tensor, lambda tensor: self._count(tensor, copies_weight), result)
        if self._total > self._peak.total:
            self._peak = self.now
        return result

    def _count(self, tensor: Tensor, copies_weight: bool) -> None:
        storage = tensor.untyped_storage()
        key, num_bytes = storage._cdata, storage.nbytes()
        if key in self._seen:  # a view, or written in place
            return

        def forget(_: weakref.ref) -> None:
            del self._seen[key]
            self._total -= num_bytes
            self._weight_copies -= num_bytes * copies_weight

        self._seen[key] = weakref.ref(storage, forget)
        self._total += num_bytes
        self._weight_copies += num_bytes * copies_weight

    @property
    def now(self) -> Held:
        """What is held at this moment."""
        return Held(self._total, self._weight_copies)

    def take_peak(self) -> Held:
        """Return the highest total since the last call, and begin anew."""
        peak, self._peak = self._peak, self.now
        return max(peak, self.now)


def without_data(model: nn.Module, mode: FakeTensorMode, dtype_of: Callable[[Tensor], torch.dtype]) -> None:
    """Replace a meta model's parameters and buffers by fake ones, in place; what is shared stays shared.

    Args:
        model: on any device.
        mode: that the fake tensors belong to.
        dtype_of: of each parameter's replacement; buffers keep theirs.
    """
    made: dict[int, Any] = {}

    def fake(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            if isinstance(tensor, nn.Parameter):
                empty = torch.empty(tensor.shape, dtype=dtype_of(tensor))
                made[id(tensor)] = nn.Parameter(empty, tensor.requires_grad)
            else:
                made[id(tensor)] = torch.empty(tensor.shape, dtype=tensor.dtype)
        return made[id(tensor)]

    with mode:
        for module in model.modules():
            for store in (module._parameters, module._buffers):
                for name, tensor in store.items():
                    if tensor is not None:
                        store[name] = fake(tensor)  # type: ignore[assignment]
