"""`method="grpo"` is GRPOTrainer, bit for bit; other methods are it where they give all to the policy loss."""

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
        args = config(tmp_path / folder, method="grpo", **options)
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
    assert logged(ours, "srpo/route/policy_frac") == [1.0]


def test_feedback_with_grpo_stands_in_the_table_as_grpo_trainer_has_it(tmp_path):
    def graded(completions, log_extra, **kwargs):
        log_extra("feedback", [f"{len(c[0]['content'])} characters" for c in completions])
        return [float(len(c[0]["content"])) for c in completions]

    theirs, ours = train_both(tmp_path, SAMPLED | {"max_steps": 3}, reward_funcs=[graded])
    assert list(ours._logs["extra"]["feedback"]) == list(theirs._logs["extra"]["feedback"]) != []


# ---------------------------------------------------------------- GRPOTrainer, unless more is asked for

# Set by the machine, or what the two classes are.
NOT_COMPARED = {"output_dir", "logging_dir", "run_name"}


def test_every_default_with_grpo_is_grpo_configs():
    ours, theirs = SRPOConfig("x", method="grpo", bf16=False), GRPOConfig("x", bf16=False)
    names = {name for name, field in GRPOConfig.__dataclass_fields__.items() if field.init} - NOT_COMPARED
    assert {n: getattr(ours, n) for n in names} == {n: getattr(theirs, n) for n in names}


def test_every_default_without_grpo_is_the_papers():
    paper = {
        "learning_rate": 5e-6,
        "epsilon_high": 0.28,
        "scale_rewards": "none",
        "vllm_importance_sampling_mode": "token_truncate",
        "vllm_importance_sampling_clip_max": 2.0,
        "num_generations_eval": 16,
        "eval_temperature": 0.6,
        "eval_top_p": 0.95,
        "eval_tokens_per_batch": 65536,
        "max_nonfinite_steps": 3,
        "guard_action": "warn",
        "run_log": True,
    }
    for method in ("srpo", "sdpo", "sdpo_failed", "sdpo_correct", "advantage_mix"):
        made = SRPOConfig("x", method=method, bf16=False)
        assert {name: getattr(made, name) for name in paper} == paper
        assert made.entropy_weight_beta == float(method == "srpo")
        assert made.defaulted == {*paper, "entropy_weight_beta"}


@pytest.mark.parametrize("method", ["srpo", "grpo"])
def test_what_is_given_stays(method):
    given = {"learning_rate": 3e-4, "scale_rewards": "batch", "num_generations_eval": 2, "epsilon_high": 0.5}
    given |= {
        "eval_temperature": 0.9,
        "eval_top_p": 0.8,
        "eval_tokens_per_batch": 99,
        "max_nonfinite_steps": 7,
    }
    given |= {"guard_action": "stop", "run_log": False, "vllm_importance_sampling_clip_max": 9.0}
    made = SRPOConfig("x", method=method, bf16=False, **given)
    assert {name: getattr(made, name) for name in given} == given


EVALUATED = {
    "max_steps": 2,
    "max_completion_length": 8,
    "eval_strategy": "steps",
    "eval_steps": 1,
    "save_strategy": "steps",
    "save_steps": 2,
    "per_device_eval_batch_size": 4,
    "temperature": 2.0,
    "optim": "adamw_torch",
}


@pytest.mark.parametrize("data_sets", [False, True], ids=["one eval_dataset", "two by name"])
def test_logs_evaluation_and_files_with_grpo_are_grpo_trainers(tmp_path, data_sets):
    rows = {"a": chat_dataset(), "b": chat_dataset()} if data_sets else chat_dataset()
    runs = []
    for kind, folder in ((GRPOTrainer, "theirs"), (SRPOTrainer, "ours")):
        args = config(tmp_path / folder, method="grpo", **EVALUATED)
        trainer = kind(
            model=tiny_model(),
            reward_funcs=contains_answer,
            args=args if kind is SRPOTrainer else grpo_config(args),
            train_dataset=chat_dataset(),
            eval_dataset=rows,
            processing_class=tiny_tokenizer(),
        )
        trainer.train()
        metrics = trainer.evaluate()
        files = {str(path.relative_to(tmp_path / folder)) for path in (tmp_path / folder).rglob("*")}
        runs.append((metrics, trainer.state.log_history, files))
    (their_metrics, their_logs, their_files), (our_metrics, our_logs, our_files) = runs
    assert any(name.endswith("_loss") for name in our_metrics)
    assert our_files == their_files
    assert without_times(our_metrics) == without_times(their_metrics)
    assert list(our_metrics) == list(their_metrics)
    assert [list(entry) for entry in our_logs] == [list(entry) for entry in their_logs]
    assert [without_times(entry) for entry in our_logs] == [without_times(entry) for entry in their_logs]


