"""Evaluated runs shared by test_evaluation.py and, run by `torchrun`, its two-process test."""

import math
import sys
from collections import Counter
from pathlib import Path

import torch

from harness import chat_dataset, flat_parameters, make_trainer, replay, tiny_tokenizer

# Every sample of a question is alike, so that it does not matter which process draws which.
ALIKE = (
    ("1+1", "2#2"),  # right
    ("2+2 and a longer question", "4;4;4;4"),  # wrong
    ("3+3", "="),  # not to be scored
)
QUESTIONS = chat_dataset([(prompt, []) for prompt, _ in ALIKE])


def answering(tokenizer, answers, training=None):
    """A `rollout_func` that gives each prompt of an evaluation its answers in turn; `training` serves training."""
    drawn = Counter()

    def rollout(prompts, trainer):
        if trainer.model.training:
            return training(prompts, trainer)
        texts = []
        for prompt in (prompt[-1]["content"] for prompt in prompts):
            own = answers(prompt, trainer) if callable(answers) else answers[prompt]
            texts.append(own[drawn[prompt] % len(own)])
            drawn[prompt] += 1
        return {
            "prompt_ids": [
                tokenizer.apply_chat_template(p, add_generation_prompt=True)["input_ids"] for p in prompts
            ],
            "completion_ids": [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in texts],
            "logprobs": None,
        }

    return rollout


def peaking_trainer(folder, best_step, **options):
    """A run that is evaluated and saved at every step, and is right in evaluation at one step only."""

    def answers(prompt, trainer):
        return ["1#1"] if trainer.state.global_step == best_step else ["nothing"]

    tokenizer = tiny_tokenizer()
    defaults = {
        "max_steps": 4,
        "learning_rate": 0.1,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "save_total_limit": 1,
        "load_best_model_at_end": True,
        "num_generations_eval": 3,
    }
    return make_trainer(
        folder,
        eval_dataset=QUESTIONS,
        rollout_func=answering(tokenizer, answers, training=replay(tokenizer)),
        **(defaults | options),
    )


def scores_of_alike(folder, num_samples):
    """Metrics and samples of `ALIKE`, whose number of samples two processes do not divide."""
    tokenizer = tiny_tokenizer()
    trainer = make_trainer(
        folder,
        eval_dataset=QUESTIONS,
        rollout_func=answering(tokenizer, {prompt: [answer] for prompt, answer in ALIKE}),
        num_generations_eval=num_samples,
        eval_tokens_per_batch=80,
    )
    metrics = trainer.evaluate()
    samples = [(sample.question, sample.text, sample.num_tokens) for sample in trainer.evaluated_samples]
    return {"metrics": {k: v for k, v in metrics.items() if math.isfinite(v)}, "samples": samples}


def best_of_peak(folder):
    """Where each process finds the best checkpoint, and the weights that it ends with."""
    trainer = peaking_trainer(
        folder, best_step=2, per_device_train_batch_size=8, ddp_find_unused_parameters=False, max_steps=3
    )
    trainer.train()
    return {"best": trainer.state.best_model_checkpoint, "weights": flat_parameters(trainer.model)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    output = Path(sys.argv[1])
    found = {
        "uneven": scores_of_alike(output / "uneven", num_samples=3),
        "peak": best_of_peak(output / "peak"),
    }
    torch.save(found, output / f"rank{torch.distributed.get_rank()}.pt")
    torch.distributed.destroy_process_group()
