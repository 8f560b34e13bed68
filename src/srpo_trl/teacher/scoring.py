"""The teacher's pass: each routed rollout re-scored after the teacher's prompt, once per rollout batch, no gradient.

A teacher prompt that serves several rollouts (one demonstration for all failed siblings) is encoded once and its
key-value cache shared.

Legend: B rollouts of this process, R rows of one pass, U different teacher prompts among them, L prompt length,
T completion length, D hidden, N packed distilled tokens (row by row).
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from srpo_trl.loss.head import STUDENT_HEAD, TeacherHead, lm_head_of
from srpo_trl.loss.ops import Head, TokenStatistics, sampled_logps, token_statistics
from srpo_trl.loss.student import last_hidden_state
from srpo_trl.seams.parameters import full_tensor, local_shard
from srpo_trl.teacher.context import TeacherPrompt
from srpo_trl.teacher.images import VisionRow, vision_inputs
from srpo_trl.teacher.packing import Layout, TeacherRow, num_backbone_calls, plan_passes, shares_prompts
from srpo_trl.teacher.padding import left_pad, right_pad
from srpo_trl.teacher.weights import TeacherWeights


class TeacherScores(NamedTuple):
    """What the teacher pass carries with the rollouts.

    Attributes:
        hidden: per rollout (T_i, D) hidden states of its distilled tokens; (0, D) where it has none.
        statistics: the teacher's entropy and log-sum-exp at those tokens, of these hidden states with this head.
        head: the LM head that projects these hidden states, valid until the teacher moves.
        logps_N: log-probabilities of those tokens, nats; None where they were not asked for.
    """

    hidden: list[Tensor]
    statistics: TokenStatistics
    head: TeacherHead
    logps_N: Tensor | None = None


class BackboneOutput(NamedTuple):
    """The one field of a backbone's output that is read here."""

    last_hidden_state: Tensor


class ShardedBackbone:
    """The backbone of a model whose parameters are sharded: called through the forward that gathers them.

    Args:
        model: the model whose forward the engine has hooks on, PEFT's wrapper included.
        student: the transformers model inside, with its distillation head.
        device: that the engine computes on.
        max_over_processes: the largest of the ranks' numbers; a collective.
    """

    def __init__(
        self,
        model: nn.Module,
        student: PreTrainedModel,
        device: torch.device,
        max_over_processes: Callable[[int], int],
    ) -> None:
        self._model = model
        self.student = student
        self.max_over_processes = max_over_processes
        self.config = student.config
        self.device = device
        self.num_calls = 0

    def __call__(self, **inputs: Any) -> BackboneOutput:
        """Return the backbone's output; as its dtype was, whatever wrappers of the forward make of it."""
        self.num_calls += 1
        with last_hidden_state(self.student.base_model) as captured:
            self._model(**inputs, hidden_states_only=True)
        return BackboneOutput(captured[0])

    def idle_until(self, num_calls: int) -> None:
        """Make calls that score nothing until there were so many: all ranks gather parameters, or none does."""
        token_11 = torch.zeros(1, 1, dtype=torch.int64, device=self.device)
        while self.num_calls < num_calls:
            self(input_ids=token_11, attention_mask=torch.ones_like(token_11), use_cache=False)


