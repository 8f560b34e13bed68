"""The model passes of self-distillation: hidden states that are aligned to completion tokens.

Teacher: one pass per rollout batch over the routed rollouts, teacher prompt and the rollout's own tokens, without
gradient. A teacher prompt that serves several rollouts (one demonstration for all failed siblings) is encoded
once and its key-value cache shared.

Student: the training forward of `GRPOTrainer` with the distillation loss computed inside it, from the same
backbone pass, so that every parallel wrapper sees all parameters used within its forward.

Legend: R routed rollouts of one pass, U different teacher prompts among them, L prompt length, T completion
length, D hidden, N packed scored tokens.
"""

import functools
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, PreTrainedModel

from srpo_trl.ops import DistillationResult, DistillationSpec, Head, distillation_loss
from srpo_trl.trl_seams import FusedCausalLMOutput


class TeacherRow(NamedTuple):
    """One rollout to re-score: the teacher's prompt and the rollout's own token ids."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]


@torch.no_grad()
def score_completions(
    backbone: nn.Module, rows: Sequence[TeacherRow], *, max_tokens: int, share_prompts: bool
) -> list[Tensor]:
    """Return, per row, the hidden states that predict its completion tokens.

    Args:
        backbone: model without its LM head, holding the teacher's weights, in evaluation mode.
        rows: what to score; completions have at least one token.
        max_tokens: most padded tokens of one pass; a single row may exceed it.
        share_prompts: encode a prompt that several rows have once (needs a key-value cache).
    Returns:
        List of (T_i, D) tensors in the order of `rows`; position t predicts completion token t.
    """
    states: list[Tensor | None] = [None] * len(rows)
    for batch in plan_passes(rows, max_tokens=max_tokens, share_prompts=share_prompts):
        chosen = [rows[i] for i in batch]
        score = (
            _score_shared
            if share_prompts and len({row.prompt_ids for row in chosen}) < len(chosen)
            else _score
        )
        for i, state in zip(batch, score(backbone, chosen), strict=True):
            states[i] = state
    return [state for state in states if state is not None]


def plan_passes(rows: Sequence[TeacherRow], *, max_tokens: int, share_prompts: bool) -> Iterator[list[int]]:
    """Yield batches of row numbers, alike in length, rows of one prompt side by side where prompts are shared."""

    def length(i: int) -> int:
        return len(rows[i].prompt_ids) + len(rows[i].completion_ids)

    def order(i: int) -> tuple:
        return (rows[i].prompt_ids, length(i)) if share_prompts else (length(i),)

    batch: list[int] = []
    longest = 0
    for i in sorted(range(len(rows)), key=order):
        longest = max(longest, length(i))
        if batch and longest * (len(batch) + 1) > max_tokens:
            yield batch
            batch, longest = [], length(i)
        batch.append(i)
    if batch:
        yield batch


def _score(backbone: nn.Module, rows: Sequence[TeacherRow]) -> list[Tensor]:
    """Score whole sequences: right-padded, so that causal attention never sees padding before a token."""
    sequences = [row.prompt_ids + row.completion_ids for row in rows]
    ids_RL, mask_RL = _right_pad(sequences, _device(backbone))
    hidden_RLD = backbone(input_ids=ids_RL, attention_mask=mask_RL, use_cache=False).last_hidden_state
    starts = [len(row.prompt_ids) - 1 for row in rows]
    return [
        hidden_RLD[r, start : start + len(row.completion_ids)].clone()
        for r, (start, row) in enumerate(zip(starts, rows, strict=True))
    ]


def _score_shared(backbone: nn.Module, rows: Sequence[TeacherRow]) -> list[Tensor]:
    """Score completions after a key-value cache of their prompts, each different prompt encoded once."""
    device = _device(backbone)
    prompts = list(dict.fromkeys(row.prompt_ids for row in rows))
    ids_UL, mask_UL = _left_pad(prompts, device)
    cache = DynamicCache(config=backbone.config)  # type: ignore[arg-type]
    position_ids_UL = (mask_UL.cumsum(1) - 1).clamp(min=0)
    prompt_hidden_ULD = backbone(
        input_ids=ids_UL,
        attention_mask=mask_UL,
        position_ids=position_ids_UL,
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    prompt_of_row_R = torch.tensor([prompts.index(row.prompt_ids) for row in rows], device=device)
    first_hidden_R1D = prompt_hidden_ULD[prompt_of_row_R, -1:]
    # The last token predicts nothing that is scored, so it is not run.
    ids_RT, mask_RT = _right_pad([row.completion_ids[:-1] for row in rows], device)
    if ids_RT.shape[1]:
        cache.batch_select_indices(prompt_of_row_R)
        prompt_length_R1 = mask_UL.sum(1)[prompt_of_row_R].unsqueeze(1)
        position_ids_RT = prompt_length_R1 + torch.arange(ids_RT.shape[1], device=device)
        hidden_RTD = backbone(
            input_ids=ids_RT,
            attention_mask=torch.cat([mask_UL[prompt_of_row_R], mask_RT], dim=1),
            position_ids=position_ids_RT,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        first_hidden_R1D = torch.cat([first_hidden_R1D, hidden_RTD], dim=1)
    return [first_hidden_R1D[r, : len(row.completion_ids)].clone() for r, row in enumerate(rows)]


def can_share_prompts(model: PreTrainedModel) -> bool:
    """Return whether the model keeps a plain key-value cache that can be copied from row to row."""
    layer_types = getattr(model.config.get_text_config(), "layer_types", None) or []
    return bool(getattr(model, "_supports_default_dynamic_cache", lambda: True)()) and all(
        kind == "full_attention" for kind in layer_types
    )


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


def _right_pad(sequences: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    ids = pad_sequence([torch.tensor(s, dtype=torch.int64) for s in sequences], batch_first=True)
    mask = pad_sequence([torch.ones(len(s), dtype=torch.int64) for s in sequences], batch_first=True)
    return ids.to(device), mask.to(device)


def _left_pad(sequences: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    ids, mask = _right_pad([sequence[::-1] for sequence in sequences], device)
    return ids.flip(1), mask.flip(1)


def lm_head_of(model: PreTrainedModel) -> Head:
    """Return the model's LM head as data, with the logit scale and final soft-capping of its architecture."""
    module = model.get_output_embeddings()
    config = model.config.get_text_config()
    return Head(
        module.weight,
        getattr(module, "bias", None),
        _logit_scale(config),
        getattr(config, "final_logit_softcapping", None),
    )


def _logit_scale(config: Any) -> float:
    """Cohere and MPT scale logits, Falcon-H1 multiplies, Granite and MiniCPM3 divide, HyperCLOVA X multiplies."""
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        if getattr(config, name, None) is not None:
            return float(getattr(config, name))
    scaling = getattr(config, "logits_scaling", None)
    if scaling is None:
        return 1.0
    return float(scaling if config.model_type == "hyperclovax" else 1 / scaling)


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
