"""`GRPOTrainer` that has all micro-batches of an optimizer step in hand before it trains on the first.

Normalisers that span the optimizer step (SRPO, sections 3.2 and 3.3) must be known before its first loss.
"""

from collections.abc import Iterator
from typing import Any

import torch
from transformers import PreTrainedModel

from srpo_trl.host.finite_steps import FiniteStepGRPOTrainer
from srpo_trl.rollout.batch import TrlBatch


class StepWindowGRPOTrainer(FiniteStepGRPOTrainer):
    """`FiniteStepGRPOTrainer` that prepares the micro-batches of an optimizer step, its window, together.

    Subclasses say in `_has_step_window` whether they need it, and read the window in `_window_opened`.
    """

    model: PreTrainedModel
    _has_step_window = False
    _step: int  # TRL's count of micro-batches; it decides when TRL generates

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._coming_batches: list[Any] = []  # the dataloader's batches of the coming optimizer step
        self._window: list[
            TrlBatch
        ] = []  # micro-batches of the optimizer step that are still to be trained on
        super().__init__(*args, **kwargs)

    def _window_opened(self, window: list[TrlBatch]) -> None:
        """Take the micro-batches of the optimizer step that begins, in order."""

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> Any:
        """Remember the batches of the coming optimizer step."""
        batch_samples, num_items_in_batch = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._coming_batches, self._window = list(batch_samples), []
        return batch_samples, num_items_in_batch

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        """Return the next micro-batch; at the start of an optimizer step, prepare all of the step's."""
        if not (self._has_step_window and self.model.training):
            return super()._prepare_inputs(generation_batch)
        if not self._window:
            first_step = self._step
            for position, coming in enumerate(self._coming_batches):
                self._step = first_step + position
                self._window.append(super()._prepare_inputs(coming))
            self._step = first_step
            self._window_opened(self._window)
        return self._window.pop(0)