@torch.no_grad()
def rescore_rollouts(
    model: PreTrainedModel,
    teacher: TeacherWeights,
    autocast: AbstractContextManager[Any],
    prompts: Sequence[TeacherPrompt | None],
    completions: Sequence[tuple[int, ...]],
    scored_BT: Tensor,
    *,
    student: PreTrainedModel,
    layout: Layout,
    max_tokens: int,
    temperature: float,
    on_cpu: bool = False,
    with_logps: bool = False,
    vision: Sequence[VisionRow] | None = None,
    sharded: ShardedBackbone | None = None,
) -> TeacherScores:
    """Return hidden states, entropies and log-sum-exps of this process's scored tokens.

    Args:
        model, teacher: the teacher's values are put into the model's parameters for the pass.
        autocast: the mixed precision that the student trains in.
        prompts: the teacher's prompt of each scored rollout.
        completions: token ids of each rollout, without padding.
        scored_BT: bool, tokens to score.
        student: the model that trains; the head can be `STUDENT_HEAD` only where it is `model`.
        layout, max_tokens: see `plan_passes`; "padded" for a vision-language model.
        temperature: that logits are divided by.
        on_cpu, with_logps: keep the hidden states in CPU memory; make log-probabilities, too.
        vision: what each rollout's student reads beside token ids; None for a text model.
        sharded: calls the backbone where its parameters are sharded, on every rank as often as on the one with most.
    """
    rows, passes = _planned(prompts, completions, scored_BT, max_tokens, layout)
    calls = (num_backbone_calls([rows[i] for i in batch], layout) for batch in passes)
    # Before the first call: ranks in different collectives hang or abort.
    num_calls = 0 if sharded is None else sharded.max_over_processes(sum(calls))
    hidden: dict[int, Tensor] = {}
    statistics: dict[int, Tensor] = {}
    with _in_evaluation(model), teacher.swapped_in(), autocast:
        head = gathered_head(lm_head_of(model), scored_BT.device)
        for batch in passes:
            images, of_batch = _images(batch, prompts, completions, vision), [rows[i] for i in batch]
            states = forward_rows(sharded or model.base_model, of_batch, layout, images)
            kept = [state[scored_BT[i, : len(state)]] for i, state in zip(batch, states, strict=True)]
            ids = [rows[i].ids_at(scored_BT[i]) for i in batch] if with_logps else None
            hidden |= {i: state.cpu() if on_cpu else state for i, state in zip(batch, kept, strict=True)}
            statistics |= dict(zip(batch, _statistics(kept, head, temperature, ids), strict=True))
        if sharded is not None:
            sharded.idle_until(num_calls)
        none = head.weight_VD.new_empty(0, head.weight_VD.shape[1])
        no_ids = [scored_BT.nonzero()[:0, 0]] if with_logps else None
        made = [_statistics([none], head, temperature, no_ids)[0], *(statistics[i] for i in rows)]
    nothing = next(iter(hidden.values()), none).new_empty(none.shape)
    entropy_N, log_sum_exp_N, *logps_N = torch.cat(made, dim=1)
    return TeacherScores(
        [hidden.get(i, nothing) for i in range(len(completions))],
        TokenStatistics(entropy_N, log_sum_exp_N),
        teacher_head(model, teacher, student, head if sharded is not None else None),
        *logps_N,
    )


def _planned(
    prompts: Sequence[TeacherPrompt | None],
    completions: Sequence[tuple[int, ...]],
    scored_BT: Tensor,
    max_tokens: int,
    layout: Layout,
) -> tuple[dict[int, TeacherRow], list[list[int]]]:
    """Return the rows that have anything to score, by their numbers in order, and the numbers of each pass."""
    chosen = [i for i, any_token in enumerate(scored_BT.any(1).tolist()) if any_token]
    rows = {i: TeacherRow(prompts[i].ids, completions[i]) for i in chosen}  # type: ignore[union-attr]
    plan = plan_passes(list(rows.values()), max_tokens=max_tokens, layout=layout)
    return rows, [[chosen[i] for i in batch] for batch in plan]


def _statistics(
    kept: Sequence[Tensor], head: Head, temperature: float, ids: Sequence[Tensor] | None
) -> Sequence[Tensor]:
    """Return the rows' entropies and log-sum-exps, (2, T_i) each, from one pass over all of them.

    Where the tokens' ids are given, (3, T_i) with their log-probabilities.
    """
    hidden_ND = torch.cat(list(kept))
    made = [*token_statistics(hidden_ND, head, temperature, refuse_nonfinite=False)]
    if ids is not None:
        made.append(sampled_logps(hidden_ND, head, torch.cat(list(ids)), made[1], temperature))
    return torch.split(torch.stack(made), [len(state) for state in kept], dim=1)


