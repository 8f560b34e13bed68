"""What is kept and said of an optimizer step whose loss or gradient is not finite.

All of this runs after such a step only, so it may wait for the device.
"""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from srpo_trl.seams.parameters import local_shard, named_trainable

logger = logging.getLogger(__name__)

NUM_SAVED_STEPS = 5  # of each process; older ones are removed
_NUM_SHOWN = 8


class StepRecord:
    """One process's micro-batches of an optimizer step and their losses: references, nothing is copied.

    Attributes:
        micro_batches: TRL's, in the order they were trained on.
        losses: of each micro-batch, () each, by name: "loss" is what was differentiated.
        gradients: names of trainable parameters whose gradient is not finite, in the model's order, and the number
            of those looked at; None where none were.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Let go of everything."""
        self.micro_batches: list[dict[str, Any]] = []
        self.losses: list[dict[str, Tensor]] = []
        self.gradients: tuple[list[str], int] | None = None

    def add(self, micro_batch: dict[str, Any], **losses: Tensor) -> None:
        """Remember a micro-batch and its losses."""
        self.micro_batches.append(micro_batch)
        self.losses.append(losses)

    def nonfinite_losses(self) -> dict[str, list[int]]:
        """Return the micro-batches whose loss is not finite, by the loss's name; without names that have none."""
        found: dict[str, list[int]] = {}
        for number, losses in enumerate(self.losses):
            for name, loss in losses.items():
                if not loss.isfinite():
                    found.setdefault(name, []).append(number)
        return found

    def nonfinite_rows(self) -> dict[tuple[str, int], list[int]]:
        """Return the rows with a value that is not finite, by key of the batch and number of the micro-batch."""
        found = {}
        for number, micro_batch in enumerate(self.micro_batches):
            num_rows = len(micro_batch["completion_ids"])
            for key, value in micro_batch.items():
                if isinstance(value, Tensor) and value.dim() and len(value) == num_rows:
                    is_finite_B = value.reshape(num_rows, -1).isfinite().all(1)
                    if rows := (~is_finite_B).nonzero().flatten().tolist():
                        found[key, number] = rows
        return found


def nonfinite_gradients(model: nn.Module) -> tuple[list[str], int]:
    """Return the names of trainable parameters whose gradient is not finite, and how many have a gradient at all.

    Of a sharded gradient this process's part is looked at.
    """
    gradients = [(name, local_shard(p.grad)) for name, p in named_trainable(model) if p.grad is not None]
    if not gradients:  # DeepSpeed keeps them to itself
        return [], 0
    is_finite = torch.stack([gradient.isfinite().all() for _, gradient in gradients]).tolist()
    names = [name for (name, _), finite in zip(gradients, is_finite, strict=True) if not finite]
    return names, len(gradients)


