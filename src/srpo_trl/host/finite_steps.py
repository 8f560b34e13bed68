"""No optimizer step is taken on a loss or a gradient that is not finite.

One NaN or infinity turns every weight into NaN, on every process. Here such a step is skipped, counted, saved for
inspection and, after several in a row, the run stops with a report. Whatever is not finite (logits of the student,
states of the teacher, a loss, a gradient) reaches the norm of the gradient, which is the same on every rank; reading
it is the only synchronization with the device.
"""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, gather
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from srpo_trl.host.nonfinite_report import StepRecord, nonfinite_gradients, save_step, step_report

logger = logging.getLogger(__name__)


class NonFiniteStepsError(RuntimeError):
    """Several optimizer steps in a row had a loss or a gradient that is not finite; the message is the report."""


class FiniteSteps:
    """Decides, once the norm of a step's gradient is known, whether the optimizer may step.

    A skipped step leaves the weights and the optimizer's state, its counters included, as they were. TRL's counters
    and the learning rate's schedule advance.

    Args:
        max_in_a_row: steps that are not finite in a row and end the run.
        folder: that the batches of such steps are saved to.
        accelerator: of the trainer.
        advice: what to try where a value of the batch is not finite, by key of the batch.

    Attributes:
        is_nonfinite: the last step had a loss or gradient that is not finite; False where loss scaling dropped it.
        was_skipped: the optimizer did not take the last step, for whatever reason.
    """

    def __init__(
        self,
        max_in_a_row: int,
        folder: Path,
        accelerator: Accelerator,
        advice: Mapping[str, str] | None = None,
    ) -> None:
        self.is_nonfinite = self.was_skipped = False
        self._max_in_a_row = max_in_a_row
        self._folder = folder
        self._accelerator = accelerator
        self._advice = advice or {}
        self._record = StepRecord()  # of the optimizer step under way
        self._num_in_a_row = 0

    def guard(self, loss: Tensor, inputs: dict[str, Any], parts: Mapping[str, Tensor]) -> Tensor:
        """Return the loss of a micro-batch, or one whose gradient is NaN where it is not finite.

        Args:
            loss: (), that is differentiated.
            inputs: the micro-batch.
            parts: of the loss, () each, detached, by name.
        """
        self._record.add(inputs, loss=loss.detach(), **parts)
        # A product, because an infinite loss can have a finite gradient, and only gradients reach other processes.
        return loss * torch.where(loss.detach().isfinite(), 1.0, torch.nan).to(loss.dtype)

    def inspect(self, model: nn.Module) -> None:
        """Look at the gradients after a step that was not finite, before clipping by NaN makes all of them NaN."""
        if self._num_in_a_row and self._accelerator.sync_gradients:
            self._record.gradients = nonfinite_gradients(model)

    def decide(self, grad_norm: Any, step: int) -> None:
        """Decide whether the optimizer steps; every process calls it with the same norm, and waits for the device.

        Args:
            grad_norm: of all processes' gradient, as transformers has it.
            step: optimizer step, from 1.
        Raises:
            NonFiniteStepsError: it is one too many, or the engine has taken the step all the same.
        """
        number = _as_number(grad_norm)
        self.was_skipped = number < 0 or not math.isfinite(number)
        self.is_nonfinite = self.was_skipped and not self._is_loss_scaling()
        if self.is_nonfinite:
            self._num_in_a_row += 1
            self._report(number, step)
        elif not self.was_skipped:
            self._num_in_a_row = 0
        if self.was_skipped and self._accelerator.scaler is None:  # a scaler skips the step itself
            # Accelerate's optimizer takes it for an accumulation step, and does nothing.
            self._accelerator.sync_gradients = False
        self._record.clear()

    def _is_loss_scaling(self) -> bool:
        """Return whether the step is one of those with which float16's loss scaling finds its scale."""
        scaler, engine = self._accelerator.scaler, self._accelerator.distributed_type
        is_engines = engine == DistributedType.DEEPSPEED and self._accelerator.mixed_precision == "fp16"
        if scaler is None and not is_engines:
            return False
        has_scale_to_lose = scaler is None or scaler.get_scale() >= 1.0
        return has_scale_to_lose and not sum(self._num_nonfinite_losses())

    def _num_nonfinite_losses(self) -> list[int]:
        """Return, per process, how many of the step's losses are not finite; a collective."""
        number = len(self._record.nonfinite_losses().get("loss", []))
        numbers: list[int] = gather(torch.tensor([number], device=self._accelerator.device)).tolist()
        return numbers

    def _report(self, grad_norm: float, step: int) -> None:
        """Save and report a step that is not finite; a collective."""
        rank = self._accelerator.process_index
        path = save_step(self._folder, step, rank, self._record, grad_norm)
        is_deepspeed = self._accelerator.distributed_type == DistributedType.DEEPSPEED
        was_taken = is_deepspeed and not self._accelerator.optimizer_step_was_skipped
        num_losses_of_rank = self._num_nonfinite_losses()
        text = step_report(
            self._record,
            step=step,
            rank=rank,
            grad_norm=grad_norm,
            num_in_a_row=self._num_in_a_row,
            max_in_a_row=self._max_in_a_row,
            num_losses_of_rank=num_losses_of_rank,
            path=path,
            was_taken=was_taken,
            advice=self._advice,
        )
        if was_taken or self._num_in_a_row >= self._max_in_a_row:
            raise NonFiniteStepsError(text)
        if rank == 0 or num_losses_of_rank[rank]:
            logger.warning(text)


def _as_number(grad_norm: Any) -> float:
    """Return the gradient's norm; of DeepSpeed, -1 stands for one that is not finite, None for one not computed."""
    if isinstance(grad_norm, DTensor):
        grad_norm = grad_norm.full_tensor()
    return 0.0 if grad_norm is None else float(grad_norm)
