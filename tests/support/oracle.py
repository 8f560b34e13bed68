"""The mathematics of SRPO in plain Python and NumPy, written from the papers' formulas.

Nothing here is imported from the package or from torch, everything is float64, and nothing is clever: one
rollout, one token, one formula at a time. Sources: SRPO arXiv:2604.02288, SDPO arXiv:2601.20802, Dr. GRPO
arXiv:2503.20783, DAPO arXiv:2503.14476.

Shapes: T completion positions of one rollout, V vocabulary, K a support.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

# --- Routing: (correct, has_teacher) -> (policy weight, distillation weight) of a scored rollout ---
_TABLES: dict[str, dict[tuple[bool, bool], tuple[float, float]]] = {
    "srpo": {
        (True, True): (1, 0),
        (True, False): (1, 0),
        (False, True): (0, 1),
        (False, False): (1, 0),
    },
    "grpo": {
        (True, True): (1, 0),
        (True, False): (1, 0),
        (False, True): (1, 0),
        (False, False): (1, 0),
    },
    "sdpo": {
        (True, True): (0, 1),
        (True, False): (0, 0),
        (False, True): (0, 1),
        (False, False): (0, 0),
    },
    "sdpo_failed": {
        (True, True): (0, 0),
        (True, False): (0, 0),
        (False, True): (0, 1),
        (False, False): (0, 0),
    },
    "sdpo_correct": {
        (True, True): (0, 1),
        (True, False): (0, 0),
        (False, True): (0, 0),
        (False, False): (0, 0),
    },
}


def route_weights(
    method: str, correct: bool, has_teacher: bool, scored: bool, advantage_mix_lambda: float = 0.9
) -> tuple[float, float]:
    """(policy_weight, distill_weight) of one rollout; (0, 0) where no reward function could score it."""
    if not scored:
        return 0.0, 0.0
    if method == "advantage_mix":
        return advantage_mix_lambda, (1.0 - advantage_mix_lambda if has_teacher else 0.0)
    policy_weight, distill_weight = _TABLES[method][bool(correct), bool(has_teacher)]
    return float(policy_weight), float(distill_weight)


# --- Distributions ---
def log_softmax(logits: ArrayLike) -> np.ndarray:
    """Log-probabilities over the last axis, in nats."""
    values = np.asarray(logits, dtype=np.float64)
    shifted = values - values.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def entropy(logps: ArrayLike) -> np.ndarray:
    """-sum_v p_v log p_v over the last axis, in nats."""
    values = np.asarray(logps, dtype=np.float64)
    return -(np.exp(values) * values).sum(axis=-1)


def head_logits(
    hidden: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    temperature: float = 1.0,
) -> np.ndarray:
    """softcap(logit_scale * (hidden W^T + bias)) / temperature."""
    logits = np.asarray(hidden, dtype=np.float64) @ np.asarray(weight, dtype=np.float64).T
    if bias is not None:
        logits = logits + np.asarray(bias, dtype=np.float64)
    logits = logits * logit_scale
    if softcap is not None:
        logits = softcap * np.tanh(logits / softcap)
    return logits / temperature


def support(
    student_logps: ArrayLike, teacher_logps: ArrayLike, topk: int | None, add_tail: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Both probability vectors of one token on the student's support.

    None, or V and more: the full vocabulary. Else the student's `topk` most probable tokens, with the rest of
    the mass as one more entry (`add_tail`) or renormalized.
    """
    student = np.exp(np.asarray(student_logps, dtype=np.float64))
    teacher = np.exp(np.asarray(teacher_logps, dtype=np.float64))
    if topk is None or topk >= len(student):
        return student, teacher
    order = np.argsort(-student, kind="stable")
    top, rest = order[:topk], order[topk:]
    if add_tail:
        return (
            np.append(student[top], student[rest].sum()),
            np.append(teacher[top], teacher[rest].sum()),
        )
    return student[top] / student[top].sum(), teacher[top] / teacher[top].sum()


def kl(first: np.ndarray, second: np.ndarray) -> float:
    """KL(first || second) of two probability vectors, in nats; entries without mass in `first` add
    nothing."""
    return float(sum(summands(first, second)))


