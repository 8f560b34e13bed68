"""`routing="grpo"` is GRPOTrainer, bit for bit; other routings are it wherever they route everything to GRPO."""

import inspect

import pytest
import torch
from peft import LoraConfig
from trl import GRPOConfig, GRPOTrainer

from harness import (
    chat_dataset,
    config,
    contains_answer,
    flat_parameters,
    logged,
    make_trainer,
    relative_error,
    replay,
    tiny_model,
    tiny_tokenizer,
    update,
)
from srpo_trl import SRPOConfig, SRPOTrainer


def test_constructor_is_grpo_trainers():
    ours = inspect.signature(SRPOTrainer.__init__).parameters
    assert list(ours) == list(inspect.signature(GRPOTrainer.__init__).parameters)


def grpo_config(srpo: SRPOConfig) -> GRPOConfig:
    """The GRPOConfig of the same values."""
    names = {f for f in GRPOConfig.__dataclass_fields__ if GRPOConfig.__dataclass_fields__[f].init}
    derived = {"generation_batch_size", "report_to"} | {n for n in names if n.startswith("_")}
    given = {n: getattr(srpo, n) for n in names - derived if hasattr(srpo, n)}
    return GRPOConfig(**given, report_to=[])


def train_both(tmp_path, options, **parameters):
    """Train GRPOTrainer and SRPOTrainer alike, with sampling; return both."""
    tokenizer = tiny_tokenizer()
    trainers = []
    for kind, folder in ((GRPOTrainer, "grpo"), (SRPOTrainer, "srpo")):
        args = config(tmp_path / folder, routing="grpo", **options)
        trainer = kind(
            model=tiny_model(),
            reward_funcs=parameters.get("reward_funcs", contains_answer),
            args=args if kind is SRPOTrainer else grpo_config(args),
            train_dataset=parameters.get("train_dataset", chat_dataset()),
            processing_class=tokenizer,
            peft_config=parameters.get("peft_config"),
        )
        trainer.train()
        trainers.append(trainer)
    return trainers


SAMPLED = {
    "max_steps": 2,
    "max_completion_length": 8,
    "learning_rate": 1e-2,
    "optim": "adamw_torch",
    "temperature": 2.0,
}


@pytest.mark.parametrize(
    "options",
    [
        {"loss_type": "dapo", "gradient_accumulation_steps": 2, "per_device_train_batch_size": 8},
        {"loss_type": "grpo", "beta": 0.0, "scale_rewards": "group"},
        {"loss_type": "bnpo"},
        {"loss_type": "dr_grpo", "num_iterations": 2},
        {"loss_type": "cispo", "epsilon_high": 5.0},
        {"loss_type": "sapo", "entropy_coef": 0.01},
        {"loss_type": "luspo", "importance_sampling_level": "sequence"},
        {"loss_type": "vespo", "steps_per_generation": 2, "per_device_train_batch_size": 8},
    ],
    ids=lambda options: options["loss_type"],
)
def test_grpo_routing_is_grpo_trainer_bit_for_bit(tmp_path, options):
    theirs, ours = train_both(tmp_path, SAMPLED | options)
    assert logged(ours, "loss") == logged(theirs, "loss")
    assert torch.equal(flat_parameters(ours.model), flat_parameters(theirs.model))
    assert not torch.equal(flat_parameters(ours.model), flat_parameters(tiny_model()))


def test_grpo_routing_with_lora_async_rewards_and_iterable_data(tmp_path):
    async def longer(completions, **kwargs):
        return [float(len(c[0]["content"])) for c in completions]

    theirs, ours = train_both(
        tmp_path,
        SAMPLED,
        reward_funcs=[longer],
        train_dataset=chat_dataset().to_iterable_dataset(),
        peft_config=LoraConfig(r=2, target_modules=["q_proj", "v_proj"]),
    )
    assert logged(ours, "loss") == logged(theirs, "loss")
    assert torch.equal(flat_parameters(ours.model), flat_parameters(theirs.model))


def test_srpo_is_grpo_where_no_rollout_can_be_distilled(tmp_path):
    """Without a correct sibling every rollout goes to GRPO: rewards below the threshold for all."""

    def small(completions, **kwargs):
        return [0.1 * len(c[0]["content"]) / 40 for c in completions]

    split = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}
    ours = make_trainer(tmp_path / "srpo", reward_funcs=small, **split)
    update_of_ours = update(ours)
    theirs = GRPOTrainer(
        model=tiny_model(),
        reward_funcs=small,
        args=grpo_config(config(tmp_path / "g", **split)),
        train_dataset=chat_dataset(),
        processing_class=tiny_tokenizer(),
        rollout_func=replay(tiny_tokenizer()),
    )
    assert relative_error(update_of_ours, update(theirs)) < 1e-7
    assert logged(ours, "srpo/route/grpo_frac") == [1.0]
