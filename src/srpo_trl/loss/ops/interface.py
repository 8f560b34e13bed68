"""What goes into the distillation operators and what comes out of them, the same for every backend.

Shapes: N packed scored tokens, D hidden (the teacher's may differ), V vocabulary.
"""

import dataclasses
import math
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

Estimator = Literal["exact", "sampled"]


class Head(NamedTuple):
    """An LM head as data: logits = softcap(logit_scale * (hidden W^T + bias)).

    Attributes:
        weight_VD: W; any float dtype.
        bias_V: or None.
        logit_scale: multiplies the logits before the softcap.
        softcap: c of c * tanh(x / c), as in Gemma; None: no softcap.
    """

    weight_VD: Tensor
    bias_V: Tensor | None = None
    logit_scale: float = 1.0
    softcap: float | None = None

    def detach(self) -> "Head":
        """Return the same head, of which nothing receives a gradient."""
        bias_V = None if self.bias_V is None else self.bias_V.detach()
        return self._replace(weight_VD=self.weight_VD.detach(), bias_V=bias_V)


@dataclasses.dataclass(frozen=True)
class DistillationSpec:
    """What is computed per token.

    Attributes:
        alpha: 0 forward KL(teacher || student), 1 reverse KL(student || teacher), between: generalized
            Jensen-Shannon, or with `is_linear` the mix. Not used with "sampled", which is reverse KL.
        topk: size of the support, the student's most probable tokens; None, or V and more: the full
            vocabulary.
        add_tail: one more bucket for the mass outside the top K; False: both sides are renormalized.
        estimator: "exact": a divergence over the support; "sampled": the surrogate of the sampled token
            alone.
        temperature: both sides' logits are divided by it, after scale and softcap.
        importance_clip: cap of the importance ratio; None: the ratio is exactly 1.
        is_linear: alpha KL(student || teacher) + (1 - alpha) KL(teacher || student) for alpha between.
        pointwise_clip: cap of what each entry of the support, the tail included, adds to a token's divergence; an
            entry above it has no gradient. None, which infinity becomes: off.

    Raises:
        ValueError: a value is outside its range, or "sampled" has a `pointwise_clip`.
    """

    alpha: float = 0.5
    topk: int | None = 100
    add_tail: bool = True
    estimator: Estimator = "exact"
    temperature: float = 1.0
    importance_clip: float | None = 2.0
    is_linear: bool = False
    pointwise_clip: float | None = None

    def __post_init__(self) -> None:
        problems = []
        if not 0.0 <= self.alpha <= 1.0:
            problems.append(f"alpha is {self.alpha}; it must be from 0 (forward KL) to 1 (reverse KL)")
        if self.topk is not None and self.topk < 1:
            problems.append(f"topk is {self.topk}; it must be at least 1, or None for the full vocabulary")
        if self.estimator not in get_args(Estimator):
            problems.append(f"estimator is {self.estimator!r}; it must be one of {get_args(Estimator)}")
        if not self.temperature > 0.0:
            problems.append(f"temperature is {self.temperature}; it must be above 0")
        if self.importance_clip is not None and not self.importance_clip > 0.0:
            problems.append(
                f"importance_clip is {self.importance_clip}; it must be above 0, or None to switch it off"
            )
        if self.pointwise_clip is not None and not self.pointwise_clip > 0.0:
            problems.append(
                f"pointwise_clip is {self.pointwise_clip}; it must be above 0, or None to switch it off"
            )
        if self.pointwise_clip is not None and self.estimator == "sampled":
            problems.append(
                f"pointwise_clip is {self.pointwise_clip} and estimator 'sampled', which has no entries to clip; use "
                "'exact', or None"
            )
        if problems:
            raise ValueError("; ".join(problems) + ".")
        if self.pointwise_clip == math.inf:
            object.__setattr__(self, "pointwise_clip", None)

    def support_size(self, vocab_size: int) -> int | None:
        """The number of tokens in the top K, or None where no top K is taken."""
        if self.estimator == "sampled" or self.topk is None or self.topk >= vocab_size:
            return None
        return self.topk

    def needs_whole_teacher(self, vocab_size: int) -> bool:
        """Whether the teacher's logits are needed at all tokens, not at those of a support alone."""
        return self.estimator == "exact" and self.support_size(vocab_size) is None

    def needs_log_sum_exp(self, vocab_size: int) -> bool:
        """Whether a support needs the teacher's probabilities, not their ratios within the top K alone."""
        return not self.needs_whole_teacher(vocab_size) and (self.estimator == "sampled" or self.add_tail)


class TokenStatistics(NamedTuple):
    """What one product with a head tells of each token's distribution; (N,), no gradient.

    Attributes:
        entropy_N: over the whole vocabulary, nats; NaN where a logit is not finite.
        log_sum_exp_N: of the finished logits, temperature applied: log p_v = logit_v - log_sum_exp.
    """

    entropy_N: Tensor
    log_sum_exp_N: Tensor


