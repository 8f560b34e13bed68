"""The student's pass: `GRPOTrainer`'s training forward with the distillation loss computed inside it.

Both branches share one backbone pass, and every parallel wrapper sees all parameters used within its forward.

Legend: B rows of a micro-batch, T completion positions, D hidden, N packed distilled tokens (row by row).
"""

import functools
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from srpo_trl.loss.head import STUDENT_HEAD, TeacherHead, lm_head_of
from srpo_trl.loss.ops import DistillationResult, DistillationSpec, Head, distillation_loss
from srpo_trl.seams.trl import FusedCausalLMOutput


def distillation_spec(args: Any, step: int) -> DistillationSpec:
    """Return the divergence and support that the options of an `SRPOConfig` name, or its method at a step."""
    of_options = DistillationSpec(
        alpha=args.distillation_alpha,
        topk=args.distillation_topk,
        add_tail=args.distillation_add_tail,
        estimator=args.distillation_estimator,
        temperature=args.temperature,
        importance_clip=args.distillation_is_clip,
        pointwise_clip=args.distillation_pointwise_clip,
    )
    spec: DistillationSpec = args.method_record.divergence_at(step, of_options)
    return spec


@dataclass(frozen=True)
class TeacherSide:
    """One teacher of a micro-batch's N distilled tokens.

    Attributes:
        hidden_ND: the teacher's hidden states of those tokens.
        head: that projects them.
        coefficient_N: everything that multiplies a token's loss and is known before the pass.
        log_sum_exp_N: of these hidden states with this head; None: made anew, for one more product.
    """

    hidden_ND: Tensor
    head: TeacherHead
    coefficient_N: Tensor
    log_sum_exp_N: Tensor | None = None


@dataclass(frozen=True)
class DistillationRequest:
    """What the student's forward needs to add the distillation loss of one micro-batch.

    Attributes:
        scored_BT: bool, completion tokens that are distilled; they are packed row by row into N.
        teachers: of all of those tokens; the loss is the sum over them. None at all: there are no tokens.
        old_logps_N: log pi_old of those tokens; None on-policy.
        spec: divergence and support.
    """

    scored_BT: Tensor
    teachers: Sequence[TeacherSide]
    old_logps_N: Tensor | None
    spec: DistillationSpec


