"""Sampling as a `rollout_func`: as the trainer does it, and with the reference in groups that fail as a whole."""

from collections.abc import Callable, Sequence
from typing import Any

from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from benchmarks.learning.run import NUM_GENERATIONS, Run, training_questions
from benchmarks.learning.tasks import TASKS
from srpo_trl.commands.quickstart.held_out import sample_ids
from srpo_trl.commands.quickstart.task import SOLUTION_TOKENS


def with_references(run: Run) -> Callable[[list[Any], Any], dict[str, Any]]:
    """Return a `rollout_func`: where all rollouts of a question fail, its right solution takes the first one's place.

    What is not trained on, such as a held-out question, keeps its rollouts.
    """
    task = TASKS[run.task]
    questions = {question.prompt: question for question in training_questions(run)}

    def rollouts(prompts: list[Any], trainer: Any) -> dict[str, Any]:
        made, tokenizer = sampled(prompts, trainer), trainer.processing_class
        texts = tokenizer.batch_decode(made["completion_ids"], skip_special_tokens=True)
        for first in range(0, len(prompts), NUM_GENERATIONS):
            question = questions.get(prompts[first][-1]["content"])
            group = texts[first : first + NUM_GENERATIONS]
            if question and not any(task.is_right(text, question.answer) for text in group):
                solution = tokenizer(question.demonstration, add_special_tokens=False)["input_ids"]
                made["completion_ids"][first] = [*solution, tokenizer.eos_token_id]
        return made

    return rollouts


def sampled(prompts: list[Any], trainer: Any) -> dict[str, Any]:
    """Sample as the trainer does, at temperature 1: a `rollout_func`."""
    tokenizer = trainer.processing_class
    texts = tokenizer.apply_chat_template(prompts, add_generation_prompt=True, tokenize=False)
    prompt_ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    completion_ids = completed(trainer.accelerator.unwrap_model(trainer.model), tokenizer, prompt_ids)
    return {"prompt_ids": prompt_ids, "completion_ids": completion_ids, "logprobs": None}


def completed(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[Sequence[int]]
) -> list[list[int]]:
    """Return one completion of each prompt at temperature 1, with its end where it has one."""
    rows: list[list[int]] = sample_ids(model, tokenizer, prompts, SOLUTION_TOKENS + 1).tolist()
    end = tokenizer.eos_token_id
    return [ids[: ids.index(end) + 1] if end in ids else ids for ids in rows]