def without_times(metrics):
    """The metrics but those of time, NaN as text."""
    timed = ("time", "per_second", "total_flos", "runtime")
    return {name: repr(value) for name, value in metrics.items() if not any(word in name for word in timed)}


@pytest.mark.parametrize(
    "asked", [{"eval_temperature": 0.6}, {"eval_top_p": 0.95}, {"eval_tokens_per_batch": 65536}], ids=str
)
def test_sampled_evaluation_that_is_asked_for_works_with_grpo(tmp_path, asked):
    trainer = make_trainer(
        tmp_path,
        method="grpo",
        eval_dataset=chat_dataset(),
        rollout_func=None,
        num_generations_eval=2,
        **asked,
    )
    metrics = trainer.evaluate()
    assert "eval_avg@2" in metrics
    assert "eval_loss" not in metrics


def test_a_run_log_that_is_asked_for_is_written_with_grpo(tmp_path):
    make_trainer(tmp_path / "plain", method="grpo").train()
    make_trainer(tmp_path / "logged", method="grpo", run_log=True).train()
    assert not (tmp_path / "plain" / "log.jsonl").exists()
    assert (tmp_path / "logged" / "log.jsonl").exists()
    make_trainer(tmp_path / "srpo", run_log=False).train()
    assert not (tmp_path / "srpo" / "log.jsonl").exists()


def test_a_guard_that_is_asked_for_stops_a_run_with_grpo(tmp_path):
    """Two-token completions become ten times as long: the guard of lengths speaks after twice its window."""
    lengths = iter([1] * 12 + [14] * 60)

    def rollout(prompts, trainer):
        tokenizer, length = trainer.processing_class, next(lengths)
        ids = [tokenizer.apply_chat_template(p, add_generation_prompt=True)["input_ids"] for p in prompts]
        answer = [*tokenizer("1" * length)["input_ids"], tokenizer.eos_token_id]
        return {"prompt_ids": ids, "completion_ids": [answer] * len(prompts), "logprobs": None}

    trainer = make_trainer(tmp_path, method="grpo", guard_action="stop", max_steps=40, rollout_func=rollout)
    trainer.train()
    assert 20 <= trainer.state.global_step < 40
    assert (tmp_path / "guards.jsonl").is_file()


def test_a_step_that_is_not_finite_is_taken_with_grpo_as_grpo_trainer_takes_it(tmp_path):
    def infinite(*args, **kwargs):
        return torch.tensor(float("nan"), requires_grad=True) * trainer.model.lm_head.weight.sum()

    for options, is_finite in (({}, False), ({"max_nonfinite_steps": 2}, True)):
        trainer = make_trainer(tmp_path, method="grpo", **options)
        trainer._compute_loss = infinite
        trainer.train()
        assert bool(flat_parameters(trainer.model).isfinite().all()) == is_finite


@pytest.mark.parametrize(("method", "name"), [("grpo", "GRPO"), ("srpo", "SRPO")])
def test_the_model_card_names_what_the_model_was_trained_with(tmp_path, method, name):
    trainer = make_trainer(tmp_path, method=method)
    trainer.create_model_card(model_name="a model")
    card = (tmp_path / "README.md").read_text()
    assert f"This model was trained with {name}, a method introduced in" in card
    assert set(trainer.model.model_tags) == {"trl", name.lower(), *["srpo-trl"] * (method == "srpo")}
    assert "\n- srpo-trl\n" in card
    if method == "grpo":
        assert "SRPO" not in card
        assert f"title        = {{{{{GRPOTrainer._paper['title']}}}}}" in card
