"""Stored rollouts for the methods that read them."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from benchmarks.family.rows import TASK
from benchmarks.learning.rollouts import completed
from benchmarks.learning.run import NUM_GENERATIONS
from srpo_trl.commands.quickstart.held_out import BATCH_SIZE
from srpo_trl.commands.quickstart.prompts import student_prompts
from srpo_trl.commands.quickstart.task import Question, prompt_dataset
from srpo_trl.rollout.offline import with_teacher_logps

MASTERED = 7  # right ones of a question's 8 rollouts, at least

Rows = list[dict[str, Any]]


def stored(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, questions: Sequence[Question], seed: int
) -> Rows:
    """Return a group of the model's rollouts for each question, with its log-probabilities."""
    prompts = [prompt for prompt in student_prompts(tokenizer, questions) for _ in range(NUM_GENERATIONS)]
    messages = [row for row in prompt_dataset(questions)["prompt"] for _ in range(NUM_GENERATIONS)]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        completions = [
            ids
            for first in range(0, len(prompts), BATCH_SIZE)
            for ids in completed(model, tokenizer, prompts[first : first + BATCH_SIZE])
        ]
    rows = [
        {"prompt": prompt, "prompt_ids": ids, "completion_ids": completion}
        for prompt, ids, completion in zip(messages, prompts, completions, strict=True)
    ]
    return with_teacher_logps(rows, model)


def mastered(rows: Rows, tokenizer: PreTrainedTokenizerFast, questions: Sequence[Question]) -> Rows:
    """Return the groups of `stored` of which at least `MASTERED` rollouts are right."""
    kept: Rows = []
    for place, question in enumerate(questions):
        group = rows[place * NUM_GENERATIONS : (place + 1) * NUM_GENERATIONS]
        texts = tokenizer.batch_decode([row["completion_ids"] for row in group], skip_special_tokens=True)
        if sum(TASK.is_right(text, question.answer) for text in texts) >= MASTERED:
            kept += group
    return kept
