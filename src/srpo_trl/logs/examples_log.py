"""A few routed rollouts of a training step, token by token, for the report's page of examples.

Only the steps that are asked for wait for the device and decode text; only the main process writes, from its own rows.

Legend: B rows of a micro-batch, T completion positions, N packed distilled tokens (row by row), n distilled tokens of
one row, C the most corrected of them, V vocabulary.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from srpo_trl.loss.ops import DistillationResult, Head
from srpo_trl.loss.ops.projection import matmul_precision, project_
from srpo_trl.rollout.batch import RoutedBatch, TrlBatch, context_columns, rollout_numbers
from srpo_trl.runs.log import RunLog

EXAMPLES_PER_STEP = 4
CHOICES_PER_EXAMPLE = 32  # tokens, the most corrected ones, for which the teacher's own choice is written
_TILE_ROWS = 8192  # of the LM head, upcast to float32 at a time
_DIGITS = 4


@dataclass(frozen=True)
class TrainedBatch:
    """A micro-batch after its loss.

    Attributes:
        inputs: TRL's micro-batch.
        routed: the same, translated.
        result: of the distillation branch.
        weight_BT: w, mean 1 over the optimizer step's distilled tokens.
        head: the teacher's LM head; None where it is sharded, and the teacher's choices are left out.
        temperature: of both sides' logits.
    """

    inputs: TrlBatch
    routed: RoutedBatch
    result: DistillationResult
    weight_BT: Tensor
    head: Head | None
    temperature: float


class ExamplesLog:
    """Writes up to `EXAMPLES_PER_STEP` distilled rollouts of every so many optimizer steps.

    Args:
        path: of the JSON-lines file.
        every_steps: optimizer steps from one that is written to the next, the first one included.
        tokenizer: decodes.
    """

    def __init__(self, path: Path, every_steps: int, tokenizer: PreTrainedTokenizerBase) -> None:
        self._log = RunLog(path)
        self._every_steps = every_steps
        self._tokenizer = tokenizer
        self._step: int | None = None  # optimizer steps before the last one that was written
        self._num_written = 0  # of that step

    def wants(self, step: int) -> bool:
        """Whether examples of the optimizer step after `step` others are still to be written."""
        return step % self._every_steps == 0 and (self._step != step or self._num_written < EXAMPLES_PER_STEP)

    @torch.no_grad()
    def write(self, step: int, batch: TrainedBatch) -> None:
        """Write the first distilled rollouts of a micro-batch of the optimizer step after `step` others."""
        if self._step is None:
            self._log.begin(step)
        if self._step != step:
            self._step, self._num_written = step, 0
        num_tokens = batch.routed.distilled_BT.sum(1).tolist()
        first = 0
        for row, num in enumerate(num_tokens):
            if num and self._num_written < EXAMPLES_PER_STEP:
                self._log.append({"step": step + 1, **self._example(batch, row, slice(first, first + num))})
                self._num_written += 1
            first += num

    def _example(self, batch: TrainedBatch, row: int, packed: slice) -> dict[str, Any]:
        inputs, routed, result = batch.inputs, batch.routed, batch.result
        distilled_T = routed.distilled_BT[row]
        positions_n = distilled_T.nonzero().squeeze(1)
        divergence_n, weight_n = result.divergence_N[packed], batch.weight_BT[row][distilled_T]
        length = int(inputs["completion_mask"][row].sum())

        def per_token(values_n: Tensor) -> list[float | None]:
            values: list[float | None] = [None] * length
            for position, value in zip(positions_n.tolist(), values_n.tolist(), strict=True):
                values[position] = round(value, _DIGITS)
            return values

        prompt_ids = inputs["prompt_ids"][row][inputs["prompt_mask"][row].bool()]
        most_corrected_C = (divergence_n * weight_n).topk(min(CHOICES_PER_EXAMPLE, len(positions_n))).indices
        return {
            "rollout": int(rollout_numbers(inputs)[row]),
            "route": routed.route_names[row],
            **context_columns(inputs)[row],
            "prompt": self._tokenizer.decode(prompt_ids),
            "tokens": token_texts(self._tokenizer, inputs["completion_ids"][row][:length].tolist()),
            "divergence": per_token(divergence_n),
            "weight": per_token(weight_n),
            "teacher_entropy": per_token(routed.teacher_entropy_BT[row][distilled_T]),
            "student_probability": per_token(result.student_logps_N[packed].exp()),
            "teacher_choices": self._choices(batch, row, most_corrected_C, positions_n),
        }

    def _choices(
        self, batch: TrainedBatch, row: int, chosen_C: Tensor, positions_n: Tensor
    ) -> list[tuple[int, str, float]]:
        """Return position, text and probability of the token that the teacher would most likely have written."""
        head = batch.head
        if head is None:
            return []
        hidden_CD = batch.routed.teacher_hidden[row].to(head.weight_VD.device)[chosen_C]
        logits_CV = hidden_CD.new_empty(len(chosen_C), len(head.weight_VD), dtype=torch.float32)
        way = matmul_precision(hidden_CD, head.weight_VD, torch.float32)
        project_(logits_CV, hidden_CD, head, batch.temperature, way, _TILE_ROWS)
        probability_C, token_C = logits_CV.softmax(-1).max(-1)
        return [
            (position, str(self._tokenizer.decode([token])), round(probability, _DIGITS))
            for position, token, probability in zip(
                positions_n[chosen_C].tolist(), token_C.tolist(), probability_C.tolist(), strict=True
            )
        ]


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[str]:
    """Return the text that each token adds, special tokens included; joined they are the text of all.

    A character that several tokens make together belongs to the last of them. Each token is decoded after the one
    before it, since tokenizers treat the start of a text apart.
    """

    def text(first: int, end: int) -> str:
        return str(tokenizer.decode(ids[first:end], clean_up_tokenization_spaces=False))

    texts = [""] * len(ids)
    context = start = 0  # ids[context:start] have been shown, ids[start:] have not
    for end in range(1, len(ids) + 1):
        known, longer = text(context, start), text(context, end)
        is_whole = len(longer) > len(known) and not longer.endswith("\ufffd")
        if is_whole or end == len(ids):
            texts[end - 1] = longer[len(known) :]
            context, start = start, end
    return texts