def _images(
    batch: Sequence[int],
    prompts: Sequence[TeacherPrompt | None],
    completions: Sequence[tuple[int, ...]],
    vision: Sequence[VisionRow] | None,
) -> Mapping[str, Tensor]:
    """Return the further inputs of a pass over these rollouts; a text model has none."""
    if vision is None:
        return {}
    of_batch = [prompts[i] for i in batch]
    return vision_inputs(of_batch, [len(completions[i]) for i in batch], [vision[i] for i in batch])  # type: ignore[arg-type]


@contextmanager
def _in_evaluation(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def teacher_head(
    model: PreTrainedModel,
    teacher: TeacherWeights,
    student: PreTrainedModel,
    gathered: Head | None = None,
) -> TeacherHead:
    """Return the LM head of the teacher whose values go into `model`, valid until the teacher's next EMA update.

    `STUDENT_HEAD` where that is the student itself and its head has never trained. A collective: all ranks must call
    it. `gathered` is the head where it was gathered already, while sharded parameters held the teacher's values.
    """
    head = lm_head_of(model)
    tensors = [tensor for tensor in head[:2] if tensor is not None]
    if model is student and not any(
        not isinstance(tensor, nn.Parameter) or teacher.holds(tensor) for tensor in tensors
    ):
        return STUDENT_HEAD
    if gathered is not None:
        return gathered
    if not isinstance(head.weight_VD, nn.Parameter):  # computed from parameters, here from the teacher's
        with torch.no_grad(), teacher.swapped_in():
            head = lm_head_of(model)
            bias_V = None if head.bias_V is None else head.bias_V.clone()
            return head._replace(weight_VD=head.weight_VD.clone(), bias_V=bias_V)
    weight_VD = teacher.value_of(head.weight_VD)
    bias_V = None if head.bias_V is None else teacher.value_of(head.bias_V)
    if teacher.kind == "live" and model is student:
        # The optimizer may change the student's head before all steps on these rollouts have been taken.
        weight_VD, bias_V = weight_VD.clone(), None if bias_V is None else bias_V.clone()
    return head._replace(weight_VD=weight_VD, bias_V=bias_V)


def gathered_head(head: Head, device: torch.device) -> Head:
    """Return the head of gathered parameters, or itself where nothing is sharded."""
    weight_VD, bias_V = (None if p is None else full_tensor(p, local_shard(p), device) for p in head[:2])
    return Head(weight_VD, bias_V, *head[2:])  # type: ignore[arg-type]


def forward_rows(
    backbone: nn.Module | ShardedBackbone,
    rows: Sequence[TeacherRow],
    layout: Layout,
    images: Mapping[str, Tensor] | None = None,
) -> list[Tensor]:
    """Return, per row, the hidden states that predict its completion tokens, in one pass.

    Args:
        backbone: model without its LM head, holding the teacher's weights, in evaluation mode.
        rows: what to score; completions have at least one token.
        layout: from `row_layout`; "padded" where there are images.
        images: further inputs of the backbone, from `vision_inputs`.
    Returns:
        List of (T_i, D) tensors in the order of `rows`; position t predicts completion token t.
    """
    if shares_prompts(rows, layout):
        return _score_shared(backbone, rows)
    return (
        _score_packed(backbone, rows) if layout == "packed" else _score_padded(backbone, rows, images or {})
    )


def _score_padded(
    backbone: nn.Module | ShardedBackbone, rows: Sequence[TeacherRow], images: Mapping[str, Tensor]
) -> list[Tensor]:
    """Score whole sequences: right-padded, so that causal attention never sees padding before a token."""
    sequences = [row.prompt_ids + row.completion_ids for row in rows]
    ids_RL, mask_RL = right_pad(sequences, _device(backbone))
    hidden_RLD = backbone(
        input_ids=ids_RL, attention_mask=mask_RL, use_cache=False, **images
    ).last_hidden_state
    starts = [len(row.prompt_ids) - 1 for row in rows]
    return [
        hidden_RLD[r, start : start + len(row.completion_ids)].clone()
        for r, (start, row) in enumerate(zip(starts, rows, strict=True))
    ]


def _score_packed(backbone: nn.Module | ShardedBackbone, rows: Sequence[TeacherRow]) -> list[Tensor]:
    """Score all sequences as one, positions starting anew with each."""
    device = _device(backbone)
    sequences = [row.prompt_ids + row.completion_ids for row in rows]
    ids_1L = torch.tensor([[token for sequence in sequences for token in sequence]], device=device)
    positions_1L = torch.cat([torch.arange(len(s), device=device) for s in sequences]).unsqueeze(0)
    hidden_LD = backbone(input_ids=ids_1L, position_ids=positions_1L, use_cache=False).last_hidden_state[0]
    states = hidden_LD.split([len(sequence) for sequence in sequences])
    return [state[len(row.prompt_ids) - 1 : -1].clone() for state, row in zip(states, rows, strict=True)]


def _score_shared(backbone: nn.Module | ShardedBackbone, rows: Sequence[TeacherRow]) -> list[Tensor]:
    """Score completions after a key-value cache of their prompts, each different prompt encoded once."""
    device = _device(backbone)
    prompts = list(dict.fromkeys(row.prompt_ids for row in rows))
    ids_UL, mask_UL = left_pad(prompts, device)
    cache = DynamicCache(config=backbone.config)  # type: ignore[arg-type]
    position_ids_UL = (mask_UL.cumsum(1) - 1).clamp(min=0)
    prompt_hidden_ULD = backbone(
        input_ids=ids_UL,
        attention_mask=mask_UL,
        position_ids=position_ids_UL,
        **use_of(cache, backbone),
    ).last_hidden_state
    prompt_of_row_R = torch.tensor([prompts.index(row.prompt_ids) for row in rows], device=device)
    first_hidden_R1D = prompt_hidden_ULD[prompt_of_row_R, -1:]
    # The last token predicts nothing that is scored, so it is not run.
    ids_RT, mask_RT = right_pad([row.completion_ids[:-1] for row in rows], device)
    if ids_RT.shape[1]:
        cache.batch_select_indices(prompt_of_row_R)
        prompt_length_R1 = mask_UL.sum(1)[prompt_of_row_R].unsqueeze(1)
        position_ids_RT = prompt_length_R1 + torch.arange(ids_RT.shape[1], device=device)
        hidden_RTD = backbone(
            input_ids=ids_RT,
            attention_mask=torch.cat([mask_UL[prompt_of_row_R], mask_RT], dim=1),
            position_ids=position_ids_RT,
            **use_of(cache, backbone),
        ).last_hidden_state
        first_hidden_R1D = torch.cat([first_hidden_R1D, hidden_RTD], dim=1)
    return [first_hidden_R1D[r, : len(row.completion_ids)].clone() for r, row in enumerate(rows)]


def use_of(cache: DynamicCache, backbone: nn.Module | ShardedBackbone) -> dict[str, Any]:
    """Return the arguments that let a forward use a key-value cache; transformers 5.24 has renamed one of them."""
    kind = type(backbone.student if isinstance(backbone, ShardedBackbone) else backbone)
    is_renamed = "cache" in inspect.signature(kind.forward).parameters
    return {"cache" if is_renamed else "past_key_values": cache, "use_cache": True}


def _device(backbone: nn.Module | ShardedBackbone) -> torch.device:
    return backbone.device if isinstance(backbone, ShardedBackbone) else next(backbone.parameters()).device
