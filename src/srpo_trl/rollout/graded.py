"""From graded rollouts to routes: correctness, demonstrations, teacher prompts and each rollout's branch.

Everything that needs the whole group happens here, at rollout time, before TRL shuffles the rows; a group may lie
on several processes.

Legend: B rollouts of all processes, in order, P groups of G; F reward functions; n rollouts of this process.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from srpo_trl.config import SRPOConfig
from srpo_trl.methods.routers import (
    INELIGIBLE_RANK,
    Correctness,
    Route,
    choose_demonstrations,
    demonstration_rank,
    judge_correctness,
    needs_teacher,
    route_samples,
)
from srpo_trl.rollout.distilled_fraction import sample_fraction
from srpo_trl.rollout.solved_prompts import SolvedPrompt, SolvedPrompts, prompt_key
from srpo_trl.teacher.context import (
    Completion,
    Messages,
    TeacherPrompt,
    TeacherPromptEncoder,
    demonstration_text,
    select_information,
)


@dataclass(frozen=True)
class GradedRollouts:
    """What this process knows of its rollouts, and where they lie among those of all processes.

    Attributes:
        prompts, completions, completion_ids: of this process's n rollouts.
        feedback: text per rollout, empty where there is none.
        references: reference answer per rollout, empty where there is none.
        tools: tool schemas per rollout.
        rewards_BF: every process's rewards, NaN where a function gave none.
        first_row: of this process among all.
    """

    prompts: Sequence[str | Messages]
    completions: Sequence[Completion]
    completion_ids: Sequence[Sequence[int]]
    feedback: Sequence[str]
    references: Sequence[str]
    tools: Sequence[list[Callable | dict] | None]
    rewards_BF: Tensor
    first_row: int


@dataclass(frozen=True)
class RoutedRollouts:
    """The routes of this process's n rollouts.

    Attributes:
        route_B: int64 of `Route` (here B = n).
        teacher_prompts: of the distilled rollouts, None elsewhere.
        is_correct_B, needs_teacher_B: bool.
        num_too_long: rollouts whose teacher prompt could not hold any information.
        num_without_turn: rollouts whose prompt has no user turn, or none that the chat template renders once.
        earlier_ages: optimizer steps since the answer was sampled, of each earlier answer that is shown.
        has_failed_P: whether a whole group failed: something was scored and nothing correct. Of all processes.
        accuracy: share of correct rollouts among the scored ones of all processes; None where nothing was scored.
    """

    route_B: Tensor
    teacher_prompts: Sequence[TeacherPrompt | None]
    is_correct_B: Tensor
    needs_teacher_B: Tensor
    num_too_long: int
    num_without_turn: int
    earlier_ages: Sequence[int]
    has_failed_P: Sequence[bool]
    accuracy: float | None


def correctness_score(
    rewards_BF: Tensor, reward_weights_F: Tensor, names: Sequence[str], correctness_reward: str | None
) -> Tensor:
    """Return the score that is compared with the threshold, (B,), NaN where nothing could score the rollout.

    It is one named function's score, or the weighted sum over the functions that gave one.
    """
    if correctness_reward is not None:
        return rewards_BF[:, list(names).index(correctness_reward)]
    score_B = (rewards_BF * reward_weights_F.to(rewards_BF)).nansum(dim=1)
    return torch.where(rewards_BF.isnan().all(dim=1), torch.nan, score_B)


def route_rollouts(
    group: GradedRollouts,
    score_B: Tensor,
    config: SRPOConfig,
    encoder: TeacherPromptEncoder,
    *,
    num_generations: int,
    step: int,
    share: float = 1.0,
    solved_prompts: SolvedPrompts | None = None,
    gather: Callable[[Tensor], Tensor],
    gather_object: Callable[[list[Any]], list[Any]],
) -> RoutedRollouts:
    """Return the route and, where it is distilled, the teacher prompt of each of this process's rollouts.

    Args:
        group: this process's rollouts.
        score_B: of all processes, from `correctness_score`.
        config: routing, threshold, sources, seed.
        encoder: of teacher prompts.
        num_generations: G.
        step: optimizer steps so far; with the seed it decides which demonstration is chosen.
        share: of the rollouts that want a teacher, how many may have one.
        solved_prompts: for the source "earlier"; takes this batch's correct answers.
        gather, gather_object: over all processes, in their order; every process calls both alike.
    """
    num_rows = len(group.completions)
    local = slice(group.first_row, group.first_row + num_rows)
    correctness = judge_correctness(score_B, config.success_reward_threshold)
    wanted_B = needs_teacher(config.routing, correctness)
    if share < 1.0:
        wanted_B &= sample_fraction(len(wanted_B), share, config.seed, step).to(wanted_B.device)
    siblings = _sibling_texts(
        group, correctness, wanted_B, local, config, num_generations, step, gather, gather_object
    )
    earlier = [SolvedPrompt("", step)] * num_rows
    if solved_prompts is not None:
        keys = [prompt_key(prompt) for prompt in group.prompts]
        earlier = [solved_prompts.recall(key) or nothing for key, nothing in zip(keys, earlier, strict=True)]
        texts = _demonstration_texts(group, correctness, local, config)
        solved = [(keys[row - group.first_row], text) for row, text in texts.items() if text]
        solved_prompts.remember(gather_object(list(dict(solved).items())), step)

    prompts: list[TeacherPrompt | None] = [None] * num_rows
    num_too_long, num_without_turn, earlier_ages = 0, 0, []
    for i, wanted in enumerate(wanted_B[local].tolist()):
        information = select_information(
            config.teacher_context, siblings[i], group.feedback[i], group.references[i], earlier[i].text
        )
        if wanted and information:
            prompts[i] = encoder.encode(group.prompts[i], information, group.tools[i])
            if prompts[i] is None:
                has_turn = encoder.has_place(group.prompts[i], group.tools[i])
                num_too_long, num_without_turn = num_too_long + has_turn, num_without_turn + (not has_turn)
            if prompts[i] is not None and earlier[i].text and information.solution is earlier[i].text:
                earlier_ages.append(step - earlier[i].step)

    local_correctness = Correctness(*(verdict[local] for verdict in correctness))
    has_teacher_B = torch.tensor([prompt is not None for prompt in prompts], device=score_B.device)
    route_B = route_samples(config.routing, local_correctness, has_teacher_B)
    kept = [
        p if route >= Route.DISTILLED else None for p, route in zip(prompts, route_B.tolist(), strict=True)
    ]
    is_scored_PG, is_correct_PG = (verdict.view(-1, num_generations) for verdict in correctness)
    num_scored = int(is_scored_PG.sum())
    return RoutedRollouts(
        route_B,
        kept,
        local_correctness.is_correct_B,
        wanted_B[local],
        num_too_long,
        num_without_turn,
        earlier_ages,
        (is_scored_PG.any(1) & ~is_correct_PG.any(1)).tolist(),
        int(is_correct_PG.sum()) / num_scored if num_scored else None,
    )


def rollout_counts(rollouts: RoutedRollouts) -> dict[str, float | Tensor]:
    """Return this process's counts of one rollout batch, by the names of `metrics.SUMS`."""
    route_B = rollouts.route_B
    prompts = [prompt for prompt in rollouts.teacher_prompts if prompt is not None]
    return {
        "rollout_batches": 1,
        "rollouts": len(route_B),
        "rollouts_policy": route_B == Route.POLICY,
        "rollouts_distilled": route_B == Route.DISTILLED,
        "rollouts_both": route_B == Route.BOTH,
        "rollouts_skipped": route_B == Route.SKIPPED,
        "rollouts_correct": rollouts.is_correct_B,
        "rollouts_needing_teacher": rollouts.needs_teacher_B,
        "teacher_prompts": len(prompts),
        "teacher_prompt_tokens": sum(len(prompt.ids) for prompt in prompts),
        "teacher_prompts_cut": sum(prompt.num_cut > 0 for prompt in prompts),
        "teacher_cut_tokens": sum(prompt.num_cut for prompt in prompts),
        "teacher_prompts_too_long": rollouts.num_too_long,
        "teacher_prompts_without_turn": rollouts.num_without_turn,
        "teacher_prompts_earlier": len(rollouts.earlier_ages),
        "teacher_earlier_age": sum(rollouts.earlier_ages),
    }


