"""How much of the gradient each branch makes: measured at an interval, because it costs two more backward passes."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class BranchGradients:
    """Gradients of each branch alone, added up over the micro-batches of one optimizer step."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._parameters = list(parameters)
        self._gradients: dict[str, list[Tensor]] = {}

    def add(self, **losses: Tensor) -> None:
        """Add each branch's gradient of this micro-batch; the losses' graph is kept for the training backward."""
        for branch, loss in losses.items():
            gradients = torch.autograd.grad(loss, self._parameters, retain_graph=True, materialize_grads=True)
            held = self._gradients.setdefault(branch, [torch.zeros_like(g) for g in gradients])
            for total, gradient in zip(held, gradients, strict=True):
                total.add_(gradient)

    def norms(self, average_over_processes: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """Return each branch's L2 norm over all parameters, () float64, and start anew."""
        norms = {}
        for branch, gradients in self._gradients.items():
            squares = [average_over_processes(g).square().sum(dtype=torch.float64) for g in gradients]
            norms[branch] = torch.stack(squares).sum().sqrt()
        self._gradients = {}
        return norms
