"""The passes of a method's scorers over graded rollouts, and what they leave in TRL's rollout batch.

Legend: B rollouts of this process, T completion positions, N scored tokens packed row by row; P prompts, G generations.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from srpo_trl.loss.float64 import beside_float64, to_float64
from srpo_trl.loss.head import STUDENT_HEAD
from srpo_trl.loss.ops import TokenStatistics
from srpo_trl.methods.record import OWN_CONTEXT, GroupMeans, Method, Scored, Scorer, is_distilled, is_trained
from srpo_trl.rollout.batch import (
    TrlBatch,
    add_routes,
    add_rows,
    add_scores,
    completion_rows,
    own_prompts,
    scored_tokens,
    vision_rows,
)
from srpo_trl.rollout.graded import LOGPS_COLUMN, GradedRollouts, RoutedRollouts
from srpo_trl.rollout.method_rows import method_rows
from srpo_trl.teacher.in_use import TeacherInUse
from srpo_trl.teacher.scoring import TeacherScores

SPANS = "spans"  # column and row
Passes = Mapping[str, tuple[Tensor, TeacherScores]]  # the tokens and their scores, by the scorers' names


def score_rollouts(
    batch: TrlBatch,
    method: Method,
    rollouts: RoutedRollouts,
    teacher: TeacherInUse,
    autocast: Callable[[], AbstractContextManager[Any]],
    gather: Callable[[Tensor], Tensor],
    graded: GradedRollouts,
    *,
    teacher_column: str | None = None,
    reads_images: bool = False,
) -> None:
    """Add routes, the scores of a method's scorers, and what it makes of whole groups to TRL's rollout batch.

    A collective: all ranks must call it.

    Args:
        batch: TRL's rollout batch, in the order of `rollouts`.
        method: whose scorers run.
        rollouts: routed.
        teacher: makes the passes.
        autocast: the mixed precision that the student trains in.
        gather: over all processes, in their order.
        graded: the same rollouts before they were routed.
        teacher_column: names each rollout's external teacher; None: the scorers name theirs.
        reads_images: whether the student is a vision-language model.
    """
    add_routes(batch, rollouts.route_B)
    model_of_row = None if teacher_column is None else graded.columns[teacher_column]
    passes = _run(batch, method, rollouts, graded, teacher, autocast, model_of_row, reads_images)
    scored = partial(scored_groups, rollouts, batch, passes, gather)
    add_rows(batch, method_rows(method, rollouts, graded.own_rows, scored))
    if method.spans:
        add_rows(batch, {SPANS: span_mask(graded.columns[SPANS], scored_tokens(batch))})


def _run(
    batch: TrlBatch,
    method: Method,
    rollouts: RoutedRollouts,
    graded: GradedRollouts,
    teacher: TeacherInUse,
    autocast: Callable[[], AbstractContextManager[Any]],
    model_of_row: Sequence[str] | None,
    reads_images: bool,
) -> Passes:
    """Run the scorers in their order: all ranks make the same passes, whatever their rows hold."""
    passes: dict[str, tuple[Tensor, TeacherScores]] = {}
    own, completions = own_prompts(batch), completion_rows(batch)
    vision = vision_rows(batch) if reads_images else None
    for scorer in method.scorers:
        that = None if scorer.against is None else passes[scorer.against]
        scored_BT = scored_tokens(batch) & _rows(scorer, rollouts).unsqueeze(1) if that is None else that[0]
        prompts = own if scorer.context == OWN_CONTEXT else rollouts.contexts[scorer.context].prompts

        def ask(
            mask_BT: Tensor, model: str = "", name: str = scorer.name, prompts: Any = prompts
        ) -> TeacherScores:
            return teacher.score(name, prompts, completions, mask_BT, vision, autocast(), model)

        if scorer.weights == "cached":
            _check_stored(rollouts)
            scores = _stored(graded.columns[LOGPS_COLUMN], completions, scored_BT)
        elif scorer.weights == "external" and not scorer.model and model_of_row is not None:
            masks = {
                model: scored_BT & _named(model_of_row, model, scored_BT) for model in teacher.external_names
            }
            scores = _joined([(mask_BT, ask(mask_BT, model)) for model, mask_BT in masks.items()], scored_BT)
        else:
            scores = ask(scored_BT)
        is_compared = any(other.against == scorer.name for other in method.scorers)
        passes[scorer.name] = (
            scored_BT,
            scores if is_compared else scores._replace(hidden=[]),
        )  # let memory go
        add_scores(
            batch,
            scorer.name,
            scored_BT,
            scores.statistics,
            hidden=scores.hidden if scorer.distils else None,
            logps_N=scores.logps_N,
            divergence_N=None if that is None else teacher.divergence(scores, that[1], scorer.distance),
        )
    return passes


def _check_stored(rollouts: RoutedRollouts) -> None:
    """Raise ValueError, on every process, where nothing trains because no rollout has stored log-probabilities."""
    if not is_trained(rollouts.route_PG).any() and rollouts.graded.is_scored_PG.any():
        raise ValueError(
            f"The method trains rollouts that have {LOGPS_COLUMN!r}, and none of the batch has any. Store them with "
            "the rollouts: srpo_trl.rollout.offline.with_teacher_logps."
        )


def _stored(
    logps: Sequence[Sequence[float] | None], completions: Sequence[tuple[int, ...]], scored_BT: Tensor
) -> TeacherScores:
    """Return stored log-probabilities of the scored tokens, with entropies of 0.

    Raises:
        ValueError: a rollout that is scored has not one for each token.
    """
    made_BT = torch.zeros(scored_BT.shape)
    for row in scored_BT.any(1).nonzero().flatten().tolist():
        values, length = list(logps[row] or ()), len(completions[row])
        if len(values) != length:
            raise ValueError(
                f"{LOGPS_COLUMN!r} has {len(values)} values for a rollout of {length} tokens; give one for each."
            )
        made_BT[row, :length] = torch.tensor(values)
    logps_N = made_BT.to(scored_BT.device)[scored_BT]
    nothing_N = torch.zeros_like(logps_N)
    return TeacherScores([], TokenStatistics(nothing_N, nothing_N), STUDENT_HEAD, logps_N)


def span_mask(spans: Sequence[Sequence[tuple[int, int]] | None], mask_BT: Tensor) -> Tensor:
    """Return the masked tokens within a rollout's spans, (B, T) bool.

    Raises:
        ValueError: there is not a list or None for each rollout, or a span is no pair of positions, first <= end.
    """
    if len(spans) != len(mask_BT):
        raise ValueError(
            f"log_extra('spans', ...) got {len(spans)} lists for {len(mask_BT)} rollouts. A reward function must give "
            "the method's spans: for each rollout a list of pairs (first, end), or None."
        )
    marked_BT = torch.zeros_like(mask_BT)
    for row, of_row in enumerate(spans):
        for span in of_row or ():
            is_pair = (
                isinstance(span, list | tuple) and len(span) == 2 and all(isinstance(p, int) for p in span)
            )
            if not is_pair or not 0 <= span[0] <= span[1]:
                raise ValueError(
                    f"log_extra('spans', ...) got {span!r} for rollout {row}; give pairs of positions, first and end."
                )
            marked_BT[row, span[0] : span[1]] = True
    return marked_BT & mask_BT


def _named(model_of_row: Sequence[str], model: str, scored_BT: Tensor) -> Tensor:
    """Return which rows have that model, (B, 1) bool."""
    return torch.tensor([[name == model] for name in model_of_row], device=scored_BT.device)


def _rows(scorer: Scorer, rollouts: RoutedRollouts) -> Tensor:
    """Return the rollouts that a scorer scores, (B,) bool: those that it distils, or all that are scored."""
    if scorer.distils:
        return is_distilled(rollouts.route_B)
    return rollouts.is_rescored_B


def _joined(parts: Sequence[tuple[Tensor, TeacherScores]], scored_BT: Tensor) -> TeacherScores:
    """Return the scores of several models that have scored different rows, for a scorer that only observes."""

    def joined(values_N: Sequence[Tensor]) -> Tensor:
        whole_BT = values_N[0].new_zeros(scored_BT.shape)
        for (mask_BT, _), value_N in zip(parts, values_N, strict=True):
            whole_BT[mask_BT] = value_N
        return whole_BT[scored_BT]

    made = [scores for _, scores in parts]
    statistics = zip(*(scores.statistics for scores in made), strict=True)
    logps = [scores.logps_N for scores in made if scores.logps_N is not None]
    return made[0]._replace(
        hidden=[], statistics=TokenStatistics(*map(joined, statistics)), logps_N=joined(logps)
    )


def scored_groups(
    rollouts: RoutedRollouts, batch: TrlBatch, passes: Passes, gather: Callable[[Tensor], Tensor]
) -> Scored:
    """Return all rollouts of all processes as a method's `rows` sees them. A collective: all ranks must call it."""

    device = rollouts.route_PG.device

    def grouped(value_B: Tensor) -> Tensor:
        gathered_PG: Tensor = gather(value_B).view_as(rollouts.route_PG)
        return gathered_PG

    def mean(value_N: Tensor, scored_BT: Tensor) -> Tensor:
        scored_BT = beside_float64(scored_BT, device)
        value_BT = torch.zeros(scored_BT.shape, dtype=torch.float64, device=scored_BT.device)
        value_BT[scored_BT] = to_float64(value_N)
        return grouped(value_BT.sum(1) / scored_BT.sum(1).clamp(min=1))

    scored = Scored(
        rollouts.route_PG,
        *rollouts.graded,
        length_PG=grouped(scored_tokens(batch).sum(1)),
        is_rescored_PG=grouped(rollouts.is_rescored_B.int()).bool(),
        means={
            name: GroupMeans(mean(scores.logps_N, scored_BT), mean(scores.statistics.entropy_N, scored_BT))
            for name, (scored_BT, scores) in passes.items()
            if scores.logps_N is not None
        },
        token_ids=lambda: beside_float64(_token_ids(batch, rollouts, gather), device),
    )
    return beside_float64(scored, device)


def _token_ids(batch: TrlBatch, rollouts: RoutedRollouts, gather: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the ids of all completions, (P, G, T) int64, -1 where a token does not count."""
    ids_BT = batch["completion_ids"].masked_fill(~scored_tokens(batch), -1)
    width = int(gather(torch.tensor([ids_BT.shape[1]], device=ids_BT.device)).max())
    whole: Tensor = gather(pad(ids_BT, (0, width - ids_BT.shape[1]), value=-1))
    return whole.view(*rollouts.route_PG.shape, width)
