"""What can be wrong with an `SRPOConfig`: each problem says what was given, what is required, and what to do."""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from srpo_trl.config.inherited import MAX_COUNT, TEMPERATURES

if TYPE_CHECKING:
    from srpo_trl.config import SRPOConfig

TEACHER_SOURCES = ("sibling", "feedback", "sibling+feedback", "reference", "earlier")
JOINT_DENOMINATOR_LOSSES = ("dapo", "cispo", "vespo")
GUARD_ACTIONS = ("off", "warn", "lower_distillation", "freeze_teacher", "reset_teacher", "stop")
MAX_ENTROPY_WEIGHT_BETA = (
    50.0  # exp(-beta * H) stays a normal float64 for every vocabulary up to a million tokens
)


def problems_of(config: "SRPOConfig") -> Iterator[str]:
    """Yield every problem of SRPO's own options: what was given, what is required, what to do."""
    yield from _correctness_problems(config)
    yield from _distillation_problems(config)
    yield from _share_problems(config)
    yield from _one_of("guard_action", config.guard_action, GUARD_ACTIONS)
    if config.method_record.is_plain and config.guard_action not in ("off", "warn", "stop"):
        yield (
            f"guard_action={config.guard_action!r} acts on the teacher or on distillation, which method='grpo' has "
            "none of. Use 'off', 'warn' or 'stop'."
        )
    yield from _teacher_problems(config)
    yield from _template_problems(config)
    yield from _evaluation_problems(config)
    yield from _fault_problems(config)
    if not config.method_record.is_plain:
        yield from _inherited_problems(config)


def _one_of(name: str, value: object, allowed: tuple[str, ...]) -> Iterator[str]:
    if value not in allowed:
        yield f"{name}={value!r} is not one of {', '.join(map(repr, allowed))}."


def _in_range(name: str, value: object, low: float, high: float, *, open_low: bool = False) -> Iterator[str]:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not low <= value <= high or (open_low and value == low):  # type: ignore[operator]
        yield f"{name}={value!r} must be a number in {'(' if open_low else '['}{low:g}, {high:g}]."


def _positive_int(name: str, value: object) -> Iterator[str]:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        yield f"{name}={value!r} must be a whole number of at least 1."


def _correctness_problems(config: "SRPOConfig") -> Iterator[str]:
    yield from _in_range("advantage_mix_lambda", config.advantage_mix_lambda, 0.0, 1.0)
    yield from _in_range("resample_failed_frac", config.resample_failed_frac, 0.0, 1.0)
    if config.resample_failed_frac and config.method_record.is_plain:
        yield "resample_failed_frac needs a method other than 'grpo', which decides what has failed. Set it to 0."
    yield from _in_range("success_reward_threshold", config.success_reward_threshold, -1e30, 1e30)
    if config.correctness_reward is not None and not isinstance(config.correctness_reward, str):
        yield (
            f"correctness_reward={config.correctness_reward!r} must be the name of a reward function or None."
        )


def _distillation_problems(config: "SRPOConfig") -> Iterator[str]:
    yield from _in_range("distillation_alpha", config.distillation_alpha, 0.0, 1.0)
    if config.distillation_topk is not None:
        yield from _positive_int("distillation_topk", config.distillation_topk)
    if not isinstance(config.distillation_add_tail, bool):
        yield f"distillation_add_tail={config.distillation_add_tail!r} must be true or false."
    yield from _one_of("distillation_estimator", config.distillation_estimator, ("exact", "sampled"))
    if config.distillation_estimator == "sampled" and config.distillation_alpha != 1.0:
        yield (
            f"distillation_estimator='sampled' estimates the reverse KL, but distillation_alpha="
            f"{config.distillation_alpha!r}. Set distillation_alpha=1.0, or distillation_estimator='exact'."
        )
    if config.distillation_is_clip is not None:
        yield from _in_range("distillation_is_clip", config.distillation_is_clip, 0.0, 1e30, open_low=True)
    if config.entropy_weight_beta is not None:
        yield from _in_range("entropy_weight_beta", config.entropy_weight_beta, 0.0, MAX_ENTROPY_WEIGHT_BETA)
    for name in ("gradient_share_steps", "log_examples_steps"):
        if getattr(config, name) is not None:
            yield from _positive_int(name, getattr(config, name))


def _share_problems(config: "SRPOConfig") -> Iterator[str]:
    hold, decay = config.distilled_frac_hold_steps, config.distilled_frac_decay_steps
    if not isinstance(hold, int) or isinstance(hold, bool) or hold < 0:
        yield f"distilled_frac_hold_steps={hold!r} must be a whole number of at least 0."
    if decay is not None:
        yield from _positive_int("distilled_frac_decay_steps", decay)
    elif hold:
        yield (
            f"distilled_frac_hold_steps={hold!r} does nothing without distilled_frac_decay_steps: give the number of "
            "steps over which the share then falls to 0."
        )
    if config.distilled_frac_until_accuracy is not None:
        yield from _in_range(
            "distilled_frac_until_accuracy", config.distilled_frac_until_accuracy, 0.0, 1.0, open_low=True
        )


