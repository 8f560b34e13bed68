"""`GRPOTrainer` that checks what goes into generation and what rollout and reward functions give back."""

from typing import TYPE_CHECKING, Any

from datasets import Dataset
from torch.utils.data import Sampler
from transformers import PreTrainedModel

from srpo_trl.base_trainers.logged import LoggedGRPOTrainer
from srpo_trl.base_trainers.reward_calls import checked_rewards
from srpo_trl.checks.datasets import chat_template_problems, prompt_room, size_problems
from srpo_trl.trl_seams import RolloutFunc

if TYPE_CHECKING:
    from srpo_trl.config import SRPOConfig


class CheckedCallsGRPOTrainer(LoggedGRPOTrainer):
    """`LoggedGRPOTrainer` with checked prompts, completions and scores.

    Raises:
        ValueError: the prompts are conversations and the tokenizer has no chat template.
    """

    args: "SRPOConfig"
    model: PreTrainedModel
    train_dataset: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        problems = list(chat_template_problems(self.train_dataset, self.processing_class, self.chat_template))
        if problems:
            raise ValueError("\n".join(problems))
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

    def _tokenize_prompts(self, prompts: list) -> Any:
        """Return TRL's tokenized prompts, all of which leave room for a completion of full length."""
        if any(prompt is None or prompt == [] for prompt in prompts):
            raise ValueError(
                "A row of the dataset has no prompt (None, or a conversation without a message). Drop such rows, for "
                "example with dataset.filter(lambda row: row['prompt'])."
            )
        tokenized = super()._tokenize_prompts(prompts)
        room = prompt_room(self.model.config, self.max_completion_length)
        longest = max(map(len, tokenized[0]))
        if self.args.routing != "grpo" and room is not None and longest > room:
            raise ValueError(
                f"A prompt of {longest} tokens and a completion of up to max_completion_length="
                f"{self.max_completion_length} tokens do not fit into the model's context. Drop prompts of more than "
                f"{room} tokens from the dataset, or lower max_completion_length. The last checkpoint is whole; "
                "training can be resumed from it."
            )
        return tokenized


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
