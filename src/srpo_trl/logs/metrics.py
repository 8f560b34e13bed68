"""What is logged under `srpo/`: sums and counts, added up on each process and reduced over processes once a log.

`docs/metrics.md` explains each metric, its unit and what moves it.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from srpo_trl.loss.float64 import float64_device, sum_in_float64
from srpo_trl.loss.ops import DistillationResult
from srpo_trl.loss.token_weights import effective_sample_size

# Logged metric: (sum, count). A metric whose count is 0 is left out of the log.
RATIOS: dict[str, tuple[str, str]] = {
    "srpo/route/policy_frac": ("rollouts_policy", "rollouts"),
    "srpo/route/distilled_frac": ("rollouts_distilled", "rollouts"),
    "srpo/route/both_frac": ("rollouts_both", "rollouts"),
    "srpo/route/skipped_frac": ("rollouts_skipped", "rollouts"),
    "srpo/correct_frac": ("rollouts_correct", "rollouts"),
    "srpo/teacher/available_frac": ("teacher_prompts", "rollouts_needing_teacher"),
    "srpo/teacher/prompt_length": ("teacher_prompt_tokens", "teacher_prompts"),
    "srpo/teacher/prompts_cut_frac": ("teacher_prompts_cut", "teacher_prompts"),
    "srpo/teacher/cut_tokens": ("teacher_cut_tokens", "rollout_batches"),
    "srpo/teacher/prompts_too_long": ("teacher_prompts_too_long", "rollout_batches"),
    "srpo/teacher/prompts_without_turn": ("teacher_prompts_without_turn", "rollout_batches"),
    "srpo/teacher/earlier_frac": ("teacher_prompts_earlier", "teacher_prompts"),
    "srpo/teacher/earlier_age": ("teacher_earlier_age", "teacher_prompts_earlier"),
    "srpo/teacher/entropy": ("teacher_entropy", "teacher_tokens"),
    "srpo/weight/raw_mean": ("raw_weight", "teacher_tokens"),
    "srpo/distillation/share": ("distilled_fraction", "rollout_batches"),
    "srpo/loss/policy": ("loss_policy", "optimizer_steps"),
    "srpo/loss/distilled": ("loss_distilled", "optimizer_steps"),
    "srpo/loss/pull": ("loss_pull", "pulled_steps"),
    "srpo/distillation/divergence": ("divergence", "distilled_tokens"),
    "srpo/distillation/student_entropy": ("student_entropy", "distilled_tokens"),
    "srpo/distillation/topk_mass": ("topk_mass", "distilled_tokens"),
    "srpo/distillation/importance_ratio": ("importance_ratio", "distilled_tokens"),
    "srpo/gradient/policy_norm": ("gradient_norm_policy", "gradient_measurements"),
    "srpo/gradient/distilled_norm": ("gradient_norm_distilled", "gradient_measurements"),
    "srpo/gradient/pull_norm": ("gradient_norm_pull", "pull_measurements"),
    "srpo/nonfinite_steps": ("nonfinite_steps", "processes"),
    "srpo/seconds/generation": ("seconds_generation", "rollout_batches"),
    "srpo/seconds/rewards": ("seconds_rewards", "rollout_batches"),
    "srpo/seconds/teacher": ("seconds_teacher", "rollout_batches"),
    "srpo/seconds/loss": ("seconds_loss", "optimizer_steps"),
}
_RAW_WEIGHT_SQUARED = "raw_weight_squared"
_TEACHER_DISTANCE = (
    "teacher_squared_distance",
    "student_squared_norm",
)  # summed over shards, or over replicas
SUMS = tuple(
    dict.fromkeys(
        [*(name for pair in RATIOS.values() for name in pair), _RAW_WEIGHT_SQUARED, *_TEACHER_DISTANCE]
    )
)


class MetricSums:
    """Running sums since the last log. Tensors stay on their device; nothing waits for it before a log."""

    def __init__(self) -> None:
        self._sums: dict[str, float | Tensor] = dict.fromkeys(SUMS, 0.0)

    def add(self, **values: float | Tensor) -> None:
        """Add to the named sums; a tensor is summed over its elements."""
        for name, value in values.items():
            if isinstance(value, Tensor):
                value = sum_in_float64(value.detach())
            self._sums[name] = self._sums[name] + value

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the seconds that the block takes."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(**{name: time.perf_counter() - start})

    def drain(self, sum_over_processes: Callable[[Tensor], Tensor], device: torch.device) -> dict[str, float]:
        """Return the metrics since the last call and start anew.

        Args:
            sum_over_processes: adds a tensor over all processes; called exactly once.
            device: that the reduction runs on.
        """
        self._sums["processes"] = 1.0
        device = float64_device(device)
        stacked = torch.stack(
            [torch.as_tensor(self._sums[n], dtype=torch.float64, device=device) for n in SUMS]
        )
        sums = dict(zip(SUMS, sum_over_processes(stacked).tolist(), strict=True))
        self._sums = dict.fromkeys(SUMS, 0.0)
        return metrics_from_sums(sums)


def teacher_sums(
    entropy_BT: Tensor, raw_weight_BT: Tensor, distilled_BT: Tensor
) -> dict[str, float | Tensor]:
    """Return the sums of a teacher's pass over a rollout batch's distilled tokens."""
    entropy_N, raw_weight_N = entropy_BT[distilled_BT], raw_weight_BT[distilled_BT.to(raw_weight_BT.device)]
    return {
        "teacher_tokens": len(raw_weight_N),
        "teacher_entropy": entropy_N,
        "raw_weight": raw_weight_N,
        _RAW_WEIGHT_SQUARED: raw_weight_N**2,
    }


def loss_sums(losses: Mapping[str, Tensor], result: DistillationResult) -> dict[str, float | Tensor]:
    """Return the sums of a micro-batch's losses, by branch, and of its distilled tokens."""
    return {
        **{f"loss_{name}": loss for name, loss in losses.items()},
        "distilled_tokens": len(result.divergence_N),
        "divergence": result.divergence_N,
        "student_entropy": result.student_entropy_N,
        "topk_mass": result.topk_mass_N,
        "importance_ratio": result.importance_ratio_N,
    }


