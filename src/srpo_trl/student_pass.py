"""The student's pass: `GRPOTrainer`'s training forward with the distillation loss computed inside it.

Both branches share one backbone pass, and every parallel wrapper sees all parameters used within its forward.

Legend: B rows of a micro-batch, T completion positions, D hidden, N packed distilled tokens (row by row).
"""

import functools
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from srpo_trl.lm_head import lm_head_of
from srpo_trl.ops import DistillationResult, DistillationSpec, Head, distillation_loss
from srpo_trl.trl_seams import FusedCausalLMOutput


@dataclass(frozen=True)
class DistillationRequest:
    """What the student's forward needs to add the distillation loss of one micro-batch.

    Attributes:
        scored_BT: bool, completion tokens that are distilled; they are packed row by row into N.
        teacher_hidden_ND: the teacher's hidden states of those tokens.
        teacher_head: the teacher's LM head.
        coefficient_N: everything that multiplies a token's loss and is known before the pass.
        old_logps_N: log pi_old of those tokens; None on-policy.
        spec: divergence and support.
    """

    scored_BT: Tensor
    teacher_hidden_ND: Tensor
    teacher_head: Head
    coefficient_N: Tensor
    old_logps_N: Tensor | None
    spec: DistillationSpec


@dataclass
class RoutedOutput(FusedCausalLMOutput):
    """Output of TRL's fused LM head, with the fields of `DistillationResult` beside it."""

    distillation_loss: Tensor | None = None
    divergence: Tensor | None = None
    student_logps: Tensor | None = None
    student_entropy: Tensor | None = None
    topk_mass: Tensor | None = None
    importance_ratio: Tensor | None = None

    def distillation(self) -> DistillationResult:
        """Return the distillation fields as the operation returned them."""
        return DistillationResult(
            self.distillation_loss,  # type: ignore[arg-type]
            self.divergence,  # type: ignore[arg-type]
            self.student_logps,  # type: ignore[arg-type]
            self.student_entropy,  # type: ignore[arg-type]
            self.topk_mass,  # type: ignore[arg-type]
            self.importance_ratio,  # type: ignore[arg-type]
        )


def add_distillation_head(model: PreTrainedModel) -> None:
    """Let `model(..., fused_lm_head=True, distillation=request)` also return the distillation loss.

    Call after TRL has added its fused LM head. Without `distillation` the forward is unchanged.
    """
    trl_forward = model.forward

    @functools.wraps(type(model).forward)
    def forward(
        self: PreTrainedModel, *args: Any, distillation: DistillationRequest | None = None, **kwargs: Any
    ) -> Any:
        if distillation is None:
            return trl_forward(*args, **kwargs)
        with _last_hidden_state(self.base_model) as captured:
            outputs = trl_forward(*args, **kwargs)
        num_completion = distillation.scored_BT.shape[1]
        hidden_BTD = captured[0][:, -num_completion - 1 : -1]
        result = distillation_loss(
            hidden_BTD[distillation.scored_BT],
            lm_head_of(self),
            distillation.teacher_hidden_ND,
            distillation.teacher_head,
            kwargs["input_ids"][:, -num_completion:][distillation.scored_BT],
            distillation.coefficient_N,
            distillation.old_logps_N,
            spec=distillation.spec,
        )
        return RoutedOutput(
            **outputs,
            distillation_loss=result.loss,
            divergence=result.divergence_N,
            student_logps=result.student_logps_N,
            student_entropy=result.student_entropy_N,
            topk_mass=result.topk_mass_N,
            importance_ratio=result.importance_ratio_N,
        )

    model.forward = types.MethodType(forward, model)


@contextmanager
def _last_hidden_state(backbone: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the hidden states that the backbone returns while the block runs."""
    captured: list[Tensor] = []
    handle = backbone.register_forward_hook(lambda _m, _i, output: captured.append(output.last_hidden_state))
    try:
        yield captured
    finally:
        handle.remove()


class DistillingModel:
    """Stands for the wrapped model in TRL's loss: passes the request along and keeps the distillation's result.

    Args:
        model: the wrapped student.
        request: of this micro-batch.
        is_policy_B: rows that the policy branch trains; TRL's head need not score the others.
    """

    def __init__(
        self, model: Callable[..., RoutedOutput], request: DistillationRequest, is_policy_B: Tensor
    ) -> None:
        self._model = model
        self._request = request
        self._is_policy_B = is_policy_B
        self.result: DistillationResult | None = None

    def __call__(self, *args: Any, labels: Tensor, **kwargs: Any) -> RoutedOutput:
        """Run the student once for both branches."""
        labels = labels.masked_fill(~self._is_policy_B.unsqueeze(1), -100)
        outputs = self._model(*args, labels=labels, distillation=self._request, **kwargs)
        self.result = outputs.distillation()
        return outputs