def summands(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Each entry's part of KL(first || second)."""
    parts = [a * (math.log(a) - math.log(b)) if a > 0 else 0.0 for a, b in zip(first, second, strict=True)]
    return np.array(parts)


def divergence(
    student_logps: ArrayLike,
    teacher_logps: ArrayLike,
    alpha: float,
    topk: int | None = None,
    add_tail: bool = True,
    clip: float | None = None,
) -> float:
    """Divergence of one token, in nats: alpha 0 KL(q||p), 1 KL(p||q), between generalized Jensen-Shannon.

    No entry of the support adds more than `clip`.
    """
    p, q = support(student_logps, teacher_logps, topk, add_tail)
    if alpha == 0:
        parts = summands(q, p)
    elif alpha == 1:
        parts = summands(p, q)
    else:
        mixture = (1 - alpha) * p + alpha * q
        parts = alpha * summands(q, mixture) + (1 - alpha) * summands(p, mixture)
    return float(sum(part if clip is None else min(part, clip) for part in parts))


def importance_ratio(student_logp: float, old_logp: float, clip: float | None) -> float:
    """min(exp(clamp(log pi_theta - log pi_old, -20, 20)), clip); exactly 1 where clip is None."""
    if clip is None:
        return 1.0
    return min(math.exp(max(-20.0, min(20.0, student_logp - old_logp))), clip)


# --- Token weights ---
def entropy_weights(entropies: Sequence[float], beta: float) -> np.ndarray:
    """exp(-beta H) over its mean, the given entropies being all of Omega; empty where Omega is."""
    raw = np.exp(-beta * np.asarray(entropies, dtype=np.float64))
    return raw / raw.mean() if raw.size else raw


def effective_sample_size(weights: Sequence[float]) -> float:
    """(sum w)^2 / sum w^2."""
    return sum(weights) ** 2 / sum(w * w for w in weights)


# --- Policy branch ---
def group_advantages(rewards: Sequence[float], num_generations: int) -> np.ndarray:
    """Reward minus the mean of its group, not divided by a standard deviation (Dr. GRPO).

    Groups are `num_generations` consecutive rollouts. A NaN reward (unscored) counts in no mean and has
    advantage 0.
    """
    advantages = []
    for start in range(0, len(rewards), num_generations):
        group = rewards[start : start + num_generations]
        scored = [r for r in group if not math.isnan(r)]
        mean = sum(scored) / len(scored) if scored else 0.0
        advantages += [0.0 if math.isnan(r) else r - mean for r in group]
    return np.array(advantages)


def clipped_policy_loss(
    logp: float, old_logp: float, advantage: float, epsilon_low: float = 0.2, epsilon_high: float = 0.28
) -> float:
    """-min(r A, clip(r, 1 - epsilon_low, 1 + epsilon_high) A) of one token, r = exp(logp - old_logp)."""
    ratio = math.exp(logp - old_logp)
    clipped = min(max(ratio, 1 - epsilon_low), 1 + epsilon_high)
    return -min(ratio * advantage, clipped * advantage)


# --- Joint objective ---
@dataclasses.dataclass(frozen=True)
class Rollout:
    """One completion of the window.

    Attributes:
        student_logits: (T, V), the current policy's, before the temperature.
        teacher_logits: (T, V), or None where there is no teacher information.
        token_ids: (T,), the sampled tokens.
        mask: (T,), true at valid completion tokens.
        reward: the scalar reward; NaN where no reward function could score it.
        old_logps: (T,), log-probability of each token under the policy that sampled it, temperature applied;
            None where that is the current policy, whose ratio is then 1 with its own gradient (policy branch)
            or without one (distillation branch).
        sampler_ratio: (T,), an importance ratio between trainer and sampler, multiplied onto both branches;
            None: 1.
        correct: None: reward >= the threshold.
        frozen_student_logits: (T, V), where quantities without a gradient (importance ratio, the first factor
            of the sampled-token loss, missing old_logps) are taken; None: student_logits. Give the point of
            expansion here to take numerical derivatives of the objective in student_logits.
    """

    student_logits: ArrayLike
    teacher_logits: ArrayLike | None
    token_ids: Sequence[int]
    mask: Sequence[bool]
    reward: float
    old_logps: Sequence[float] | None = None
    sampler_ratio: Sequence[float] | None = None
    correct: bool | None = None
    frozen_student_logits: ArrayLike | None = None


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of the objective, with the trainer's names and defaults."""

    num_generations: int = 8
    method: str = "srpo"
    advantage_mix_lambda: float = 0.9
    success_reward_threshold: float = 0.5
    temperature: float = 1.0
    distillation_alpha: float = 0.5
    distillation_topk: int | None = 100
    distillation_add_tail: bool = True
    distillation_estimator: str = "exact"
    distillation_is_clip: float | None = 2.0
    distillation_pointwise_clip: float | None = None
    entropy_weight_beta: float = 1.0
    epsilon_low: float = 0.2
    epsilon_high: float = 0.28


@dataclasses.dataclass(frozen=True)
class Objective:
    """The joint loss of a window and its parts; loss = (policy_sum + distillation_sum) /
    num_routed_tokens."""

    loss: float
    policy_sum: float
    distillation_sum: float
    num_routed_tokens: int
    num_distilled_tokens: int
    mean_unnormalized_weight: float
    routes: list[tuple[float, float]]
    advantages: np.ndarray


def joint_objective(rollouts: Sequence[Rollout], options: Options) -> Objective:
    """The loss of all rollouts of one optimizer step, over all micro-batches and processes (SRPO sec. 3.3).

        L = sum_it (policy_weight_i l_grpo_it + distill_weight_i w_it l_sdpo_it) / (number of valid routed
        tokens)

    One denominator for both branches: the valid tokens of rollouts that either branch trains. Omega, over
    which the entropy weights have the mean 1: the valid tokens with a distillation weight.

    Args:
        rollouts: the window's, ordered so that each `num_generations` consecutive ones are a group.
        options: see `Options`.

    Returns:
        The loss, 0 where no token is routed, and its parts.
    """
    advantages = group_advantages([r.reward for r in rollouts], options.num_generations)
    routes = [_route(rollout, options) for rollout in rollouts]

    raw_weights = []
    num_routed_tokens = 0
    for rollout, (policy_weight, distill_weight) in zip(rollouts, routes, strict=True):
        if policy_weight or distill_weight:
            num_routed_tokens += sum(bool(valid) for valid in rollout.mask)
        if distill_weight:
            raw_weights += [_raw_weight(rollout, t, options) for t, valid in enumerate(rollout.mask) if valid]
    mean_unnormalized_weight = sum(raw_weights) / len(raw_weights) if raw_weights else 1.0

    policy_sum = distillation_sum = 0.0
    for rollout, (policy_weight, distill_weight), advantage in zip(rollouts, routes, advantages, strict=True):
        for t, valid in enumerate(rollout.mask):
            if not valid:
                continue
            sampler_ratio = 1.0 if rollout.sampler_ratio is None else float(rollout.sampler_ratio[t])
            if policy_weight:
                loss = _policy_loss(rollout, t, float(advantage), options)
                policy_sum += policy_weight * sampler_ratio * loss
            if distill_weight:
                weight = _raw_weight(rollout, t, options) / mean_unnormalized_weight
                loss = _distillation_loss(rollout, t, options)
                distillation_sum += distill_weight * sampler_ratio * weight * loss
    loss = (policy_sum + distillation_sum) / num_routed_tokens if num_routed_tokens else 0.0
    return Objective(
        loss,
        policy_sum,
        distillation_sum,
        num_routed_tokens,
        len(raw_weights),
        mean_unnormalized_weight,
        routes,
        advantages,
    )


def joint_loss(rollouts: Sequence[Rollout], options: Options) -> float:
    """The total loss alone; see `joint_objective`."""
    return joint_objective(rollouts, options).loss


def numerical_gradient(
    rollouts: Sequence[Rollout], index: int, options: Options, step: float = 1e-5
) -> np.ndarray:
    """Central differences of the joint loss in the student logits of rollout `index`, (T, V).

    What has no gradient in training is held at the given logits.
    """
    rollout = rollouts[index]
    start = np.asarray(rollout.student_logits, dtype=np.float64)
    gradient = np.zeros_like(start)
    for position in np.ndindex(*start.shape):
        losses = []
        for sign in (1, -1):
            moved = start.copy()
            moved[position] += sign * step
            shifted = dataclasses.replace(rollout, student_logits=moved, frozen_student_logits=start)
            losses.append(joint_loss([*rollouts[:index], shifted, *rollouts[index + 1 :]], options))
        gradient[position] = (losses[0] - losses[1]) / (2 * step)
    return gradient


def _route(rollout: Rollout, options: Options) -> tuple[float, float]:
    correct = rollout.correct
    if correct is None:
        correct = rollout.reward >= options.success_reward_threshold
    return route_weights(
        options.method,
        correct,
        rollout.teacher_logits is not None,
        not math.isnan(rollout.reward),
        options.advantage_mix_lambda,
    )


def _logps(logits: ArrayLike | None, t: int, options: Options) -> np.ndarray:
    assert logits is not None, "a rollout without teacher_logits has no distillation branch"
    return log_softmax(np.asarray(logits, dtype=np.float64)[t] / options.temperature)


def _frozen_logp(rollout: Rollout, t: int, options: Options) -> float:
    frozen = rollout.frozen_student_logits
    logits = rollout.student_logits if frozen is None else frozen
    return float(_logps(logits, t, options)[rollout.token_ids[t]])


def _old_logp(rollout: Rollout, t: int, options: Options) -> float:
    return _frozen_logp(rollout, t, options) if rollout.old_logps is None else float(rollout.old_logps[t])


def _raw_weight(rollout: Rollout, t: int, options: Options) -> float:
    return math.exp(-options.entropy_weight_beta * float(entropy(_logps(rollout.teacher_logits, t, options))))


def _policy_loss(rollout: Rollout, t: int, advantage: float, options: Options) -> float:
    logp = float(_logps(rollout.student_logits, t, options)[rollout.token_ids[t]])
    old_logp = _old_logp(rollout, t, options)
    return clipped_policy_loss(logp, old_logp, advantage, options.epsilon_low, options.epsilon_high)


def _distillation_loss(rollout: Rollout, t: int, options: Options) -> float:
    student_logps = _logps(rollout.student_logits, t, options)
    teacher_logps = _logps(rollout.teacher_logits, t, options)
    frozen_logp = _frozen_logp(rollout, t, options)
    token = rollout.token_ids[t]
    if options.distillation_estimator == "sampled":
        loss = (frozen_logp - float(teacher_logps[token])) * float(student_logps[token])
    else:
        loss = divergence(
            student_logps,
            teacher_logps,
            options.distillation_alpha,
            options.distillation_topk,
            options.distillation_add_tail,
            options.distillation_pointwise_clip,
        )
    if rollout.old_logps is None:
        return loss
    return loss * importance_ratio(frozen_logp, rollout.old_logps[t], options.distillation_is_clip)
