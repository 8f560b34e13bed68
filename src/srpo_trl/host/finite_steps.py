"""`GRPOTrainer` that takes no optimizer step on a loss or a gradient that is not finite.

One NaN or infinity turns every weight into NaN, on every process. Here such a step is skipped, counted, saved for
inspection and, after several in a row, the run stops with a report. Whatever is not finite (logits of the student,
states of the teacher, a loss, a gradient) reaches the norm of the gradient, which every process knows alike; reading
it is the only wait for the device.
"""

import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import DistributedType, gather
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from srpo_trl.host.checked_calls import CheckedCallsGRPOTrainer
from srpo_trl.host.nonfinite_report import StepRecord, nonfinite_gradients, report, save_step
from srpo_trl.rollout.batch import TrlBatch

if TYPE_CHECKING:
    from srpo_trl.config import SRPOConfig

logger = logging.getLogger(__name__)

FOLDER = "nonfinite"  # inside output_dir


class NonFiniteStepsError(RuntimeError):
    """Several optimizer steps in a row had a loss or a gradient that is not finite; the message is the report."""


class FiniteStepGRPOTrainer(CheckedCallsGRPOTrainer):
    """`CheckedCallsGRPOTrainer` that skips optimizer steps with a loss or a gradient that is not finite.

    With `max_nonfinite_steps` None it skips none. A skipped step leaves the weights and the optimizer's state, its
    counters included, as they were. TRL's counters and the learning rate's schedule go on. Subclasses put the losses
    of their branches into `_branch_losses`.
    """

    args: "SRPOConfig"
    model: PreTrainedModel

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._record = StepRecord()  # of the optimizer step under way
        self._branch_losses: dict[str, Tensor] = {}  # of the micro-batch under way, detached
        self._is_nonfinite_step = False  # the last optimizer step; False where loss scaling dropped it
        self._step_was_skipped = False
        self._num_nonfinite_in_a_row = 0
        super().__init__(*args, **kwargs)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: TrlBatch,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Tensor:
        """Return TRL's loss; where it is not finite, one whose gradient is NaN."""
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if not self.model.training or self.args.max_nonfinite_steps is None:
            return loss
        self._record.add(inputs, loss=loss.detach(), **self._branch_losses)
        # A product, because an infinite loss can have a finite gradient, and only gradients reach other processes.
        return loss * torch.where(loss.detach().isfinite(), 1.0, torch.nan).to(loss.dtype)

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Train on one micro-batch; after a step that was not finite, look at the gradients before they are clipped."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self._num_nonfinite_in_a_row and self.accelerator.sync_gradients:
            self._record.gradients = nonfinite_gradients(self.model)  # clipping by NaN makes all of them NaN
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Return the norm of the gradient, and decide on it whether the optimizer steps."""
        grad_norm = super()._get_grad_norm(model, grad_norm)
        if self.args.max_nonfinite_steps is None:
            return grad_norm
        number = _as_number(grad_norm)  # waits for the device
        self._step_was_skipped = number < 0 or not math.isfinite(number)
        self._is_nonfinite_step = self._step_was_skipped and not self._is_loss_scaling()
        if self._is_nonfinite_step:
            self._num_nonfinite_in_a_row += 1
            self._report(number)
        elif not self._step_was_skipped:
            self._num_nonfinite_in_a_row = 0
        if self._step_was_skipped and self.accelerator.scaler is None:  # a scaler skips the step itself
            # Accelerate's optimizer takes it for an accumulation step, and does nothing.
            self.accelerator.sync_gradients = False
        self._record.clear()
        return grad_norm

    def _is_loss_scaling(self) -> bool:
        """Return whether the step is one of those with which float16's loss scaling finds its scale."""
        scaler = self.accelerator.scaler
        if scaler is None and self.accelerator.mixed_precision != "fp16":
            return False
        has_scale_to_lose = scaler is None or scaler.get_scale() >= 1.0
        return has_scale_to_lose and not sum(self._num_nonfinite_losses())

    def _num_nonfinite_losses(self) -> list[int]:
        """Return, per process, how many of the step's losses are not finite; every process calls it alike."""
        number = len(self._record.nonfinite_losses().get("loss", []))
        return gather(torch.tensor([number], device=self.accelerator.device)).tolist()

    def _report(self, grad_norm: float) -> None:
        """Save and report a step that is not finite; every process calls it alike.

        Raises:
            NonFiniteStepsError: it is one too many, or the engine has taken the step all the same.
        """
        assert self.args.max_nonfinite_steps is not None
        step, rank = self.state.global_step + 1, self.accelerator.process_index
        path = save_step(Path(str(self.args.output_dir)) / FOLDER, step, rank, self._record, grad_norm)
        is_deepspeed = self.accelerator.distributed_type == DistributedType.DEEPSPEED
        was_taken = is_deepspeed and not self.accelerator.optimizer_step_was_skipped
        num_losses_of_rank = self._num_nonfinite_losses()
        text = report(
            self._record,
            step=step,
            rank=rank,
            grad_norm=grad_norm,
            num_in_a_row=self._num_nonfinite_in_a_row,
            max_in_a_row=self.args.max_nonfinite_steps,
            num_losses_of_rank=num_losses_of_rank,
            path=path,
            was_taken=was_taken,
        )
        if was_taken or self._num_nonfinite_in_a_row >= self.args.max_nonfinite_steps:
            raise NonFiniteStepsError(text)
        if rank == 0 or num_losses_of_rank[rank]:
            logger.warning(text)


def _as_number(grad_norm: Any) -> float:
    """Return the gradient's norm; of DeepSpeed, -1 stands for one that is not finite, None for one not computed."""
    if isinstance(grad_norm, DTensor):
        grad_norm = grad_norm.full_tensor()
    return 0.0 if grad_norm is None else float(grad_norm)