class DistillationResult(NamedTuple):
    """The distillation loss of the given tokens and what to report about each of them.

    Everything but `loss` is detached, float32 or wider, with shape (N,).

    Attributes:
        loss: (), sum over n of coefficient_n * ratio_n * l_n; the only differentiable field.
        divergence_N: D in nats without coefficient or ratio; for "sampled" log pi_theta(y) - log
            teacher(y).
        student_logps_N: log pi_theta(y_n).
        student_entropy_N: over the full vocabulary, nats.
        topk_mass_N: the student's probability of its own top K; 1 where no top K is taken.
        importance_ratio_N: the factor applied; 1 where there are no old log-probabilities.
    """

    loss: Tensor
    divergence_N: Tensor
    student_logps_N: Tensor
    student_entropy_N: Tensor
    topk_mass_N: Tensor
    importance_ratio_N: Tensor


def compute_dtype(*tensors: Tensor | None) -> torch.dtype:
    """float64 where any of the given tensors is float64, else float32."""
    return (
        torch.float64 if any(t is not None and t.dtype == torch.float64 for t in tensors) else torch.float32
    )


def check_distillation_inputs(
    student_hidden_ND: Tensor,
    student_head: Head,
    teacher_hidden_ND: Tensor,
    teacher_head: Head,
    token_ids_N: Tensor,
    coefficient_N: Tensor,
    old_logps_N: Tensor | None,
    teacher_log_sum_exp_N: Tensor | None,
) -> None:
    """Refuse what does not fit together, before anything is computed.

    Raises:
        ValueError: the two sides' numbers of tokens or vocabularies differ, a head does not fit its hidden
            states, a per-token argument does not have the shape (N,), or the token ids are not integers.
    """
    check_sides(student_hidden_ND, student_head, teacher_hidden_ND, teacher_head, "student", "teacher")
    num_tokens = student_hidden_ND.shape[0]
    per_token = {
        "token_ids_N": token_ids_N,
        "coefficient_N": coefficient_N,
        "old_logps_N": old_logps_N,
        "teacher_log_sum_exp_N": teacher_log_sum_exp_N,
    }
    for name, value in per_token.items():
        if value is not None and value.shape != (num_tokens,):
            raise ValueError(
                f"{name} has the shape {tuple(value.shape)}; ({num_tokens},) is required, one value for each "
                "token of student_hidden_ND. Pack it with the same mask."
            )
    if token_ids_N.is_floating_point() or token_ids_N.dtype == torch.bool:
        raise ValueError(
            f"token_ids_N is {token_ids_N.dtype}; int64 token ids are required. Pass the sampled ids."
        )


def check_sides(
    hidden_ND: Tensor, head: Head, other_hidden_ND: Tensor, other_head: Head, name: str, other_name: str
) -> None:
    """Refuse two sides that do not score the same tokens over the same vocabulary.

    Raises:
        ValueError: their numbers of tokens or vocabularies differ, or a head does not fit its hidden states.
    """
    check_head(name, hidden_ND, head)
    check_head(other_name, other_hidden_ND, other_head)
    num_tokens, other_tokens = hidden_ND.shape[0], other_hidden_ND.shape[0]
    if num_tokens != other_tokens:
        raise ValueError(
            f"the {other_name}'s hidden states hold {other_tokens} tokens and the {name}'s {num_tokens}; both must "
            "hold the same tokens. Pack both with the same mask."
        )
    vocab_size, other_vocab = head.weight_VD.shape[0], other_head.weight_VD.shape[0]
    if vocab_size != other_vocab:
        raise ValueError(
            f"the {name}'s vocabulary has {vocab_size} tokens and the {other_name}'s {other_vocab}; both must be the "
            "same. Use models of one tokenizer, and resize or pad both heads identically."
        )


def check_head(side: str, hidden_ND: Tensor, head: Head) -> None:
    """Refuse a head that does not fit the hidden states.

    Raises:
        ValueError: the hidden states or the weight are no matrices, their widths differ, or the bias is not
            (V,).
    """
    weight_VD, bias_V = head.weight_VD, head.bias_V
    if hidden_ND.ndim != 2 or weight_VD.ndim != 2 or hidden_ND.shape[1] != weight_VD.shape[1]:
        raise ValueError(
            f"the {side}'s hidden states have the shape {tuple(hidden_ND.shape)} and its head's weight "
            f"{tuple(weight_VD.shape)}; (N, D) and (V, D) are required. Pack the scored tokens into one "
            "dimension, and pass the hidden states that this head projects."
        )
    if bias_V is not None and bias_V.shape != (weight_VD.shape[0],):
        raise ValueError(
            f"the {side} head's bias has the shape {tuple(bias_V.shape)}; ({weight_VD.shape[0]},) is "
            "required, one value for each row of its weight."
        )
