"""The only file that speaks TRL's batch keys: translation between its dicts and this package's dataclasses.

Legend: B rows on this process, T completion positions, D hidden, N packed distilled tokens (row by row).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from srpo_trl.loss.float64 import beside_float64
from srpo_trl.loss.ops import TokenStatistics
from srpo_trl.methods.record import (
    NOTHING_YET,
    StudentScores,
    Tokens,
    TokenScores,
    is_distilled,
    is_policy,
    route_names,
)
from srpo_trl.seams.trl import split_pixel_values_by_grid
from srpo_trl.teacher.context import TOKEN_TYPE_INPUTS, TeacherPrompt
from srpo_trl.teacher.images import VisionRow

TrlBatch = dict[str, Any]

# Keys added to TRL's batch. TRL shuffles and splits its values along rows, so each is a tensor or a list of B.
_ROUTE = "srpo_route"
_SCORE = (
    "srpo_{scorer}_{what}".format
)  # entropy, logps, divergence; of one that distils log_sum_exp and hidden
TEACHER_ENTROPY = _SCORE(scorer="teacher", what="entropy")
_ENTROPY = re.compile(_SCORE(scorer="(.+)", what="entropy"))
_ROLLOUT = "srpo_rollout"
_SHOWN = "srpo_shown"
_ROW = "srpo_row/"  # what a method has made of whole groups, by its name

# What to try where a value of a batch is not finite, by its key.
ADVICE = {
    TEACHER_ENTROPY: "the teacher's logits are not finite there. Look at these rows; take a smaller "
    "teacher_update_rate, or teacher_model_kind='base'; then resume from the last checkpoint."
}

# What a vision-language model reads beside token ids.
_IMAGE_KEYS = (
    "pixel_values",
    "image_grid_thw",
    "image_position_ids",
    "image_sizes",
    "pixel_attention_mask",
    "spatial_shapes",
)

_LOGPS_OF_POLICY = ("old_per_token_logps", "ref_per_token_logps", "sampling_per_token_logps")


class DistilledScores(NamedTuple):
    """What the divergence to a scorer is made of.

    Attributes:
        entropy_BT: nats over the full vocabulary; 0 where not distilled.
        log_sum_exp_BT: of its logits, nats; 0 where not distilled. None: a checkpoint without it.
        hidden: per row (T_i, D) of its distilled tokens, (0, D) where not distilled.
    """

    entropy_BT: Tensor
    log_sum_exp_BT: Tensor | None
    hidden: Sequence[Tensor]


@dataclass(frozen=True)
class RoutedBatch:
    """A micro-batch as the distillation branch sees it.

    Attributes:
        route_B: int64 of `Route`.
        scored_BT: bool, completion tokens that the model itself wrote and that count in the loss.
        scores: of each scorer, by its name.
        distilling: of those that distil, in their order.
        advantage_B: TRL's.
        old_logps_BT: log pi_old; None on-policy.
        sampler_ratio_BT: TRL's importance ratio pi_old / pi_sampler under vLLM, broadcastable; None without.
        rows: what the method has made of whole groups, (B,) each, and "is_correct".
        rollout_B: int64, different for every rollout of a run.
    """

    route_B: Tensor
    scored_BT: Tensor
    scores: Mapping[str, TokenScores]
    distilling: Mapping[str, DistilledScores]
    advantage_B: Tensor
    old_logps_BT: Tensor | None
    sampler_ratio_BT: Tensor | None
    rows: Mapping[str, Tensor]
    rollout_B: Tensor

    def tokens(self, step: int, student: StudentScores = NOTHING_YET) -> Tokens:
        """Return what the functions of a method see at an optimizer step, after the student's pass with its scores.

        They compute in float64: the tensors are where that is.
        """
        tokens = Tokens(
            mask_BT=self.scored_BT,
            route_B=self.route_B,
            advantage_B=self.advantage_B,
            old_logps_BT=self.old_logps_BT,
            scores=self.scores,
            rows=self.rows,
            rollout_B=self.rollout_B,
            step=step,
            student=student,
        )
        return beside_float64(tokens, self.route_B.device)

    @property
    def teacher_hidden(self) -> Sequence[Tensor]:
        """Hidden states of the first scorer that distils."""
        return next(iter(self.distilling.values())).hidden

    @property
    def teacher_entropy_BT(self) -> Tensor:
        """Entropy of the first scorer that distils, nats; 0 where not distilled."""
        for scores in self.distilling.values():
            return scores.entropy_BT
        return torch.zeros(self.scored_BT.shape, device=self.scored_BT.device)

    @property
    def sampler_ratio_N(self) -> Tensor | None:
        """The sampler's importance ratio of each distilled token; None without."""
        if self.sampler_ratio_BT is None:
            return None
        return self.sampler_ratio_BT.expand(self.distilled_BT.shape)[self.distilled_BT]

    @property
    def route_names(self) -> list[str]:
        """The name of each row's route."""
        return route_names(self.route_B)

    @property
    def is_policy_B(self) -> Tensor:
        """Rows that the policy branch trains."""
        return is_policy(self.route_B)

    @property
    def is_distilled_B(self) -> Tensor:
        """Rows that the distillation branch trains."""
        return is_distilled(self.route_B)

    @property
    def policy_BT(self) -> Tensor:
        """Valid tokens that the policy branch trains."""
        return self.scored_BT & self.is_policy_B.unsqueeze(1)

    @property
    def distilled_BT(self) -> Tensor:
        """Tokens of Omega: valid tokens that are distilled."""
        return self.scored_BT & self.is_distilled_B.unsqueeze(1)

    @property
    def routed_BT(self) -> Tensor:
        """Tokens that count in the joint denominator: valid tokens of every row that is in the loss."""
        return self.scored_BT & (self.is_policy_B | self.is_distilled_B).unsqueeze(1)


