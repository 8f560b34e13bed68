"""The names of SRPO's own options are public: a change here is a change of the interface."""

from dataclasses import fields

from trl import GRPOConfig

from srpo_trl import SRPOConfig

NAMES = [
    "advantage_mix_lambda",
    "correctness_reward",
    "distillation_add_tail",
    "distillation_alpha",
    "distillation_estimator",
    "distillation_is_clip",
    "distillation_pointwise_clip",
    "distillation_topk",
    "distilled_frac_decay_steps",
    "distilled_frac_hold_steps",
    "distilled_frac_until_accuracy",
    "earlier_answers_kept",
    "entropy_weight_beta",
    "eval_temperature",
    "eval_tokens_per_batch",
    "eval_top_p",
    "feedback_template",
    "gradient_share_steps",
    "guard_action",
    "liger_layers",
    "log_completions_steps",
    "log_examples_steps",
    "max_nonfinite_steps",
    "max_reprompt_length",
    "method",
    "method_options",
    "reference_column",
    "remove_thinking_from_demonstration",
    "reprompt_template",
    "resample_failed_frac",
    "reward_timeout",
    "routing",
    "run_log",
    "solution_template",
    "success_reward_threshold",
    "teacher_column",
    "teacher_context",
    "teacher_model",
    "teacher_model_kind",
    "teacher_states_on_cpu",
    "teacher_tokens_per_pass",
    "teacher_update_interval",
    "teacher_update_rate",
]


def test_the_names_of_srpos_own_options_are_frozen():
    ours = {option.name for option in fields(SRPOConfig)} - {option.name for option in fields(GRPOConfig)}
    assert sorted(ours) == NAMES
