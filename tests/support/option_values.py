"""Right and wrong values of options, for the fuzz tests; written from the docs, not from the checks.

Wrong are values out of range or of another type, numbers that are none (NaN, infinity), absurdly large ones, empty
texts and unknown words, and bools where numbers belong. Of inherited options only what GRPOTrainer fails
with, whatever the other options are, is wrong; `tests/config/test_inherited.py` has the rest.
"""

from typing import Any

from hypothesis import strategies as st

NAN, INFINITY = float("nan"), float("inf")
NO_NUMBER: list[Any] = [None, True, False, NAN, INFINITY, -INFINITY, "", "1", [], {}, 10**400]
NO_COUNT = [*NO_NUMBER, 0, -1, -(10**9), 0.5, 1.0, 1e30]
NO_BOOL: list[Any] = [None, 0, 1, "", "true", [], NAN]
NO_TEXT: list[Any] = [3, 0.5, True, ["x"], {}, NAN]
NO_WORD = [*NO_TEXT, "", "nothing", "SRPO "]

floats = st.floats(allow_nan=False, allow_infinity=False)


def within(low: float, high: float, **options: Any) -> st.SearchStrategy:
    return st.one_of(st.sampled_from([high]), st.floats(low, high, **options))


def without(values: list[Any], *kept: Any) -> list[Any]:
    """The values but `kept`, told apart by type as well."""
    return [v for v in values if not any(v is k or (type(v) is type(k) and v == k) for k in kept)]


# option: (strategy of right values, list of wrong ones)
OWN: dict[str, tuple[st.SearchStrategy, list[Any]]] = {
    "method": (
        st.sampled_from(["srpo", "grpo", "sdpo", "sdpo_failed", "sdpo_correct", "advantage_mix"]),
        [*NO_WORD, None, "grop"],
    ),
    "method_options": (st.sampled_from([{}, "{}", None]), [3, True, ["x"], "{"]),
    "routing": (st.none(), [*without(NO_WORD, None), "grpo", "advantage_mix"]),
    "advantage_mix_lambda": (within(0, 1), [*NO_NUMBER, -0.1, 1.1, 1e30]),
    "success_reward_threshold": (within(-1e6, 1e6), [*NO_NUMBER, 1e31]),
    "correctness_reward": (st.just(None), NO_TEXT),
    "distillation_alpha": (within(0, 1), [*NO_NUMBER, -1e-9, 1.0001, 2]),
    "distillation_topk": (st.one_of(st.none(), st.integers(1, 200)), without(NO_COUNT, None, 10**400)),
    "distillation_add_tail": (st.booleans(), NO_BOOL),
    "distillation_estimator": (st.just("exact"), [*NO_WORD, None]),
    "distillation_is_clip": (
        st.one_of(st.none(), within(0, 1e6, exclude_min=True)),
        [*without(NO_NUMBER, None), 0, 0.0, -1, 1e31],
    ),
    "distillation_pointwise_clip": (
        st.one_of(st.none(), within(0, 10, exclude_min=True)),
        [*without(NO_NUMBER, None), 0, 0.0, -1, 1e31],
    ),
    "teacher_model": (
        st.sampled_from([None, {}]),
        [*NO_TEXT[:-2], "", "{", {"a": 1}, {"": "x"}, {"a": ""}, NAN],
    ),
    "teacher_column": (st.none(), NO_TEXT),
    "entropy_weight_beta": (st.one_of(st.none(), within(0, 50)), [*without(NO_NUMBER, None), -1e-9, 50.1]),
    "distilled_frac_hold_steps": (st.just(0), [*NO_NUMBER[:-1], -1, 0.5]),
    "distilled_frac_decay_steps": (st.one_of(st.none(), st.integers(1, 9)), without(NO_COUNT, None, 10**400)),
    "distilled_frac_until_accuracy": (
        st.one_of(st.none(), within(0, 1, exclude_min=True)),
        [*without(NO_NUMBER, None), 0, 0.0, -0.1, 1.1],
    ),
    "earlier_answers_kept": (st.integers(1, 10**6), without(NO_COUNT, 10**400)),
    "guard_action": (
        st.sampled_from(
            [None, "off", "warn", "lower_distillation", "freeze_teacher", "reset_teacher", "stop"]
        ),
        NO_WORD,
    ),
    "resample_failed_frac": (st.sampled_from([0, 0.0, 0.5, 1.0]), [*NO_NUMBER, -0.1, 1.1]),
    "eval_temperature": (
        st.one_of(st.none(), st.integers(1, 3), within(1e-4, 1e4)),
        [*without(NO_NUMBER, None), 0, 0.0, -1.0, 1e-30, 1e30],
    ),
    "eval_top_p": (
        st.one_of(st.none(), within(0, 1, exclude_min=True)),
        [*without(NO_NUMBER, None), 0, -0.1, 1.1],
    ),
    "eval_tokens_per_batch": (st.one_of(st.none(), st.integers(1, 10**6)), without(NO_COUNT, None, 10**400)),
    "run_log": (st.sampled_from([None, True, False]), without(NO_BOOL, None)),
    "teacher_model_kind": (st.sampled_from(["ema", "base", "live"]), [*NO_WORD, None]),
    "teacher_update_interval": (st.integers(1, 9), without(NO_COUNT, 10**400)),
    "teacher_update_rate": (within(0, 1, exclude_min=True), [*NO_NUMBER, 0, 0.0, -0.1, 1.1]),
    "teacher_context": (
        st.lists(
            st.sampled_from(["sibling", "feedback", "sibling+feedback", "earlier"]), min_size=1, unique=True
        ),
        [None, "sibling", [], {}, ["gold"], ["sibling", "sibling"], [None], [["sibling"]]],
    ),
    "reference_column": (st.just(None), NO_TEXT),
    "reprompt_template": (
        st.sampled_from(["{prompt}{solution}{feedback}", "{} {feedback} {{ {prompt} }} {solution}"]),
        [*NO_TEXT, None, "", "{prompt}{solution}", "{prompt}{prompt}{solution}{feedback}"],
    ),
    "solution_template": (
        st.sampled_from(["{successful_previous_attempt}", "<<{successful_previous_attempt}>>"]),
        [*NO_TEXT, None, "", "{successful_previous_attempt}{x}"],
    ),
    "feedback_template": (st.sampled_from(["{feedback_raw}", "%s{feedback_raw}\x00"]), [*NO_TEXT, None, ""]),
    "max_reprompt_length": (st.integers(1, 10**12), without(NO_COUNT, 10**400)),
    "remove_thinking_from_demonstration": (st.booleans(), NO_BOOL),
    "teacher_tokens_per_pass": (st.integers(1, 10**12), without(NO_COUNT, 10**400)),
    "teacher_states_on_cpu": (st.booleans(), NO_BOOL),
    "liger_layers": (st.just(False), NO_BOOL),
    "log_completions_steps": (st.one_of(st.none(), st.integers(1, 3)), without(NO_COUNT, None, 10**400)),
    "log_examples_steps": (st.one_of(st.none(), st.integers(1, 3)), without(NO_COUNT, None, 10**400)),
    "max_nonfinite_steps": (st.one_of(st.none(), st.integers(1, 10**6)), without(NO_COUNT, None, 10**400)),
    "reward_timeout": (
        st.one_of(st.none(), within(60, 1e9)),
        [*without(NO_NUMBER, None), 0, 0.0, -1, 1e30],
    ),
    "gradient_share_steps": (st.one_of(st.none(), st.integers(1, 3)), without(NO_COUNT, None, 10**400)),
}