def gradient_sums(norms: dict[str, Tensor]) -> dict[str, float | Tensor]:
    """Return the sums of a step whose branches' gradients were measured, from their norms by branch."""
    measured = {f"gradient_norm_{name}": norm for name, norm in norms.items()}
    return {"gradient_measurements": 1, "pull_measurements": "pull" in norms, **measured}


def distance_sums(distance: tuple[Tensor, Tensor] | None) -> dict[str, float | Tensor]:
    """Return the sums of an update of the teacher; nothing of the live one, which has no distance."""
    if distance is None:
        return {}
    return dict(zip(_TEACHER_DISTANCE, distance, strict=True))


def metrics_from_sums(sums: dict[str, float]) -> dict[str, float]:
    """Return the logged metrics of summed quantities: each ratio of `RATIOS`, and what follows from several.

    Without those that are not finite, as a skipped step leaves them: trackers that write JSON break on them.
    """
    metrics = {name: sums[a] / sums[b] for name, (a, b) in RATIOS.items() if sums[b]}
    if count := sums["teacher_tokens"]:
        mean, mean_square = sums["raw_weight"] / count, sums[_RAW_WEIGHT_SQUARED] / count
        metrics["srpo/weight/raw_std"] = math.sqrt(max(mean_square - mean**2, 0.0))
        metrics["srpo/weight/ess_frac"] = (
            float(effective_sample_size(sums["raw_weight"], sums[_RAW_WEIGHT_SQUARED])) / count
        )
    squared_distance, squared_norm = (sums[name] for name in _TEACHER_DISTANCE)
    if squared_norm:
        metrics["srpo/teacher/distance"] = math.sqrt(squared_distance / squared_norm)
    for kind, total, part in (
        ("loss", "srpo/loss/policy", "srpo/loss/distilled"),
        ("gradient", "srpo/gradient/policy_norm", "srpo/gradient/distilled_norm"),
    ):
        both = abs(metrics.get(total, 0.0)) + abs(metrics.get(part, 0.0))
        if both:
            metrics[f"srpo/{kind}/distilled_share"] = abs(metrics[part]) / both
    return {name: value for name, value in metrics.items() if math.isfinite(value)}
