"""`GRPOTrainer` that checks what goes into generation and what rollout and reward functions give back."""

import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather
from datasets import Dataset
from torch import Tensor
from torch.utils.data import Sampler
from transformers import PreTrainedModel
from trl import prepare_multimodal_messages

from srpo_trl.host.datasets import (
    REWARD_KEYWORDS,
    chat_template_problems,
    environment_problems,
    image_problems,
    max_prompt_length,
    named_datasets,
    row_problems,
    size_problems,
)
from srpo_trl.host.logged import LoggedGRPOTrainer
from srpo_trl.host.rewards.calls import checked_rewards
from srpo_trl.host.rewards.columns import reward_columns
from srpo_trl.host.rows import first_row, foreign_prompt
from srpo_trl.host.usable_rows import COLUMNS_OF_TRL, row_images, usable_rows, without_empty_images
from srpo_trl.seams.messages import has_image
from srpo_trl.seams.trl import RolloutFunc
from srpo_trl.teacher.rendered_prompts import ROW_ERRORS

if TYPE_CHECKING:
    from srpo_trl.config import SRPOConfig

logger = logging.getLogger(__name__)

EXCLUDED = "rows/excluded_frac"  # logged for the batches in which there is one


class CheckedCallsGRPOTrainer(LoggedGRPOTrainer):
    """`LoggedGRPOTrainer` with checked rows, completions and scores.

    A row that cannot be sampled for is refused when the trainer is made, where it can be seen then. Later its rollouts
    are those of another row, and have no score.

    Raises:
        ValueError: rows that TRL cannot tokenize or whose images the model does not read; conversations without a chat
            template.
    """

    args: "SRPOConfig"
    model: PreTrainedModel
    train_dataset: Any
    eval_dataset: Any
    environment_factories: Any
    _metrics: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        problems = list(self._row_problems())
        if problems:
            raise ValueError("\n".join(problems))
        self._excluded: Sequence[str | None] = ()  # why, of each row of the batch in hand
        self._rows_of_rewards: list[dict[str, Any]] | None = None
        self._has_warned_of_rows = False
        self._reward_columns = reward_columns(self.reward_funcs)
        if self.rollout_func is not None:  # it adds the others itself
            row = first_row(self.train_dataset, drops_unused=False) or {}
            self._reward_columns = self._reward_columns.needing_only(row)
        self.reward_funcs = checked_rewards(
            self.reward_funcs, self.reward_func_names, self.args.reward_timeout, self.reward_weights.tolist()
        )
        if self.rollout_func is not None:
            self.rollout_func = _CheckedRolloutFunc(self.rollout_func, self._tokenizer.eos_token_id)

    def _get_train_sampler(self, dataset: Dataset | None = None) -> Sampler:
        """Return TRL's sampler of training rows, of which there are enough for a batch; evaluation alone needs none."""
        rows = self.train_dataset if dataset is None else dataset
        for problem in size_problems(self.args, len(rows)):
            raise ValueError(problem)
        return super()._get_train_sampler(dataset)

    # ---------------------------------------------------------------- when the trainer is made

    def _row_problems(self) -> Iterator[str]:
        """Yield what is wrong with rows, as far as tokenizer and model are needed to see it."""
        for name, dataset in named_datasets(self.train_dataset, self.eval_dataset):
            if not self._is_vlm:
                yield from image_problems(name, dataset)
            if self.environment_factories is not None:  # it may write the prompt
                names = [key for key in self.environment_factories if key is not None]
                if names:  # each row says which
                    yield from environment_problems(name, dataset, names)
                continue
            prompt = (first_row(dataset, drops_unused=False) or {}).get("prompt")
            without_template = list(chat_template_problems(prompt, self.processing_class, self.chat_template))
            yield from without_template
            if self.rollout_func is None and not without_template:
                room = self._max_prompt_length if name == "train_dataset" else None
                yield from row_problems(name, dataset, self._tokens_of, room)

    @property
    def _max_prompt_length(self) -> int | None:
        """Most tokens of a prompt beside a completion of full length; `GRPOTrainer` itself does not look at it."""
        if self.args.method_record.is_plain:
            return None
        return max_prompt_length(self.model.config, self.max_completion_length)

    def _tokens_of(self, row: dict[str, Any]) -> Sequence[int]:
        """Return a row's prompt as TRL tokenizes it; raises one of `ROW_ERRORS` where it cannot."""
        prompt, images = row["prompt"], row_images(row)
        if images:
            prompt = prepare_multimodal_messages(prompt, images=images)
        return self._tokenize_prompts([prompt])[0][0]

    def _num_tokens(self, row: dict[str, Any]) -> int:
        """Return the tokens of a row's prompt without images; 0 where it cannot be sampled for."""
        try:
            return len(self._tokenize_prompts([row["prompt"]])[0][0])
        except ROW_ERRORS:
            return 0

    # ---------------------------------------------------------------- batch by batch

    def _problem_of(self, row: dict[str, Any]) -> str | None:
        """Return why a row cannot be sampled for; None where it can."""
        held = foreign_prompt(row["prompt"])
        if held is not None:
            return f"its prompt is given as {held}"
        if row["prompt"] is None or row["prompt"] == []:
            return "it has no prompt"
        if not self._is_vlm and (row_images(row) or has_image(row["prompt"])):
            return "it has images, which the model does not read"
        if self.rollout_func is not None:
            return None
        try:
            num_tokens = len(self._tokens_of(row))
        except ROW_ERRORS as error:
            return f"{type(error).__name__}: {error}"
        room = self._max_prompt_length
        if room is not None and num_tokens > room:
            return f"its {num_tokens} tokens are more than the {room} for which the model's context has room"
        return None if num_tokens else "its prompt has no tokens"

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        """Return TRL's rollout batch of rows that can be sampled for."""
        if self.environment_factories is not None:
            return super()._generate_and_score_completions(inputs)
        kept = (*COLUMNS_OF_TRL, str(self.args.reference_column))
        rows = self._reward_columns.fitted(inputs, keywords=REWARD_KEYWORDS, kept=kept)
        usable = usable_rows(rows, self._problem_of)
        self._excluded, self._rows_of_rewards = usable.reasons, usable.rows
        try:
            return super()._generate_and_score_completions(without_empty_images(usable.rows))
        finally:
            self._excluded, self._rows_of_rewards = (), None

    def _generate(self, prompts: list) -> Any:
        """Return TRL's generation; a prompt without an image among others has an empty list, as processors want it."""
        *generated, images, tool_images = super()._generate(prompts)
        return *generated, images and [of_prompt or [] for of_prompt in images], tool_images

    def _calculate_rewards(
        self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any
    ) -> Tensor:
        """Return TRL's rewards of all processes, NaN in the place of rows that were left out."""
        rewards_BF = super()._calculate_rewards(
            self._whole_rows(inputs), prompts, completions, completion_ids_list
        )
        if self._rows_of_rewards is None:
            return rewards_BF
        is_excluded = [int(reason is not None) for reason in self._excluded]
        is_excluded_B = gather(torch.tensor(is_excluded, device=rewards_BF.device)).bool()
        if not is_excluded_B.any():
            return rewards_BF
        self._metrics["train" if self.model.training else "eval"][EXCLUDED].append(
            float(is_excluded_B.float().mean())
        )
        self._warn_of_rows()
        return rewards_BF.masked_fill(is_excluded_B.unsqueeze(1), torch.nan)

    def _whole_rows(self, inputs: Any) -> Any:
        """Return TRL's rows, to which a rollout function may have added, with the columns that it was not shown."""
        if self._rows_of_rewards is None:
            return inputs
        return [{**row, **given} for row, given in zip(self._rows_of_rewards, inputs, strict=True)]

    def _warn_of_rows(self) -> None:
        reason = next(filter(None, self._excluded), None)
        if reason is not None and not self._has_warned_of_rows:
            self._has_warned_of_rows = True
            logger.warning(
                "A row of the dataset is left out: %s. Its rollouts are those of another row and have no score; the "
                "metric %s counts such rows.",
                reason,
                EXCLUDED,
            )


class _CheckedRolloutFunc:
    """A rollout function whose empty completions become one end token that nothing is trained on.

    TRL looks at the last token of every completion, and an empty one has none.

    Args:
        function: the user's.
        end_token: the tokenizer's end-of-sequence token.
    """

    def __init__(self, function: RolloutFunc, end_token: int) -> None:
        self.function = function
        self._end_token = end_token

    def __call__(self, prompts: list, trainer: Any) -> dict[str, Any]:
        """Return what the function does, without empty completions."""
        output = self.function(prompts, trainer)
        completions = output.get("completion_ids", [])
        if all(map(len, completions)):
            return output
        masks = output.get("env_mask") or [[1] * len(ids) for ids in completions]
        logprobs = output["logprobs"]
        return {
            **output,
            "completion_ids": [ids if len(ids) else [self._end_token] for ids in completions],
            "env_mask": [mask if len(mask) else [0] for mask in masks],
            "logprobs": logprobs and [row if len(row) else [0.0] for row in logprobs],
        }
