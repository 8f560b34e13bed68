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

from srpo_trl.config import SRPOConfig
from srpo_trl.logs.completions_table import NUMBER_COLUMN, RolloutMeans
from srpo_trl.logs.examples_log import ExamplesLog, TrainedBatch
from srpo_trl.loss.ops import DistillationResult, Head
from srpo_trl.loss.token_weights import mean_one_weights
from srpo_trl.rollout.batch import RoutedBatch, TrlBatch, rollout_numbers
from srpo_trl.runs.log import EXAMPLES_FILE


class RolloutLog:
    """Follows rollouts from their making to their loss, as far as the configuration asks for it.

    Args:
        config: `log_completions`, `log_examples_steps` and what the weights depend on.
        accelerator: of the trainer.
        tokenizer: decodes examples.

    Attributes:
        numbers_B: int64, of this process's rollouts in the rollout batch that was begun last.
    """

    numbers_B: Tensor

    def __init__(
        self, config: SRPOConfig, accelerator: Accelerator, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        self._config = config
        self._accelerator = accelerator
        assert config.generation_batch_size is not None  # set by GRPOConfig
        self._means = (
            RolloutMeans(config.generation_batch_size, accelerator.device) if config.log_completions else None
        )
        self._examples = (
            ExamplesLog(Path(str(config.output_dir)) / EXAMPLES_FILE, config.log_examples_steps, tokenizer)
            if config.log_examples_steps and accelerator.is_main_process
            else None
        )

    @property
    def keeps_shown(self) -> bool:
        """Whether the texts that teachers are shown must travel with their rollouts."""
        return self._examples is not None

    def begin(self, first: int, num_rows: int) -> Tensor:
        """Number this process's rollouts of a new rollout batch, from the number of its first one on any process.

        The numbers are the same after a resume, and different for every rollout of a run.
        """
        if self._means is not None:
            self._means.begin(first)
        own = first + self._accelerator.process_index * num_rows
        self.numbers_B = torch.arange(own, own + num_rows, device=self._accelerator.device)
        return self.numbers_B

    def add(
        self,
        step: int,
        inputs: TrlBatch,
        routed: RoutedBatch,
        result: DistillationResult,
        mean_unnormalized_weight: Tensor,
        head: Head | None,
    ) -> None:
        """Take a micro-batch after its loss.

        Args:
            step: optimizer steps before this one.
            inputs, routed: the micro-batch.
            result: of its distillation.
            mean_unnormalized_weight: of the optimizer step.
            head: the teacher's; None where it is sharded.
        """
        if self._means is not None:
            self._means.add(
                rollout_numbers(inputs), routed.distilled_BT, result.divergence_N, routed.teacher_entropy_BT
            )
        if self._examples is not None and self._examples.wants(step):
            raw_weight_BT = self._config.method_record.raw_weights(routed.tokens(step))
            weight_BT = mean_one_weights(
                raw_weight_BT, mean_unnormalized_weight, routed.teacher_entropy_BT.dtype
            )
            batch = TrainedBatch(inputs, routed, result, weight_BT, head, self._config.temperature)
            self._examples.write(step, batch)

    def fill_table(self, table: dict[str, Any], sum_over_processes: Callable[[Tensor], Tensor]) -> None:
        """Add the columns that only the loss knows to TRL's table, in place; every process calls it alike."""
        if self._means is not None:
            columns = table["extra"]
            numbers = columns[NUMBER_COLUMN]
            for name, values in self._means.columns(list(numbers), sum_over_processes).items():
                columns[name] = deque(values, maxlen=numbers.maxlen)