def scored_tokens(batch: TrlBatch) -> Tensor:
    """Return which completion tokens count in the loss: TRL's completion mask times its tool mask, (B, T) bool."""
    mask: Tensor = batch["completion_mask"]
    return (mask * batch["tool_mask"] if "tool_mask" in batch else mask).bool()


def completion_rows(batch: TrlBatch) -> list[tuple[int, ...]]:
    """Return each row's completion token ids without padding; tool tokens stay."""
    lengths = batch["completion_mask"].sum(1).tolist()
    return [
        tuple(ids[:length]) for ids, length in zip(batch["completion_ids"].tolist(), lengths, strict=True)
    ]


def own_prompts(batch: TrlBatch) -> list[TeacherPrompt]:
    """Return each row's prompt as the student has read it, without padding."""
    rows = range(len(batch["prompt_ids"]))
    masks = batch["prompt_mask"].bool()
    types = {key: batch[key][:, : masks.shape[1]] for key in TOKEN_TYPE_INPUTS if key in batch}
    return [
        TeacherPrompt(
            tuple(batch["prompt_ids"][row][masks[row]].tolist()),
            token_types={key: tuple(values[row][masks[row]].tolist()) for key, values in types.items()},
        )
        for row in rows
    ]


def vision_rows(batch: TrlBatch) -> list[VisionRow]:
    """Return what the model reads of each row of a rollout batch beside its token ids, in the rows' order.

    TRL joins the images of all rows, and how many entries of a tensor a row has depends on the architecture: TRL's
    own split says it. Tensors that it leaves whole have one entry a row.
    """
    num_rows, num_completion = batch["completion_ids"].shape
    split = split_pixel_values_by_grid(batch)
    images = {
        key: values if isinstance(values, list) else torch.split(values, 1)
        for key, values in split.items()
        if key in _IMAGE_KEYS
    }
    token_types = {key: batch[key][:, -num_completion:] for key in TOKEN_TYPE_INPUTS if key in batch}
    return [
        VisionRow(
            {key: values[row] for key, values in images.items()},
            {key: values[row] for key, values in token_types.items()},
        )
        for row in range(num_rows)
    ]


def add_routes(batch: TrlBatch, route_B: Tensor) -> None:
    """Add the routes to TRL's rollout batch, (B,), in place."""
    batch[_ROUTE] = route_B