counts = st.integers(1, 4)
shares = within(0, 1)
not_negative = within(0, 1e6)
positive = within(1e-6, 1e6)
NEGATIVE = [-1e-9, -1]
# To GRPOTrainer a bool is a number, and anything a bool.
ODD: list[Any] = ["", "1", [], {}]
NOT_FINITE = [NAN, INFINITY, -INFINITY]
NONE_OR_ODD = [None, *ODD, NAN]
FEW = [*ODD, *NOT_FINITE, 10**400, 0, -1, -(10**9), 0.5, 1.0, 1e30]
INHERITED: dict[str, tuple[st.SearchStrategy, list[Any]]] = {
    "per_device_train_batch_size": (st.sampled_from([2, 4, 8, 16]), [*FEW, None]),
    "gradient_accumulation_steps": (counts, [*FEW, None]),
    "num_generations": (st.sampled_from([2, 4]), [*FEW, None, 1]),
    "num_generations_eval": (st.sampled_from([None, 1, 2]), []),
    "steps_per_generation": (st.one_of(st.none(), counts), FEW),
    "generation_batch_size": (st.sampled_from([None, 4, 8, 16]), FEW),
    "num_iterations": (counts, [*FEW, None]),
    "loss_type": (
        st.sampled_from(["dapo", "cispo", "vespo", "grpo", "dr_grpo", "bnpo", "luspo", "sapo"]),
        [*NO_WORD, None],
    ),
    "beta": (st.just(0.0), [*NONE_OR_ODD, INFINITY, *NEGATIVE]),
    "epsilon": (st.one_of(not_negative, st.sampled_from([*NEGATIVE, INFINITY])), NONE_OR_ODD),
    "epsilon_high": (st.one_of(st.none(), not_negative), [*ODD, NAN]),
    "delta": (st.one_of(st.none(), positive, st.just(-1)), [*ODD, NAN]),
    "temperature": (
        st.one_of(st.integers(1, 3), within(1e-4, 1e4), st.just(INFINITY)),
        [*NONE_OR_ODD, False, 0, 0.0, -1.0],
    ),
    "top_p": (st.one_of(st.none(), within(0, 1.1)), [*ODD, -0.1, -INFINITY]),
    "top_k": (st.sampled_from([None, 0, 1, 5, 10**6]), [*ODD, *NOT_FINITE, -1, -2, 0.5]),
    "min_p": (st.one_of(st.none(), shares), [*ODD, *NOT_FINITE, -0.1, 1.1, 2]),
    "repetition_penalty": (st.one_of(st.none(), st.integers(1, 3), within(0.1, 10)), [*ODD, NAN, 0, -1.0]),
    "max_completion_length": (st.integers(1, 8), [*ODD, 0, -1, -INFINITY]),
    "scale_rewards": (
        st.sampled_from([None, "group", "batch", "none", True, False, 1]),
        without(NO_WORD, True),
    ),
    "multi_objective_aggregation": (
        st.sampled_from(["sum_then_normalize", "normalize_then_sum"]),
        [*NO_WORD, None],
    ),
    "importance_sampling_level": (st.sampled_from(["token", "sequence"]), [*NO_WORD, None]),
    "vllm_importance_sampling_mode": (
        st.sampled_from([None, "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]),
        [],
    ),
    "vllm_importance_sampling_clip_max": (positive, []),
    "off_policy_mask_threshold": (st.one_of(st.none(), floats), []),
    "top_entropy_quantile": (within(0, 2), [*ODD, None, -0.1]),
    "entropy_coef": (within(-1, 1), [*NONE_OR_ODD, INFINITY]),
    "mask_truncated_completions": (st.sampled_from([True, False, 0, 1, None]), []),
    "use_bias_correction_kl": (st.booleans(), []),
    "shuffle_dataset": (st.booleans(), []),
    "log_completions": (st.booleans(), []),
    "num_completions_to_print": (st.sampled_from([None, 0, 2]), []),
    "pad_to_multiple_of": (st.sampled_from([None, "auto", "none", 1, 8, "8"]), [0, "", "abc", "0", []]),
    "learning_rate": (st.one_of(st.none(), within(0, 1000)), [*ODD, *NOT_FINITE, *NEGATIVE]),
    "weight_decay": (st.one_of(shares, st.just(-0.1)), [*NONE_OR_ODD, INFINITY]),
    "adam_beta1": (within(0, 0.99), []),
    "adam_beta2": (within(0, 0.999), []),
    "adam_epsilon": (st.one_of(within(1e-10, 1), st.just(0)), []),
    "max_grad_norm": (
        st.one_of(st.sampled_from([INFINITY, NAN, -1]), not_negative),
        [*ODD, None],
    ),
    "optim": (st.sampled_from(["adamw_torch", "adamw_torch_fused", "sgd", "adafactor", "rmsprop"]), NO_WORD),
    "lr_scheduler_type": (
        st.sampled_from(["linear", "cosine", "constant", "constant_with_warmup", "inverse_sqrt"]),
        [*NO_WORD, None],
    ),
    "warmup_steps": (st.one_of(st.integers(0, 5), shares), [*NONE_OR_ODD, INFINITY, *NEGATIVE]),
    "max_steps": (st.sampled_from([-1, -2, 0, 1, 2, 10**12]), [*NONE_OR_ODD, 1.5]),
    "num_train_epochs": (st.one_of(within(0.1, 1e6), st.just(0)), []),
    "logging_strategy": (st.sampled_from(["no", "steps", "epoch"]), NO_WORD),
    "logging_steps": (st.sampled_from([1, 3, 0.5, 10**9, -1]), []),
    "eval_strategy": (st.just("no"), NO_WORD),
    "eval_steps": (st.sampled_from([None, 1, 2, 0.5, -1]), []),
    "eval_delay": (st.one_of(not_negative, st.just(-1)), []),
    "per_device_eval_batch_size": (st.sampled_from([4, 8]), []),
    "save_strategy": (st.sampled_from(["no", "steps", "epoch"]), NO_WORD),
    "save_steps": (st.sampled_from([1, 2, 0.5, 10**9, -1]), []),
    "save_total_limit": (st.one_of(st.none(), st.integers(-1, 4)), []),
    "save_only_model": (st.booleans(), []),
    "seed": (st.integers(0, 2**32 - 1), [*NONE_OR_ODD, INFINITY, -1, 2**32, 0.5]),
    "data_seed": (st.none(), []),
    "trust_remote_code": (st.just(False), []),
    "chat_template_kwargs": (st.sampled_from([None, {}, '{"a": 1}']), [3, "abc", ["x"], {"tokenize": True}]),
    "generation_kwargs": (st.sampled_from([None, {}, "{}"]), [3, "abc", ["x"], {"num_return_sequences": 2}]),
    "model_init_kwargs": (st.none(), []),
    "reward_weights": (st.sampled_from([None, [1.0], [0], [True]]), [3, "abc", ["x"], [None]]),
    "report_to": (st.just([]), [3, [3], {}]),
    "resume_from_checkpoint": (st.none(), []),
}
OPTIONS = OWN | INHERITED
