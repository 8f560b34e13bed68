"""Sampled accuracy: the share of questions that one completion at temperature 1 answers rightly."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from srpo_trl.commands.quickstart.prompts import student_prompts, teacher_prompts
from srpo_trl.commands.quickstart.task import SOLUTION_TOKENS, Question, is_right

BATCH_SIZE = 512


class HeldOut:
    """Questions that a model is not trained on, and its accuracy on them.

    Args:
        tokenizer: its padding side is left.
        questions: the same in every measurement.
        seed: of the sampling; the same seed gives the same completions on one machine.
        is_right: whether a text answers a question with this answer.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        questions: Sequence[Question],
        seed: int,
        is_right: Callable[[str, str], bool] = is_right,
    ) -> None:
        self._tokenizer, self._questions, self._seed = tokenizer, questions, seed
        self._is_right = is_right
        self._prompts = {
            False: student_prompts(tokenizer, questions),
            True: teacher_prompts(tokenizer, questions),
        }

    def accuracy(self, model: Qwen3ForCausalLM, *, shown: bool = False) -> float:
        """Return the share of right answers, with a right solution shown as the teacher sees it or without."""
        texts = sample_completions(model, self._tokenizer, self._prompts[shown], self._seed)
        right = [self._is_right(text, q.answer) for text, q in zip(texts, self._questions, strict=True)]
        return sum(right) / len(right)


def sample_completions(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[Sequence[int]],
    seed: int,
    max_new_tokens: int = SOLUTION_TOKENS,
    batch_size: int = BATCH_SIZE,
) -> list[str]:
    """Return one completion per prompt, sampled at temperature 1; the global random state is left alone.

    Args:
        model: left in the mode (training or evaluation) that it is in.
        tokenizer, seed: see `HeldOut`.
        prompts: token ids.
        max_new_tokens: where a completion without an end is cut.
        batch_size: prompts at a time.
    """
    texts: list[str] = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for start in range(0, len(prompts), batch_size):
            batch = prompts[start : start + batch_size]
            completions = sample_ids(model, tokenizer, batch, max_new_tokens)
            texts += tokenizer.batch_decode(completions, skip_special_tokens=True)
    return texts


@torch.no_grad()
def sample_ids(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
) -> Tensor:
    """Return one completion per prompt at temperature 1, with the random state as it is: (B, T) int64, padded."""
    rows = [list(prompt) for prompt in prompts]
    batch = tokenizer.pad({"input_ids": rows}, return_tensors="pt").to(model.device)
    output: Tensor = cast(Any, model).generate(
        **batch, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=max_new_tokens
    )
    return output[:, batch["input_ids"].shape[1] :]
