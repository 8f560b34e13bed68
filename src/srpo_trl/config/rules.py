"""What can be wrong with SRPO's own options together: rules that take the values they read, by the options' names."""

import re
from collections.abc import Iterator
from typing import Any

from srpo_trl.config.defaults import LOSS_METRICS
from srpo_trl.config.ranges import Rule
from srpo_trl.config.teachers import external_teachers, readable_teachers
from srpo_trl.methods import testing
from srpo_trl.methods.record import Method

JOINT_DENOMINATOR_LOSSES = ("dapo", "cispo", "vespo")
MIN_TEMPERATURE = 1e-20


def _extras(
    is_routed: bool,
    method: str,
    gradient_share_steps: int | None,
    log_examples_steps: int | None,
    resample_failed_frac: float,
    guard_action: str,
) -> Iterator[str]:
    """Yield each extra that is asked for by name and has nothing to act on without distillation."""
    if is_routed:
        return
    reason = f"method={method!r} neither routes nor distills"
    for name, value, what in (
        ("gradient_share_steps", gradient_share_steps, "compares the gradients of two branches"),
        ("log_examples_steps", log_examples_steps, "writes down distilled rollouts"),
    ):
        if value is not None:
            yield f"{name}={value!r} {what}, but {reason}. Leave it out, or take another method."
    if resample_failed_frac:
        yield (
            f"resample_failed_frac={resample_failed_frac!r} draws prompts whose group failed once more, but {reason}. "
            "Set it to 0, or take another method."
        )
    if guard_action not in ("off", "warn", "stop"):
        yield (
            f"guard_action={guard_action!r} acts on the teacher or on distillation, but {reason}. Use 'off', 'warn' "
            "or 'stop'."
        )


def _estimator(distillation_estimator: str, distillation_alpha: float) -> Iterator[str]:
    if distillation_estimator == "sampled" and distillation_alpha != 1.0:
        yield (
            f"distillation_estimator='sampled' estimates the reverse KL, but distillation_alpha="
            f"{distillation_alpha!r}. Set distillation_alpha=1.0, or distillation_estimator='exact'."
        )


def _pointwise_clip(
    method_record: Any, distillation_estimator: str, distillation_pointwise_clip: float | None
) -> Iterator[str]:
    of_method = method_record.divergence
    clip = of_method.get("pointwise_clip", distillation_pointwise_clip)
    if clip is not None and of_method.get("estimator", distillation_estimator) == "sampled":
        yield (
            f"distillation_pointwise_clip={clip!r} caps the entries of a support, and the estimator 'sampled' has "
            "none. Leave it out, or take distillation_estimator='exact' and a method that leaves it."
        )


def _hold(distilled_frac_hold_steps: int, distilled_frac_decay_steps: int | None) -> Iterator[str]:
    if distilled_frac_hold_steps and distilled_frac_decay_steps is None:
        yield (
            f"distilled_frac_hold_steps={distilled_frac_hold_steps!r} does nothing without "
            "distilled_frac_decay_steps: give the number of steps over which the share then falls to 0."
        )


def _reference(teacher_context: list[str], reference_column: str | None) -> Iterator[str]:
    if ("reference" in teacher_context) != (reference_column is not None):
        yield (
            f"teacher_context={teacher_context!r} and reference_column={reference_column!r} do not fit: give "
            "both 'reference' in teacher_context and the column's name, or neither."
        )


def _best_metric(metric_for_best_model: Any, eval_temperature: float | None) -> Iterator[str]:
    metric = str(metric_for_best_model)
    if eval_temperature is None and re.fullmatch(r"(eval_)?(avg|maj|pass)@\d+", metric):
        yield (
            f"metric_for_best_model={metric!r} is a score of sampled evaluation, which is off: set eval_temperature, "
            "0.6 in the paper."
        )
    if eval_temperature is not None and metric in LOSS_METRICS:
        yield (
            f"metric_for_best_model={metric!r} chooses TRL's evaluation, which draws no samples to score at "
            f"eval_temperature={eval_temperature!r}. Leave eval_temperature, eval_top_p and eval_tokens_per_batch out, "
            "or give a score such as 'eval_avg@16'."
        )


