"""Runs that save and go on, shared by the tests of checkpoints."""

import torch

from harness import ROLLOUTS, chat_dataset, flat_parameters

# Sampled rollouts, several epochs of four prompts, AdamW: everything that a resumed run must find again.
RUN = {
    "rollout_func": None,
    "max_steps": 4,
    "save_strategy": "steps",
    "save_steps": 2,
    "optim": "adamw_torch",
    "learning_rate": 1e-2,
    "max_completion_length": 8,
    "temperature": 2.0,
    "shuffle_dataset": True,
    "success_reward_threshold": 0.5,
}


SPLITS = {
    "one step a batch": {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2},
    "inside a rollout batch": {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "steps_per_generation": 3,
        "num_generations": 4,
    },
    "iterations": {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "num_iterations": 3},
}


def half(completions, **kwargs):
    """A reward that is neither always nor never won by random text."""
    return [float(sum(map(ord, c[0]["content"])) % 2) for c in completions]


def states(trainer):
    teacher = torch.cat([v.double().reshape(-1) for v in trainer.teacher.weights.state_dict().values()])
    return flat_parameters(trainer.model), teacher


GIVEN = {  # rollouts and their order are given, so only their split over processes and micro-batches differs
    "train_dataset": chat_dataset(ROLLOUTS * 3),
    "learning_rate": 0.1,
    "save_strategy": "steps",
    "save_steps": 1,
}