@dataclass
class RoutedOutput(FusedCausalLMOutput):
    """Output of TRL's fused LM head, with the fields of `DistillationResult` beside it.

    With several teachers the loss is the sum of theirs, and the other fields are the first one's.
    """

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

    Call after TRL has added its fused LM head and `use_own_weights` has been called. Without the argument the forward
    is unchanged.
    """
    # A function, not this model's method: a copy computes with its own weights.
    trl_forward = model.forward.__func__  # type: ignore[attr-defined]

    @functools.wraps(type(model).forward)
    def forward(
        self: PreTrainedModel, *args: Any, distillation: DistillationRequest | None = None, **kwargs: Any
    ) -> Any:
        if distillation is None:
            return trl_forward(self, *args, **kwargs)
        with last_hidden_state(self.base_model) as captured:
            outputs = trl_forward(self, *args, **kwargs)
        result = _distilled(self, captured[0], distillation, kwargs["input_ids"], kwargs["labels"])
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
    add_backbone_calls(model)


def add_backbone_calls(model: PreTrainedModel) -> None:
    """Let `model(..., hidden_states_only=True)` be the backbone alone, for passes that must go through its forward.

    That is where an engine gathers parameters. Without the argument the forward is unchanged.
    """
    replaced = model.forward.__func__  # type: ignore[attr-defined]

    @functools.wraps(replaced)
    def forward(self: PreTrainedModel, *args: Any, hidden_states_only: bool = False, **kwargs: Any) -> Any:
        if not hidden_states_only:
            return replaced(self, *args, **kwargs)
        # PEFT passes every argument of a causal model on, most of them None.
        return self.base_model(*args, **{name: value for name, value in kwargs.items() if value is not None})

    model.forward = types.MethodType(forward, model)


def _distilled(
    model: PreTrainedModel,
    hidden_BLD: Tensor,
    request: DistillationRequest,
    ids_BL: Tensor,
    labels_BL: Tensor,
) -> DistillationResult:
    """Return the distillation of a micro-batch, within the forward that has made its hidden states."""
    num_completion = request.scored_BT.shape[1]
    hidden_ND = hidden_BLD[:, -num_completion - 1 : -1][request.scored_BT]
    # ZeRO-3 gathers a parameter of another module when it is read here, inside the wrapped forward.
    head = _gathered_by_fsdp(lm_head_of(model))
    has_own_gradient = len(hidden_ND) or not bool((labels_BL != -100).any())
    results = [
        distillation_loss(
            hidden_ND,
            # Of no token the gradient would be zeros, and the policy loss makes its own.
            head if has_own_gradient else head.detach(),
            teacher.hidden_ND,
            head if teacher.head is STUDENT_HEAD else teacher.head,
            ids_BL[:, -num_completion:][request.scored_BT],
            teacher.coefficient_N,
            request.old_logps_N,
            teacher.log_sum_exp_N,
            spec=request.spec,
            refuse_nonfinite=False,  # the whole optimizer step is skipped and reported
        )
        for teacher in request.teachers or [_nobody(hidden_ND)]
    ]
    first, *others = results
    return first._replace(loss=sum((result.loss for result in others), start=first.loss))


def _nobody(hidden_ND: Tensor) -> TeacherSide:
    """Return a teacher of no token, whose loss still gives the head a gradient of zeros."""
    return TeacherSide(hidden_ND.detach(), STUDENT_HEAD, hidden_ND.new_zeros(len(hidden_ND)))


def _gathered_by_fsdp(head: Head) -> Head:
    """Return the head as the backbone's forward left it, whole; a frozen one that is still sharded is gathered."""
    if not isinstance(head.weight_VD, DTensor):
        return head
    if head.weight_VD.requires_grad or (head.bias_V is not None and head.bias_V.requires_grad):
        raise ValueError(
            "FSDP2 keeps the trainable LM head sharded while the loss is computed, and a gradient through a copy of "
            "it would not be averaged over processes. Let the LM head share a unit with the last norm or the root: "
            "fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP. An adapter's copy of it (modules_to_save) always has a "
            "unit of its own: train it under DDP or DeepSpeed, or leave 'lm_head' out."
        )
    bias_V = head.bias_V.full_tensor() if isinstance(head.bias_V, DTensor) else head.bias_V
    return head._replace(weight_VD=head.weight_VD.full_tensor(), bias_V=bias_V)


@contextmanager
def last_hidden_state(backbone: nn.Module) -> Iterator[list[Tensor]]:
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
        policy_BT: bool, tokens that the policy branch trains; TRL's head need not score the others.
        then: takes log-probabilities and entropies of those tokens, (B, T) each, and the divergence of the distilled
            ones, (N,), before TRL's loss reads its inputs.
    """

    def __init__(
        self,
        model: Callable[..., RoutedOutput],
        request: DistillationRequest,
        policy_BT: Tensor,
        then: Callable[[Tensor, Tensor, Tensor], None] = lambda logps_BT, entropy_BT, divergence_N: None,
    ) -> None:
        self._model = model
        self._request = request
        self._policy_BT, self._then = policy_BT, then
        self.result: DistillationResult  # of the call

    def __call__(self, *args: Any, labels: Tensor, **kwargs: Any) -> RoutedOutput:
        """Run the student once for both branches."""
        labels = labels.clone()
        num_completion = self._policy_BT.shape[1]
        labels[:, -num_completion:].masked_fill_(~self._policy_BT, -100)
        outputs = self._model(*args, labels=labels, distillation=self._request, **kwargs)
        self.result = outputs.distillation()
        assert outputs.log_probs is not None
        assert outputs.entropy is not None  # TRL's loss logs it
        logps_BT, entropy_BT = (s[:, -num_completion:] for s in (outputs.log_probs, outputs.entropy))
        self._then(logps_BT, entropy_BT, self.result.divergence_N)
        return outputs