def _teacher_problems(config: "SRPOConfig") -> Iterator[str]:
    yield from _one_of("teacher_model_kind", config.teacher_model_kind, ("ema", "base", "live"))
    yield from _in_range("teacher_update_rate", config.teacher_update_rate, 0.0, 1.0, open_low=True)
    yield from _positive_int("max_reprompt_length", config.max_reprompt_length)
    yield from _positive_int("teacher_tokens_per_pass", config.teacher_tokens_per_pass)
    yield from _positive_int("earlier_answers_kept", config.earlier_answers_kept)
    for name in ("teacher_states_on_cpu", "liger_layers", "remove_thinking_from_demonstration"):
        if not isinstance(getattr(config, name), bool):
            yield f"{name}={getattr(config, name)!r} must be true or false."
    if config.reference_column is not None and not isinstance(config.reference_column, str):
        yield f"reference_column={config.reference_column!r} must be the name of a dataset column or None."
    sources = config.teacher_context
    if not isinstance(sources, list) or not sources or len(set(map(str, sources))) != len(sources):
        yield f"teacher_context={sources!r} must be a list of one or more different sources."
        return
    for source in sources:
        yield from _one_of("teacher_context entry", source, TEACHER_SOURCES)
    if ("reference" in sources) != (config.reference_column is not None):
        yield (
            f"teacher_context={sources!r} and reference_column={config.reference_column!r} do not fit: give "
            "both 'reference' in teacher_context and the column's name, or neither."
        )


def _template_problems(config: "SRPOConfig") -> Iterator[str]:
    required = {
        "reprompt_template": {"prompt", "solution", "feedback"},
        "solution_template": {"successful_previous_attempt"},
        "feedback_template": {"feedback_raw"},
    }
    for name, fields in required.items():
        template = getattr(config, name)
        if not isinstance(template, str):
            yield f"{name}={template!r} must be a string."
            continue
        missing = sorted(f for f in fields if template.count(f"{{{f}}}") != 1)
        if missing:
            yield f"{name} must contain each of {', '.join(f'{{{f}}}' for f in missing)} exactly once."
        unknown = sorted(set(re.findall(r"\{(\w+)\}", template)) - fields)
        if unknown:
            yield f"{name} has unknown fields {', '.join(f'{{{f}}}' for f in unknown)}."


def _evaluation_problems(config: "SRPOConfig") -> Iterator[str]:
    metric = config.metric_for_best_model
    if not config.samples_evaluation:
        if isinstance(metric, str) and re.fullmatch(r"(eval_)?(avg|maj|pass)@\d+", metric):
            yield (
                f"metric_for_best_model={metric!r} is a score of sampled evaluation, which method='grpo' has where it "
                "is asked for: set eval_temperature, 0.6 in the paper."
            )
        return
    yield from _in_range("eval_temperature", config.eval_temperature, *TEMPERATURES)
    yield from _in_range("eval_top_p", config.eval_top_p, 0.0, 1.0, open_low=True)
    yield from _positive_int("eval_tokens_per_batch", config.eval_tokens_per_batch)
    if metric in ("loss", "eval_loss"):
        yield (
            f"metric_for_best_model={metric!r} is not measured: evaluation scores samples and "
            "computes no loss. Give one of the scores, such as 'eval_avg@16', or leave it out."
        )


def _fault_problems(config: "SRPOConfig") -> Iterator[str]:
    if config.max_nonfinite_steps is not None:
        yield from _positive_int("max_nonfinite_steps", config.max_nonfinite_steps)
    if not isinstance(config.run_log, bool):
        yield f"run_log={config.run_log!r} must be true or false."
    if config.reward_timeout is not None:
        yield from _in_range("reward_timeout", config.reward_timeout, 0.0, 1e9, open_low=True)


def _inherited_problems(config: "SRPOConfig") -> Iterator[str]:
    if config.loss_type not in JOINT_DENOMINATOR_LOSSES:
        yield (
            f"loss_type={config.loss_type!r} has no joint token denominator over an optimizer step, which "
            f"method={config.method!r} needs. Use one of {', '.join(map(repr, JOINT_DENOMINATOR_LOSSES))}, or "
            "method='grpo'."
        )
    if config.max_completion_length is None:
        yield "max_completion_length=None leaves open how much of the model's context a teacher prompt may fill."
    upper_clip = config.epsilon_high or 0.0
    if config.loss_type == "cispo" and isinstance(upper_clip, (int, float)) and upper_clip < 1.0:
        yield (
            f"epsilon_high={config.epsilon_high!r} caps CISPO's ratio itself, which is 1 on-policy. Give one of at "
            "least 1 (5 is usual), or another loss_type."
        )


def derived_problems(config: "SRPOConfig") -> Iterator[str]:
    """Yield problems of values that TRL has derived from others by now."""
    assert config.steps_per_generation is not None
    assert config.generation_batch_size is not None
    num_prompts = config.generation_batch_size // (config.num_generations or 1)
    is_frac = not list(
        _in_range("resample_failed_frac", config.resample_failed_frac, 0.0, 1.0, open_low=True)
    )
    if is_frac and int(config.resample_failed_frac * num_prompts) < 1:
        yield (
            f"resample_failed_frac={config.resample_failed_frac!r} of the {num_prompts} prompts of a rollout batch is "
            f"none. Give at least {1 / num_prompts:.3g}, or 0."
        )
    if config.generation_batch_size > MAX_COUNT:
        yield (
            f"generation_batch_size={config.generation_batch_size} (per_device_train_batch_size x processes x "
            f"steps_per_generation) must be at most {MAX_COUNT} rollouts."
        )
