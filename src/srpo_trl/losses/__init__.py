"""The mathematics of the distillation branch: small pure functions on log-probabilities."""

from srpo_trl.losses.divergence import (
    divergence,
    divergence_on_topk,
    forward_kl,
    generalized_jensen_shannon,
    renormalize,
    renormalized_topk,
    reverse_kl,
    sampled_token_reverse_kl,
    student_topk,
    topk_and_tail,
)
from srpo_trl.losses.entropy import entropy
from srpo_trl.losses.importance import importance_ratio
from srpo_trl.losses.token_weights import effective_sample_size, entropy_weights, raw_entropy_weights

__all__ = [
    "divergence",
    "divergence_on_topk",
    "effective_sample_size",
    "entropy",
    "entropy_weights",
    "forward_kl",
    "generalized_jensen_shannon",
    "importance_ratio",
    "raw_entropy_weights",
    "renormalize",
    "renormalized_topk",
    "reverse_kl",
    "sampled_token_reverse_kl",
    "student_topk",
    "topk_and_tail",
]
