"""Sampled accuracy: the share of questions that one completion at temperature 1 answers rightly."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from srpo_trl.commands.quickstart.task import SOLUTION_TOKENS, Question, is_right

BATCH_SIZE = 512


@torch.no_grad()
def sample_completions(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[Sequence[int]],
    seed: int,
    max_new_tokens: int = SOLUTION_TOKENS,
) -> list[str]:
    """Return one completion per prompt, sampled at temperature 1; the global random state is left alone.

    Args:
        model: left in the mode (training or evaluation) that it is in.
        tokenizer: decodes; its padding side is left.
        prompts: token ids.
        seed: of the sampling; the same seed gives the same completions on one machine.
        max_new_tokens: where a completion without an end is cut.
    """
    texts: list[str] = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for start in range(0, len(prompts), BATCH_SIZE):
            rows = [list(prompt) for prompt in prompts[start : start + BATCH_SIZE]]
            batch = tokenizer.pad({"input_ids": rows}, return_tensors="pt").to(model.device)
            output = cast(Any, model).generate(
                **batch, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=max_new_tokens
            )
            completions = output[:, batch["input_ids"].shape[1] :]
            texts += tokenizer.batch_decode(completions, skip_special_tokens=True)
    return texts


def sampled_accuracy(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[Sequence[int]],
    questions: Sequence[Question],
    seed: int,
) -> float:
    """Return the share of the questions whose sampled completion is right, in [0, 1].

    Args:
        model, tokenizer, prompts, seed: see `sample_completions`.
        questions: what each prompt asks, in the same order.
    """
    texts = sample_completions(model, tokenizer, prompts, seed)
    right = [is_right(text, question.answer) for text, question in zip(texts, questions, strict=True)]
    return sum(right) / len(right)


def standard_error(accuracy: float, num_questions: int) -> float:
    """Return the binomial standard error of an accuracy measured on `num_questions` independent samples."""
    return (accuracy * (1 - accuracy) / num_questions) ** 0.5