def shown_to_teachers(rollouts: RoutedRollouts) -> list[dict[str, Any]]:
    """Return, per rollout of this process, whether it is correct and what its teacher is shown."""
    return [
        {"is_correct": is_correct, **(prompt.information._asdict() if prompt else {})}
        for is_correct, prompt in zip(rollouts.is_correct_B.tolist(), rollouts.teacher_prompts, strict=True)
    ]


def _sibling_texts(
    group: GradedRollouts,
    correctness: Correctness,
    wanted_B: Tensor,
    local: slice,
    config: SRPOConfig,
    num_generations: int,
    step: int,
    gather: Callable[[Tensor], Tensor],
    gather_object: Callable[[list[Any]], list[Any]],
) -> list[str]:
    """Return the demonstration that each local rollout is shown, empty where it has no correct sibling."""
    if not any("sibling" in source for source in config.teacher_context):
        return [""] * len(group.completions)
    texts = _demonstration_texts(group, correctness, local, config)
    keys = [
        demonstration_rank(ids, config.seed, step) if texts.get(group.first_row + i) else INELIGIBLE_RANK
        for i, ids in enumerate(group.completion_ids)
    ]
    key_B = gather(torch.tensor(keys, dtype=torch.int64, device=correctness.is_correct_B.device))
    chosen_B = choose_demonstrations(key_B, num_generations)
    needed = set(chosen_B[wanted_B].tolist())
    offered = gather_object([(row, text) for row, text in texts.items() if row in needed])
    text_of_row = dict(offered)
    return [text_of_row.get(row, "") for row in chosen_B[local].tolist()]


def _demonstration_texts(
    group: GradedRollouts, correctness: Correctness, local: slice, config: SRPOConfig
) -> dict[int, str]:
    """Return each correct local rollout as the text of a demonstration, by its row; empty where nothing is left."""
    keep_thinking = not config.remove_thinking_from_demonstration
    is_correct = correctness.is_correct_B[local].tolist()
    return {
        group.first_row + i: demonstration_text(completion, keep_thinking=keep_thinking)
        for i, completion in enumerate(group.completions)
        if is_correct[i]
    }