def add_scores(
    batch: TrlBatch,
    scorer: str,
    scored_BT: Tensor,
    statistics: TokenStatistics,
    *,
    hidden: Sequence[Tensor] | None = None,
    logps_N: Tensor | None = None,
    divergence_N: Tensor | None = None,
) -> None:
    """Add a scorer's scores of N tokens to TRL's rollout batch, in place.

    Args:
        batch: TRL's rollout batch.
        scorer: its name.
        scored_BT: bool, these tokens.
        statistics: entropies and log-sum-exps.
        hidden: of a scorer that distils, per row (T_i, D).
        logps_N, divergence_N: see `TokenScores`; None: there are none.
    """
    given = {"entropy": statistics.entropy_N, "logps": logps_N, "divergence": divergence_N}
    if hidden is not None:
        given["log_sum_exp"] = statistics.log_sum_exp_N
        batch[_SCORE(scorer=scorer, what="hidden")] = list(hidden)
    for what, value_N in given.items():
        if value_N is not None:
            value_BT = value_N.new_zeros(scored_BT.shape)
            value_BT[scored_BT] = value_N
            batch[_SCORE(scorer=scorer, what=what)] = value_BT


def add_rows(batch: TrlBatch, rows: Mapping[str, Tensor]) -> None:
    """Add what a method has made of whole groups to TRL's rollout batch, (B,) or (B, T) each, in place."""
    width = batch["completion_ids"].shape[1]
    batch.update(
        {f"{_ROW}{name}": row_B[:, :width] if row_B.dim() == 2 else row_B for name, row_B in rows.items()}
    )


def add_rollouts(batch: TrlBatch, number_B: Tensor, shown: Sequence[dict[str, Any]] | None) -> None:
    """Add what lets a rollout be recognized once it has been trained on, in place.

    Args:
        batch: TRL's rollout batch.
        number_B: int64, different for every rollout of a run.
        shown: per row what its teacher was shown, as plain text and truth values; None: not kept.
    """
    batch[_ROLLOUT] = number_B
    if shown is not None:
        batch[_SHOWN] = list(shown)


def rollout_numbers(batch: TrlBatch) -> Tensor:
    """Return the rollouts' numbers, (B,) int64."""
    numbers_B: Tensor = batch[_ROLLOUT]
    return numbers_B


def context_columns(batch: TrlBatch) -> Sequence[dict[str, Any]]:
    """Return what each row's teacher was shown; empty where that was not kept when the rollouts were made."""
    return batch.get(_SHOWN) or [{}] * len(batch[_ROLLOUT])


def is_routed(batch: TrlBatch) -> bool:
    """Return whether the batch went through routing (evaluation batches do not)."""
    return _ROUTE in batch


def routed_batch(batch: TrlBatch) -> RoutedBatch:
    """Return the distillation branch's view of a TRL micro-batch."""
    names = [match[1] for match in map(_ENTROPY.fullmatch, batch) if match]
    nothing = torch.empty(0)

    def scores(scorer: str, what: str, default: Any = nothing) -> Any:
        return batch.get(_SCORE(scorer=scorer, what=what), default)

    return RoutedBatch(
        route_B=batch[_ROUTE],
        scored_BT=scored_tokens(batch),
        scores={n: TokenScores(*(scores(n, w) for w in ("entropy", "logps", "divergence"))) for n in names},
        distilling={
            name: DistilledScores(scores(name, "entropy"), scores(name, "log_sum_exp", None), hidden)
            for name in names
            if (hidden := scores(name, "hidden", None)) is not None
        },
        advantage_B=batch["advantages"],
        old_logps_BT=batch.get("old_per_token_logps"),
        sampler_ratio_BT=batch.get("importance_sampling_ratio"),
        rows={key.removeprefix(_ROW): batch[key] for key in batch if key.startswith(_ROW)},
        rollout_B=batch[_ROLLOUT],
    )


def policy_inputs(batch: TrlBatch, routed: RoutedBatch, num_items_in_batch: Tensor) -> TrlBatch:
    """Return the TRL micro-batch of the policy branch: TRL's whole loss then acts on policy rows alone.

    TRL's `tool_mask` is the one mask that enters its loss and not its attention, so it carries the routing.

    Args:
        batch: TRL's micro-batch; not changed.
        routed: the same micro-batch, translated.
        num_items_in_batch: () what TRL is to divide by, before its own rescaling.
    """
    policy_B1 = routed.is_policy_B.unsqueeze(1)
    tool_mask = batch.get("tool_mask", torch.ones_like(batch["completion_mask"]))
    inputs = {
        **batch,
        "tool_mask": tool_mask * policy_B1.to(tool_mask.dtype),
        "num_items_in_batch": num_items_in_batch,
    }
    for key in _LOGPS_OF_POLICY:
        if key in batch:  # TRL's head leaves the other tokens' log-probabilities at 0: so must these be
            inputs[key] = torch.where(routed.policy_BT, batch[key], 0.0)
    return inputs