def save_step(folder: Path, step: int, rank: int, record: StepRecord, grad_norm: float) -> Path | None:
    """Write a step's micro-batches and losses to `step-N-rank-R.pt` and return its path; None where that fails.

    The file holds plain tensors, lists and numbers, so `torch.load(path, weights_only=True)` reads it. Of the batch
    it has what is of at most two dimensions: token ids, masks, routes, advantages, log-probabilities, teacher
    entropies; not the teacher's hidden states, nor images.
    """
    path = folder / f"step-{step}-rank-{rank}.pt"
    contents = {
        "step": step,
        "grad_norm": grad_norm,
        "losses": [{name: loss.cpu() for name, loss in losses.items()} for losses in record.losses],
        "micro_batches": [_small_tensors(micro_batch) for micro_batch in record.micro_batches],
        "nonfinite_gradients": record.gradients[0] if record.gradients else [],
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(contents, path)
    except (OSError, RuntimeError) as error:  # a full disk must not hide what is reported
        logger.warning("The batch of step %d could not be saved to %s: %s", step, path, error)
        return None
    saved = sorted(folder.glob(f"step-*-rank-{rank}.pt"), key=lambda file: int(file.name.split("-")[1]))
    for old in saved[:-NUM_SAVED_STEPS]:
        old.unlink()
    return path


def _small_tensors(micro_batch: dict[str, Any]) -> dict[str, Any]:
    return {
        key: value.detach().cpu()
        for key, value in micro_batch.items()
        if isinstance(value, Tensor) and value.dim() <= 2
    }


def report(
    record: StepRecord,
    *,
    step: int,
    rank: int,
    grad_norm: float,
    num_in_a_row: int,
    max_in_a_row: int,
    num_losses_of_rank: Sequence[int],
    path: Path | None,
    was_taken: bool,
) -> str:
    """Return what is known of a step that is not finite, and what to try.

    Args:
        record: of this process.
        step: optimizer step, from 1.
        rank: of this process.
        grad_norm: of all processes' gradient.
        num_in_a_row: steps that were not finite, this one included.
        max_in_a_row: that stop the run.
        num_losses_of_rank: micro-batches with a loss that is not finite, per process.
        path: of the saved batch.
        was_taken: the engine has taken the step in spite of it.
    """
    rows = record.nonfinite_rows()
    lines = [
        f"Optimizer step {step}: the loss or the gradient is not finite (norm of the gradient: {grad_norm:g}), for the "
        f"{_ordinal(num_in_a_row)} time in a row; max_nonfinite_steps={max_in_a_row}.",
        _WAS_TAKEN if was_taken else _WAS_SKIPPED,
        *(f"- {finding}" for finding in _findings(record, rows, rank, num_losses_of_rank)),
    ]
    if path is not None:
        lines.append(f"Saved: {path}; read it with torch.load(path, weights_only=True).")
    is_teachers = any("teacher" in key for key, _ in rows)
    lines.append(f"What to try: {_TEACHER_ADVICE if is_teachers else _ADVICE}")
    return "\n".join(lines)


_WAS_SKIPPED = "The step was skipped: weights, optimizer state and teacher are those of before."
_WAS_TAKEN = (
    "DeepSpeed took this step: the weights are lost. Leave check_grad_overflow at true in the bf16 section of its "
    "configuration, and resume from the last checkpoint."
)
_ADVICE = (
    "a lower learning_rate, max_grad_norm where it is 0, bf16 in place of fp16, a model whose logits hold no -inf "
    "(a padded vocabulary does); then resume from the last checkpoint."
)
_TEACHER_ADVICE = (
    "the teacher's logits are not finite there. Look at these rows; take a smaller teacher_update_rate, or "
    "teacher_model_kind='base'; then resume from the last checkpoint."
)
_LOSS_NAMES = {
    "loss": "loss",
    "policy": "loss of the policy branch",
    "distilled": "loss of the distillation branch",
}


def _findings(
    record: StepRecord,
    rows: dict[tuple[str, int], list[int]],
    rank: int,
    num_losses_of_rank: Sequence[int],
) -> Iterator[str]:
    for name, numbers in record.nonfinite_losses().items():
        yield f"{_LOSS_NAMES[name]}: in micro-batches {_shown(numbers)} of {len(record.losses)}, counted from 0"
    others = [other for other, number in enumerate(num_losses_of_rank) if number and other != rank]
    if others:
        yield f"loss on processes {_shown(others)}, which report their own"
    for (key, number), found in rows.items():
        yield f"{key}: in rows {_shown(found)} of micro-batch {number}"
    if not any(num_losses_of_rank):
        yield "every loss is finite; the gradient is not"
        if record.gradients and record.gradients[0]:
            names, num_looked_at = record.gradients
            yield f"gradient: from {names[-1]} back, {len(names)} of {num_looked_at} parameters"


def _ordinal(number: int) -> str:
    return {1: "first", 2: "second", 3: "third"}.get(number, f"{number}th")


def _shown(numbers: Sequence[int]) -> str:
    more = f" and {len(numbers) - _NUM_SHOWN} more" if len(numbers) > _NUM_SHOWN else ""
    return ", ".join(map(str, numbers[:_NUM_SHOWN])) + more
