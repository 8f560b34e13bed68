"""Configuration: defaults, every option's range, all problems in one message, frozen option set."""

import pytest
from peft import LoraConfig
from transformers import TrainingArguments

from harness import chat_dataset, config, contains_answer, make_trainer, tiny_model
from srpo_trl import SRPOConfig, SRPOTrainer
from srpo_trl.host.arguments import default_config

OPTIONS = {  # name: default; a change here is a change of the public interface
    "method": "srpo",
    "method_options": {},
    "routing": None,
    "advantage_mix_lambda": 0.9,
    "success_reward_threshold": 0.5,
    "correctness_reward": None,
    "resample_failed_frac": 0.0,
    "distillation_alpha": 0.5,
    "distillation_topk": 100,
    "distillation_add_tail": True,
    "distillation_estimator": "exact",
    "distillation_is_clip": 2.0,
    "distillation_pointwise_clip": None,
    "entropy_weight_beta": 1.0,
    "distilled_frac_hold_steps": 0,
    "distilled_frac_decay_steps": None,
    "distilled_frac_until_accuracy": None,
    "teacher_model_kind": "ema",
    "teacher_update_rate": 0.05,
    "teacher_update_interval": 1,
    "teacher_context": ["sibling"],
    "earlier_answers_kept": 4096,
    "reference_column": None,
    "reprompt_template": "{prompt}{solution}{feedback}\n\nCorrectly solve the original question.",
    "solution_template": "\nCorrect solution:\n\n{successful_previous_attempt}",
    "feedback_template": "\nThe following is feedback from your unsuccessful earlier attempt:\n\n{feedback_raw}",
    "max_reprompt_length": 10240,
    "remove_thinking_from_demonstration": True,
    "teacher_tokens_per_pass": 16384,
    "teacher_states_on_cpu": False,
    "liger_layers": False,
    "eval_temperature": 0.6,
    "eval_top_p": 0.95,
    "eval_tokens_per_batch": 65536,
    "max_nonfinite_steps": 3,
    "reward_timeout": None,
    "gradient_share_steps": None,
    "log_completions_steps": None,
    "log_examples_steps": None,
    "guard_action": "warn",
    "run_log": True,
}
CHANGED = {
    "epsilon_high": 0.28,
    "scale_rewards": "none",
    "learning_rate": 5e-6,
    "num_generations_eval": 16,
    "loss_type": "dapo",
    "beta": 0.0,
    "vllm_importance_sampling_mode": "token_truncate",
    "vllm_importance_sampling_clip_max": 2.0,
}


def make(**options):
    return SRPOConfig(output_dir="unused", use_cpu=True, bf16=False, **options)


def test_defaults_are_frozen():
    made = make()
    assert {name: getattr(made, name) for name in OPTIONS} == OPTIONS
    assert {name: getattr(made, name) for name in CHANGED} == CHANGED


def test_every_option_has_help():
    for name in OPTIONS:
        assert SRPOConfig.__dataclass_fields__[name].metadata["help"]


WRONG = [
    {"method": "grop"},
    {"method": None},
    {"routing": "policy"},
    {"routing": "grpo"},
    {"routing": "advantage_mix"},
    {"method": "grpo", "routing": "srpo"},
    {"method": "advantage_mix", "routing": "sdpo"},
    {"method_options": {"betta": 1}},
    {"method_options": {"entropy_weight_beta": 1}},
    {"method_options": ["beta"]},
    {"method_options": "{"},
    {"advantage_mix_lambda": 1.1},
    {"advantage_mix_lambda": float("nan")},
    {"success_reward_threshold": float("inf")},
    {"success_reward_threshold": "0.5"},
    {"correctness_reward": 3},
    {"distillation_alpha": -0.1},
    {"distillation_alpha": True},
    {"distillation_topk": 0},
    {"distillation_topk": 2.5},
    {"distillation_add_tail": "yes"},
    {"distillation_estimator": "tokens"},
    {"distillation_estimator": "sampled"},
    {"distillation_is_clip": 0.0},
    {"distillation_pointwise_clip": 0.0},
    {"distillation_pointwise_clip": 0.05, "distillation_estimator": "sampled", "distillation_alpha": 1.0},
    {"distillation_pointwise_clip": 0.05, "method": "opsd"},
    {"entropy_weight_beta": -1.0},
    {"entropy_weight_beta": 51.0},
    {"teacher_model_kind": "frozen"},
    {"teacher_update_rate": 0.0},
    {"teacher_update_interval": 0},
    {"teacher_context": []},
    {"teacher_context": "sibling"},
    {"teacher_context": ["sibling", "sibling"]},
    {"teacher_context": ["gold"]},
    {"teacher_context": ["reference"]},
    {"reference_column": "answer"},
    {"reprompt_template": "{prompt}{solution}"},
    {"reprompt_template": "{prompt}{prompt}{solution}{feedback}"},
    {"solution_template": "{successful_previous_attempt}{answer}"},
    {"feedback_template": None},
    {"max_reprompt_length": 0},
    {"gradient_share_steps": 0},
    {"max_nonfinite_steps": 0},
    {"run_log": "yes"},
    {"run_log": 1},
    {"guard_action": "freeze_teacher", "method": "grpo"},
    {"metric_for_best_model": "eval_avg@16", "method": "grpo"},
    {"metric_for_best_model": "eval_loss", "eval_top_p": 0.9},
    {"gradient_share_steps": 1, "method": "grpo"},
    {"log_examples_steps": 1, "method": "grpo"},
    {"resample_failed_frac": 0.5, "method": "grpo"},
    {"max_nonfinite_steps": 2.0},
    {"reward_timeout": 0},
    {"reward_timeout": float("inf")},
    {"reward_timeout": "60"},
    {"teacher_tokens_per_pass": 0},
    {"teacher_states_on_cpu": "yes"},
    {"liger_layers": 1},
    {"loss_type": "grpo"},
    {"loss_type": "dr_grpo"},
    {"loss_type": "luspo"},
    {"epsilon_high": 0.28, "loss_type": "cispo"},
    {"temperature": 0.0},
    {"temperature": 1e-30},
]


