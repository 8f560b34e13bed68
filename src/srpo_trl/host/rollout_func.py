"""A user's rollout function whose completions are never empty."""

from typing import Any

from srpo_trl.seams.trl import RolloutFunc


class CheckedRolloutFunc:
    """A rollout function whose empty completions become one end token that nothing is trained on.

    TRL looks at the last token of every completion, and an empty one has none.

    Args:
        function: the user's.
        end_token: the tokenizer's end-of-sequence token.
    """

    def __init__(self, function: RolloutFunc, end_token: int) -> None:
        self.function = function
        self._end_token = end_token

    def __call__(self, prompts: list[Any], trainer: Any) -> dict[str, Any]:
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
