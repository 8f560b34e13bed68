"""What the probe of a model decides, identically on every rank."""

import logging

from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast_object_list
from transformers import PreTrainedModel

from srpo_trl.seams.parameters import is_zero3
from srpo_trl.seams.residence import residence
from srpo_trl.teacher.packing import Layout, row_layout
from srpo_trl.teacher.positions import give_positions
from srpo_trl.teacher.probe import ModelProbe, ModelProblemError, probe_model

_logger = logging.getLogger(__name__)


def prepare_student(
    student: PreTrainedModel,
    reference: PreTrainedModel | None,
    *,
    temperature: float,
    accelerator: Accelerator,
    reads_images: bool,
) -> Layout:
    """Return the layout of the teacher's rows, after the model has been tried with a few tokens.

    Where the models count positions from a row's padding on, they are given position ids from here on. A
    collective: all ranks must call it, after the forwards of both losses are in place.

    Args:
        student: the transformers model inside wrappers.
        reference: TRL's frozen reference model, of the same architecture, or None.
        temperature: that TRL's fused head divides logits by.
        accelerator: the engine.
        reads_images: a vision-language model, whose teacher rows are padded.
    Raises:
        ValueError: training would use other log-probabilities than the model's.
    """
    layout: Layout = "padded" if reads_images else row_layout(student)
    found = _probe_on_every_rank(student, layout, temperature, accelerator)
    name = type(student).__name__
    if found.layout != layout:
        _logger.warning(
            "%s: teacher rows in layout %r differ from plain passes; they are laid out as %r.",
            name,
            layout,
            found.layout,
        )
    if found.needs_positions:
        _logger.warning(
            "%s counts positions from a row's padding on: it is given position_ids in training. GRPOTrainer does not.",
            name,
        )
        for model in (student, reference):
            if model is not None:
                give_positions(model)
    return found.layout


def _probe_on_every_rank(
    student: PreTrainedModel, layout: Layout, temperature: float, accelerator: Accelerator
) -> ModelProbe:
    """Return the first process's finding on all, so that none trains in another way or waits for one that raised."""
    # FSDP may load the weights on the first process alone.
    runs_here = accelerator.distributed_type != DistributedType.FSDP or accelerator.is_main_process
    found: list[ModelProbe | str | None] = [None]
    if runs_here:
        try:
            found = [
                probe_model(
                    student,
                    layout,
                    temperature=temperature,
                    device=accelerator.device,
                    autocast=accelerator.autocast,
                    resident=residence(student, accelerator.device, zero3=is_zero3(accelerator)),
                )
            ]
        except ModelProblemError as error:
            found = [str(error)]
    broadcast_object_list(found)
    if isinstance(found[0], ModelProbe):
        return found[0]
    raise ModelProblemError(found[0])