def _joint_denominator(is_routed: bool, method: str, loss_type: str) -> Iterator[str]:
    if is_routed and loss_type not in JOINT_DENOMINATOR_LOSSES:
        yield (
            f"loss_type={loss_type!r} has no joint token denominator over an optimizer step, which "
            f"method={method!r} needs. Use one of {', '.join(map(repr, JOINT_DENOMINATOR_LOSSES))}, or a method "
            "without distillation."
        )


def _cispo(is_routed: bool, loss_type: str, epsilon_high: float | None) -> Iterator[str]:
    if is_routed and loss_type == "cispo" and (epsilon_high or 0.0) < 1.0:
        yield (
            f"epsilon_high={epsilon_high!r} caps CISPO's ratio itself, which is 1 on-policy. Give one of at "
            "least 1 (5 is usual), or another loss_type."
        )


def _one_advantage(
    method_record: Method, method: str, loss_type: str, off_policy_mask_threshold: float | None
) -> Iterator[str]:
    """Yield what of TRL decides by the one advantage of a rollout, where a method has several or goes beside it."""
    parts = {"a pull": method_record.pull, "an anchor": method_record.anchor}
    own = next((name for name, part in parts.items() if part is not None), "advantages of its own")
    if own not in parts and not _has_token_advantages(method_record):
        return
    reason = (
        f"decides for a whole rollout by its one advantage, but method={method!r} has {own} for each token"
    )
    if loss_type == "vespo":
        yield f"loss_type={loss_type!r} {reason}. Use 'dapo' or 'cispo', or another method."
    if off_policy_mask_threshold is not None:
        yield f"off_policy_mask_threshold={off_policy_mask_threshold!r} {reason}. Leave it out, or take another method."


def _one_ratio(method_record: Method, method: str, importance_sampling_level: str) -> Iterator[str]:
    if method_record.anchor is not None and importance_sampling_level != "token":
        yield (
            f"importance_sampling_level={importance_sampling_level!r} makes one ratio of a whole rollout, in which "
            f"method={method!r} would mix two policies. Use 'token', or another method."
        )


def _has_token_advantages(method: Method) -> bool:
    """Return whether advantages are (B, T), tried on a few rollouts; those by a method's own rows count as such."""
    if method.advantages is None or method.rows is not None:
        return method.advantages is not None
    return method.advantages(testing.tokens(scorers=[scorer.name for scorer in method.scorers])).dim() == 2


def _temperature(is_routed: bool, temperature: float) -> Iterator[str]:
    if is_routed and temperature < MIN_TEMPERATURE:
        yield (
            f"temperature={temperature!r} must be at least {MIN_TEMPERATURE:g}: student's and teacher's logits are "
            "divided by it in float32."
        )


def _completion_length(is_routed: bool, max_completion_length: int | None) -> Iterator[str]:
    if is_routed and max_completion_length is None:
        yield "max_completion_length=None leaves open how much of the model's context a teacher prompt may fill."


def _resampled(
    resample_failed_frac: float, generation_batch_size: int, num_generations: int
) -> Iterator[str]:
    num_prompts = generation_batch_size // num_generations
    if resample_failed_frac and int(resample_failed_frac * num_prompts) < 1:
        yield (
            f"resample_failed_frac={resample_failed_frac!r} of the {num_prompts} prompts of a rollout batch is "
            f"none. Give at least {1 / num_prompts:.3g}, or 0."
        )


RULES: tuple[Rule, ...] = (
    _extras,
    _estimator,
    _pointwise_clip,
    _hold,
    _reference,
    _best_metric,
    _joint_denominator,
    _cispo,
    _one_advantage,
    _one_ratio,
    _temperature,
    _completion_length,
    readable_teachers,
    external_teachers,
)
DERIVED_RULES: tuple[Rule, ...] = (_resampled,)  # of values that TRL derives
