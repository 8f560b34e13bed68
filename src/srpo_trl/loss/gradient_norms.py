"""How much of the gradient each branch makes: measured at an interval, because it costs two more backward passes."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from srpo_trl.loss.float64 import sum_in_float64


class BranchGradients:
    """Gradients of each branch alone, added up over the micro-batches of one optimizer step.

    Args:
        model: whose parameters count that are trainable when a loss is added.
        every: optimizer steps from one that is measured to the next, the first one included.
    """

    def __init__(self, model: nn.Module, every: int = 1) -> None:
        self._model = model
        self._every = every
        self._gradients: dict[str, dict[str, Tensor]] = {}

    def wants(self, step: int) -> bool:
        """Return whether the optimizer step after `step` others is to be measured."""
        return step % self._every == 0

    def add(self, **losses: Tensor) -> None:
        """Add each branch's gradient of this micro-batch; the losses' graph is kept for the training backward."""
        trainable = {name: p for name, p in self._model.named_parameters() if p.requires_grad}
        for branch, loss in losses.items():
            gradients = torch.autograd.grad(
                loss, list(trainable.values()), retain_graph=True, materialize_grads=True
            )
            held = self._gradients.setdefault(branch, {})
            for name, gradient in zip(trainable, gradients, strict=True):
                held[name] = held[name] + gradient if name in held else gradient

    def norms(self, average_over_processes: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """Return each branch's L2 norm over all parameters, () float64, and start anew."""
        norms = {}
        for branch, gradients in self._gradients.items():
            squares = [sum_in_float64(average_over_processes(g).square()) for g in gradients.values()]
            norms[branch] = torch.stack(squares).sum().sqrt()
        self._gradients = {}
        return norms