@pytest.mark.parametrize("options", WRONG, ids=str)
def test_wrong_values_are_refused_by_name(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        make(**options)


RIGHT = [
    {"teacher_model_kind": "live", "steps_per_generation": 3, "gradient_accumulation_steps": 2},
    {"distillation_estimator": "sampled", "distillation_alpha": 1.0},
    {"distillation_pointwise_clip": 0.05},
    {"distillation_topk": None, "distillation_add_tail": False, "distillation_is_clip": None},
    {"teacher_context": ["feedback", "sibling+feedback", "reference"], "reference_column": "answer"},
    {"loss_type": "cispo", "epsilon_high": 5.0},
    {"loss_type": "grpo", "method": "grpo"},
    {"method": "sdpo", "routing": "srpo"},
    {"routing": "sdpo_failed", "method_options": "{}"},
    {"advantage_mix_lambda": 0, "distillation_alpha": 1, "entropy_weight_beta": 0},
]


@pytest.mark.parametrize("options", RIGHT, ids=str)
def test_right_values_pass(options):
    make(**options)


def test_all_problems_come_in_one_message_with_trls_beside_ours():
    with pytest.raises(ValueError, match="3 problem") as error:
        make(method="x", distillation_topk=-1, num_generations=3, loss_type="dapo")
    assert all(word in str(error.value) for word in ("method='x'", "distillation_topk=-1", "num_generations"))


class Unloadable(str):
    """A model id that must never be looked up."""


def refuse(match, kind=ValueError, args=None, **options):
    parameters = {"reward_funcs": contains_answer, "train_dataset": chat_dataset()}
    with pytest.raises(kind, match=match):
        SRPOTrainer(model=Unloadable("no/such-model"), args=args or config("unused", **options), **parameters)


def test_trainer_refuses_before_a_model_is_loaded():
    refuse("needs an srpo_trl.SRPOConfig", TypeError, TrainingArguments("unused", use_cpu=True, bf16=False))
    refuse("'contains_answer'", correctness_reward="accuracy")
    refuse("'prompt'", teacher_context=["reference"], reference_column="gold")
    refuse("would drop", teacher_context=["reference"], reference_column="prompt", remove_unused_columns=True)
    with pytest.raises(ValueError, match=r"(?s)'accuracy'.*'gold'"):
        SRPOTrainer(
            model=Unloadable("no/such-model"),
            reward_funcs=contains_answer,
            args=config(
                "unused",
                correctness_reward="accuracy",
                teacher_context=["reference"],
                reference_column="gold",
            ),
            train_dataset=chat_dataset(),
        )


def test_adapters_that_train_another_head_are_refused(tmp_path):
    peft_config = LoraConfig(r=2, target_modules=["q_proj", "lm_head"])
    with pytest.raises(ValueError, match=r"target_modules=\['lm_head', 'q_proj'\] hold the LM head"):
        make_trainer(tmp_path, model=tiny_model(tie_word_embeddings=False), peft_config=peft_config)


def test_a_model_without_trainable_parameters_is_refused(tmp_path):
    model = tiny_model().requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable parameter"):
        make_trainer(tmp_path, model=model)


@pytest.mark.parametrize(
    ("capability", "options"),
    [
        (None, {"bf16": False, "fp16": False, "use_cpu": True}),
        ((7, 5), {"bf16": False, "fp16": True, "use_cpu": False}),
        ((8, 0), {"bf16": True, "fp16": False, "use_cpu": False}),
    ],
    ids=["no GPU", "T4", "A100"],
)
def test_a_trainer_without_a_config_gets_one_that_its_machine_computes_in(capability, options, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: capability is not None)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: capability)
    monkeypatch.setattr(
        "srpo_trl.host.arguments.is_torch_bf16_gpu_available",
        lambda: capability is not None,  # torch emulates it on a T4
    )
    monkeypatch.setattr("srpo_trl.host.arguments.SRPOConfig", lambda folder, **given: (folder, given))
    assert default_config("some/Model-1B") == ("Model-1B-SRPO", options)
