"""What is logged of single rollouts: columns of TRL's completions table, and examples token by token.

A rollout is routed in one place and trained on in another, after TRL has shuffled the rows; its number travels with it.

Legend: B rows of a micro-batch, or rollouts of this process.
"""

from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from srpo_trl.logs.completions_table import NUMBER_COLUMN, RolloutMeans
from srpo_trl.logs.examples_log import ExamplesLog, TrainedBatch
from srpo_trl.loss.ops import DistillationResult, Head
from srpo_trl.rollout.batch import RoutedBatch, TrlBatch, rollout_numbers
from srpo_trl.runs.log import EXAMPLES_FILE


class RolloutLog:
    """Follows rollouts from their making to their loss, as far as the configuration asks for it.

    Args:
        args: an `SRPOConfig`: what is logged, where, and the temperature.
        accelerator: of the trainer.
        tokenizer: decodes examples.

    Attributes:
        numbers_B: int64, of this process's rollouts in the rollout batch that was begun last.
    """

    numbers_B = torch.zeros(0, dtype=torch.int64)

    def __init__(self, args: Any, accelerator: Accelerator, tokenizer: PreTrainedTokenizerBase) -> None:
        self._temperature = args.temperature
        self._accelerator = accelerator
        assert args.generation_batch_size is not None  # set by GRPOConfig
        self._means = (
            RolloutMeans(args.generation_batch_size, accelerator.device) if args.log_completions else None
        )
        self._examples = (
            ExamplesLog(Path(str(args.output_dir)) / EXAMPLES_FILE, args.log_examples_steps, tokenizer)
            if args.log_examples_steps and accelerator.is_main_process
            else None
        )

    @property
    def keeps_shown(self) -> bool:
        """Whether the texts that teachers are shown must travel with their rollouts."""
        return self._examples is not None

    def begin(self, first: int, num_rows: int) -> None:
        """Number this process's rollouts of a new rollout batch, from the number of its first one on any process.

        The numbers are the same after a resume, and different for every rollout of a run.
        """
        if self._means is not None:
            self._means.begin(first)
        own = first + self._accelerator.process_index * num_rows
        self.numbers_B = torch.arange(own, own + num_rows, device=self._accelerator.device)

    def columns(self) -> dict[str, list[int]]:
        """Return the columns of the completions table by which rollouts are recognized once they are trained on."""
        return {NUMBER_COLUMN: self.numbers_B.tolist()}

    def add(
        self,
        step: int,
        inputs: TrlBatch,
        routed: RoutedBatch,
        result: DistillationResult,
        weights: Callable[[], Tensor],
        head: Head | None,
    ) -> None:
        """Take a micro-batch after its loss.

        Args:
            step: optimizer steps before this one.
            inputs, routed: the micro-batch.
            result: of its distillation.
            weights: returns w of each token, (B, T), mean 1 over the optimizer step's distilled tokens.
            head: the teacher's; None where it is sharded.
        """
        if self._means is not None:
            self._means.add(
                rollout_numbers(inputs), routed.distilled_BT, result.divergence_N, routed.teacher_entropy_BT
            )
        if self._examples is not None and self._examples.wants(step):
            batch = TrainedBatch(inputs, routed, result, weights(), head, self._temperature)
            self._examples.write(step, batch)

    def fill_table(self, table: dict[str, Any], sum_over_processes: Callable[[Tensor], Tensor]) -> None:
        """Add the columns that only the loss knows to TRL's table, in place. A collective: all ranks must call it.

        A column that some of the table's batches did not have is filled up: TRL takes columns of one length alone.
        """
        if self._means is not None:
            columns = table["extra"]
            numbers = columns[NUMBER_COLUMN]
            for values in columns.values():
                values.extendleft([None] * (len(numbers) - len(values)))
            for name, values in self._means.columns(list(numbers), sum_over_processes).items():
                columns[name] = deque(values, maxlen=numbers.maxlen)
