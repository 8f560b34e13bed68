"""Guards: known failure modes of a run, found in its log, and what helps against each.

A guard reads logged metrics alone. It compares the last few logs with the first few of the run, or with a bound,
so a few noisy logs do not set it off. It warns once, then again only after 10 quiet logs.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any, NamedTuple

from srpo_trl.runs.scores import HELD_OUT, common_metric


@dataclass(frozen=True)
class GuardThresholds:
    """When a guard warns. Every number is a choice of this project, not of the paper.

    Attributes:
        window: logs that a mean is taken over; no guard but "non_finite" warns before twice as many.
        format_drop: fall of the well-formed share at evaluation sampling, below the best evaluation. One public
            reproduction of SDPO fell from 0.999 to 0.106 while its training reward stayed high.
        length_growth: mean completion length over that of the first logs; its inverse for a collapse. In the same
            run the length was the first thing to move.
        entropy_fall: mean policy entropy over that of the first logs: below, sampling has become greedy and groups
            stop differing.
        entropy_growth: above, policy entropy diverges.
        distilled_low: share of distilled rollouts, while less than `mostly_correct` of them are correct: SRPO is
            running as GRPO.
        distilled_high: above, hardly any reward drives the policy.
        mostly_correct: see `distilled_low`.
        teacher_growth: distance of teacher and student over that of the first logs: the student runs away from its
            teacher.
        score_drop: fall of the evaluation score below its best while the training reward does not fall: the grader
            is being exploited, or sampling at the evaluation's temperature has broken.
        effective_share: effective sample size of the token weights over the number of tokens: a few tokens carry
            the distillation loss.
    """

    window: int = 10
    format_drop: float = 0.2
    length_growth: float = 3.0
    entropy_fall: float = 0.1
    entropy_growth: float = 3.0
    distilled_low: float = 0.01
    distilled_high: float = 0.95
    mostly_correct: float = 0.9
    teacher_growth: float = 20.0
    score_drop: float = 0.1
    effective_share: float = 0.1


DEFAULT_THRESHOLDS = GuardThresholds()


class History:
    """Every value that was logged, by metric, in order."""

    def __init__(self) -> None:
        self._values: dict[str, list[float]] = {}

    def add(self, logs: Mapping[str, Any]) -> None:
        """Take one log; what is no number is left out."""
        for name, value in logs.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                self._values.setdefault(name, []).append(float(value))

    def values(self, name: str) -> list[float]:
        """Return all values of a metric."""
        return self._values.get(name, [])

    def evaluation_scores(self) -> list[float]:
        """Return the evaluation's mean accuracy over its samples; TRL's mean reward where it has none."""
        return self.values(common_metric([self._values], HELD_OUT) or "")

    def first_and_last(self, name: str, window: int) -> tuple[float, float]:
        """Return the means of the first and of the last `window` values; NaN before there are twice as many."""
        values = self.values(name)
        if len(values) < 2 * window:
            return math.nan, math.nan
        return fmean(values[:window]), fmean(values[-window:])


Find = Callable[[History, GuardThresholds], str | None]


def _format_collapse(history: History, limits: GuardThresholds) -> str | None:
    rates = history.values("eval_format_rate")
    if len(rates) > 1 and rates[-1] < max(rates) - limits.format_drop:
        return f"well-formed answers at evaluation fell from {max(rates):.3f} to {rates[-1]:.3f}"
    return None


def _length(history: History, limits: GuardThresholds) -> str | None:
    first, last = history.first_and_last("completions/mean_length", limits.window)
    if first > 0 and not 1 / limits.length_growth <= last / first <= limits.length_growth:
        return f"completions went from {first:.0f} to {last:.0f} tokens in the mean"
    return None


def _entropy(history: History, limits: GuardThresholds) -> str | None:
    first, last = history.first_and_last("entropy", limits.window)
    if first > 0 and not limits.entropy_fall <= last / first <= limits.entropy_growth:
        return f"the policy's entropy went from {first:.3g} to {last:.3g} nats"
    return None


def _distilled_share(history: History, limits: GuardThresholds) -> str | None:
    _, distilled = history.first_and_last("srpo/route/distilled_frac", limits.window)
    _, correct = history.first_and_last("srpo/correct_frac", limits.window)
    allowed = history.values("srpo/distillation/share")
    if math.isnan(correct) or (allowed and allowed[-1] < 1.0):
        return None
    if distilled < limits.distilled_low and correct < limits.mostly_correct:
        return f"{distilled:.1%} of the rollouts are distilled while {1 - correct:.0%} are not correct"
    if distilled > limits.distilled_high:
        return f"{distilled:.0%} of the rollouts are distilled, so hardly any reward drives the policy"
    return None


def _teacher_stands_still(history: History, limits: GuardThresholds) -> str | None:
    distances = history.values("srpo/teacher/distance")[-limits.window :]
    rates = history.values("learning_rate")[-limits.window :]
    if len(distances) == limits.window and not any(distances) and all(rates):
        return "student and teacher have been equal for all of the last logs: neither moves"
    return None


def _teacher_drifts(history: History, limits: GuardThresholds) -> str | None:
    first, last = history.first_and_last("srpo/teacher/distance", limits.window)
    if first > 0 and last > limits.teacher_growth * first:
        return f"the distance of student and teacher grew from {first:.3g} to {last:.3g}"
    return None


def _reward_without_score(history: History, limits: GuardThresholds) -> str | None:
    first, last = history.first_and_last("reward", limits.window)
    scores = history.evaluation_scores()
    if len(scores) > 1 and scores[-1] < max(scores) - limits.score_drop and last >= first:
        return (
            f"the training reward went from {first:.3f} to {last:.3f} while the evaluation fell from "
            f"{max(scores):.3f} to {scores[-1]:.3f}"
        )
    return None


def _few_tokens_count(history: History, limits: GuardThresholds) -> str | None:
    _, share = history.first_and_last("srpo/weight/ess_frac", limits.window)
    if share < limits.effective_share:
        return f"the token weights count as {share:.1%} of the distilled tokens"
    return None


def _non_finite(history: History, limits: GuardThresholds) -> str | None:
    for name in ("loss", "grad_norm", "srpo/teacher/entropy", "srpo/distillation/divergence"):
        values = history.values(name)
        if values and not math.isfinite(values[-1]):
            return f"{name} is {values[-1]}"
    skipped = history.values("srpo/nonfinite_steps")
    if skipped and skipped[-1]:
        return f"{skipped[-1]:.0f} optimizer steps were skipped since the last log"
    return None


class Guard(NamedTuple):
    """One way in which a run goes wrong.

    Attributes:
        find: says what it saw, or None.
        advice: what to do by hand.
        remedies: the values of `guard_action` that help against it.
    """

    find: Find
    advice: str
    remedies: tuple[str, ...] = ()


GUARDS: dict[str, Guard] = {
    "format_collapse": Guard(
        _format_collapse,
        "Go back to the best checkpoint; lower the learning rate or the share of distilled rollouts",
        ("lower_distillation", "freeze_teacher", "stop"),
    ),
    "length": Guard(
        _length,
        "Read some completions; lower the learning rate, or add srpo_trl.rewards.length_reward",
        ("lower_distillation", "freeze_teacher", "stop"),
    ),
    "entropy": Guard(
        _entropy,
        "Lower the learning rate; against a fall raise epsilon_high or entropy_coef",
        ("lower_distillation", "stop"),
    ),
    "distilled_share": Guard(
        _distilled_share,
        "Read srpo/teacher/available_frac and srpo/correct_frac: easier prompts, more generations, or more sources in "
        "teacher_context; check success_reward_threshold",
    ),
    "teacher_stands_still": Guard(
        _teacher_stands_still,
        "No reward differs within a group, or nothing is trainable: look at reward_std and grad_norm",
    ),
    "teacher_drifts": Guard(
        _teacher_drifts,
        "Lower the learning rate, or raise teacher_update_rate",
        ("reset_teacher", "lower_distillation", "stop"),
    ),
    "reward_without_score": Guard(
        _reward_without_score,
        "Read evaluated completions: the reward is exploited, or the format broke; go back to the best checkpoint",
        ("lower_distillation", "freeze_teacher", "stop"),
    ),
    "few_tokens_count": Guard(_few_tokens_count, "Lower entropy_weight_beta"),
    "non_finite": Guard(_non_finite, "Lower the learning rate; look at the saved batch", ("stop",)),
}


class Finding(NamedTuple):
    """What a guard said at an optimizer step, and the action taken, `"warn"` where no other helps against it."""

    step: int
    guard: str
    message: str
    action: str


class Watch:
    """Guards over a history: each finding once, until its guard has had a window of quiet logs."""

    def __init__(self, action: str, thresholds: GuardThresholds) -> None:
        self._action = action
        self._thresholds = thresholds
        self._history = History()
        self._quiet_logs: dict[str, int] = {}

    def observe(self, logs: Mapping[str, Any], step: int) -> list[Finding]:
        """Take one log and return what is new."""
        self._history.add(logs)
        findings = []
        for name, guard in GUARDS.items():
            message = guard.find(self._history, self._thresholds)
            quiet_logs = self._quiet_logs.get(name, self._thresholds.window)
            self._quiet_logs[name] = quiet_logs + 1 if message is None else 0
            if message is not None and quiet_logs >= self._thresholds.window:
                action = self._action if self._action in guard.remedies else "warn"
                findings.append(Finding(step, name, message, action))
        return findings
