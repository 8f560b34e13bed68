"""Breaks the package in named ways, one at a time, and shows that a named test fails for each.

    python scripts/mutants.py [--only NAME ...] [--jobs 2] [--list]

Each mutant is a few replaced lines in a copy of `src/` and `tests/`; the working tree is never touched. Every test
that a mutant names must pass on the unchanged copy and fail on the mutant's. The exit code is 1 where a mutant
survives, breaks more than it means to (the tests cannot even be collected), or is stale: its old text does not occur
exactly once in its file, so it must be rewritten for the present code.
"""

import argparse
import gc
import importlib
import importlib.util
import json
import os
import runpy
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
TIMEOUT_SECONDS = 300


class Edit(NamedTuple):
    """One replacement; `old` occurs exactly once in `file`, a path below src/srpo_trl."""

    file: str
    old: str
    new: str


class Mutant(NamedTuple):
    """A wrong package; each of `tests`, node ids below tests/, must fail on it.

    A node id without parameters stands for all of the test's cases, one of which must fail.
    """

    name: str
    meaning: str
    edits: tuple[Edit, ...]
    tests: tuple[str, ...]


def mutant(name: str, meaning: str, *edits: tuple[str, str, str], tests: tuple[str, ...]) -> Mutant:
    return Mutant(name, meaning, tuple(Edit(*edit) for edit in edits), tests)


OBJECTIVE = "test_objective.py::test_loss_and_gradient_equal_the_oracles"
SPLIT = "test_split_invariance.py::test_update_does_not_depend_on_the_split[(4, 4, 4)]"
TICKS = "test_teacher.py::test_trainer_ticks_once_per_rollout_batch_after_its_last_step"
GAPS = "test_mutation_gaps.py"

NORMALIZATION = [
    mutant(
        "weights_per_micro_batch",
        "entropy weights have the mean 1 in each micro-batch instead of over the optimizer step",
        (
            "normalizers.py",
            "weights_BT = entropy_weights(batch.teacher_entropy_BT, beta, totals.mean_raw_weight)",
            "local = WindowTotals(*_local_totals(batch, beta).unbind())\n"
            "    weights_BT = entropy_weights(batch.teacher_entropy_BT, beta, local.mean_raw_weight)",
        ),
        tests=(SPLIT,),
    ),
    mutant(
        "weights_not_normalised",
        "weights are exp(-beta H) as they are, without the mean of 1",
        (
            "losses/token_weights.py",
            "return (raw_weights / mean_raw_weight).to(dtype)",
            "return raw_weights.to(dtype)",
        ),
        tests=("test_losses.py::test_entropy_weights_have_the_mean_1[dtype0-1.0]", f"{OBJECTIVE}[srpo]"),
    ),
    mutant(
        "weights_over_policy_tokens",
        "the mean of the weights runs over every routed token instead of the distilled ones",
        (
            "normalizers.py",
            "            distilled_BT.sum(dtype=torch.float64),\n",
            "            batch.routed_BT.sum(dtype=torch.float64),\n",
        ),
        tests=(f"{GAPS}::test_coefficients_by_hand", f"{OBJECTIVE}[srpo]"),
    ),
    mutant(
        "weights_favour_unsure_tokens",
        "the weight's sign: exp(+beta H)",
        ("losses/token_weights.py", "torch.exp(-beta * ", "torch.exp(beta * "),
        tests=(
            "test_losses.py::test_raw_weights_by_hand_in_float64_without_gradient",
            f"{OBJECTIVE}[srpo with sharp weights]",
        ),
    ),
    mutant(
        "beta_ignored",
        "weights are exp(-H) whatever beta is",
        ("losses/token_weights.py", "torch.exp(-beta * ", "torch.exp(-"),
        tests=(
            "test_losses.py::test_raw_weights_by_hand_in_float64_without_gradient",
            f"{OBJECTIVE}[srpo with sharp weights]",
        ),
    ),
    mutant(
        "denominator_of_distillation_alone",
        "the distillation branch is divided by its own tokens instead of all routed ones",
        (
            "normalizers.py",
            "totals.num_routed_tokens.clamp(min=1)",
            "totals.num_distilled_tokens.clamp(min=1)",
        ),
        tests=(f"{GAPS}::test_coefficients_by_hand", f"{OBJECTIVE}[srpo]"),
    ),
    mutant(
        "denominator_of_policy_alone",
        "the policy branch is divided by its own tokens instead of all routed ones",
        (
            "trainer.py",
            "self._totals.num_routed_tokens * rescaling",
            "(self._totals.num_routed_tokens - self._totals.num_distilled_tokens) * rescaling",
        ),
        tests=(f"{OBJECTIVE}[srpo]",),
    ),
    mutant(
        "distillation_denominator_per_micro_batch",
        "the distillation branch is a mean of the micro-batches' means",
        (
            "trainer.py",
            "                self._totals,\n",
            "                self._totals._replace(\n"
            "                    num_routed_tokens=routed.routed_BT.sum().double()\n"
            "                    * self.current_gradient_accumulation_steps\n"
            "                ),\n",
        ),
        tests=(SPLIT,),
    ),
    mutant(
        "policy_denominator_per_micro_batch",
        "the policy branch is a mean of the micro-batches' means",
        (
            "trainer.py",
            "self._totals.num_routed_tokens * rescaling",
            "routed.routed_BT.sum().double() * self.current_gradient_accumulation_steps * rescaling",
        ),
        tests=(SPLIT,),
    ),
    mutant(
        "trls_rescaling_left_in",
        "TRL's own division by accumulation over generation steps is not undone",
        (
            "trainer.py",
            "rescaling = self._steps_per_generation / self.current_gradient_accumulation_steps",
            "rescaling = 1.0",
        ),
        tests=("test_split_invariance.py::test_update_does_not_depend_on_the_split[(4, 4, 1)]",),
    ),
    mutant(
        "skipped_rows_in_the_denominator",
        "rollouts that nothing trains still count in the joint denominator",
        (
            "batch.py",
            "return self.scored_BT & (self.route_B != Route.SKIP).unsqueeze(1)",
            "return self.scored_BT",
        ),
        tests=(
            f"{OBJECTIVE}[srpo]",
            "test_trainer.py::test_unscorable_rollouts_are_trained_by_nothing",
        ),
    ),
    mutant(
        "totals_of_one_process",
        "each process divides by its own totals: they are not summed over processes",
        ("trainer.py", 'return self.accelerator.reduce(tensor, reduction="sum")', "return tensor"),
        tests=("test_processes.py::test_two_processes_make_the_update_of_one[one sided-whole]",),
    ),
    mutant(
        "averaging_over_processes_left_in",
        "the averaging of gradients over processes is not undone in the distillation branch",
        (
            "normalizers.py",
            "totals.num_routed_tokens.clamp(min=1) / num_processes",
            "totals.num_routed_tokens.clamp(min=1)",
        ),
        tests=(f"{GAPS}::test_coefficients_by_hand",),
    ),
    mutant(
        "samplers_ratio_ignored",
        "vLLM's importance ratio is left out of the distillation branch",
        ("normalizers.py", "if batch.sampler_ratio_BT is not None:", "if False:"),
        tests=(f"{GAPS}::test_coefficients_carry_the_samplers_importance_ratio",),
    ),
    mutant(
        "mix_weights_swapped",
        "advantage mix: lambda weighs distillation and 1 - lambda the policy branch",
        (
            "trainer.py",
            "self._policy_weight = args.advantage_mix_lambda if is_mix else 1.0",
            "self._policy_weight = 1.0 - args.advantage_mix_lambda if is_mix else 1.0",
        ),
        (
            "trainer.py",
            "self._distillation_weight = 1.0 - args.advantage_mix_lambda if is_mix else 1.0",
            "self._distillation_weight = args.advantage_mix_lambda if is_mix else 1.0",
        ),
        tests=(f"{OBJECTIVE}[advantage mix]",),
    ),
]

ROUTING = [
    mutant(
        "threshold_exclusive",
        "a reward that equals the threshold is no success: > instead of >=",
        ("routing.py", "score_B >= threshold", "score_B > threshold"),
        tests=("test_routing.py::test_threshold_is_inclusive_and_nan_and_infinity_are_no_scores",),
    ),
    mutant(
        "correct_rollouts_distilled",
        "srpo distils correct rollouts, too",
        (
            "routing.py",
            "torch.where(~is_correct & has_teacher, Route.DISTILL, Route.POLICY)",
            "torch.where(has_teacher, Route.DISTILL, Route.POLICY)",
        ),
        tests=("test_routing.py::test_routes_equal_the_oracles_table[srpo]", f"{OBJECTIVE}[srpo]"),
    ),
    mutant(
        "sdpo_falls_back_on_policy",
        "sdpo trains rollouts without a teacher by GRPO instead of not at all",
        (
            "routing.py",
            "return torch.where(has_teacher, Route.DISTILL, Route.SKIP)",
            "return torch.where(has_teacher, Route.DISTILL, Route.POLICY)",
        ),
        tests=("test_routing.py::test_routes_equal_the_oracles_table[sdpo]", f"{OBJECTIVE}[sdpo]"),
    ),
    mutant(
        "nan_reward_counts_as_failed",
        "a rollout that nothing could score has the reward 0",
        (
            "rollouts.py",
            "return torch.where(rewards_BF.isnan().all(dim=1), torch.nan, score_B)",
            "return score_B",
        ),
        tests=(
            "test_routing.py::test_deciding_score_is_the_weighted_sum_or_one_function",
            "test_trainer.py::test_unscorable_rollouts_are_trained_by_nothing",
        ),
    ),
    mutant(
        "unscored_rollouts_routed",
        "routing forgets that a rollout has no score",
        (
            "routing.py",
            "return torch.where(correctness.is_scored_B, routes_B, Route.SKIP)",
            "return routes_B",
        ),
        tests=("test_routing.py::test_routes_equal_the_oracles_table[srpo]",),
    ),
    mutant(
        "infinite_rewards_used",
        "an infinite reward enters the group's advantages",
        (
            "trainer.py",
            "rewards_BF = torch.where(rewards_BF.isfinite(), rewards_BF, torch.nan)",
            "rewards_BF = rewards_BF.clone()",
        ),
        tests=("test_trainer.py::test_unscorable_rollouts_are_trained_by_nothing",),
    ),
    mutant(
        "named_reward_ignored",
        "correctness is the weighted sum although one reward function was named",
        ("rollouts.py", "if correctness_reward is not None:", "if False:"),
        tests=(
            "test_routing.py::test_deciding_score_is_the_weighted_sum_or_one_function",
            "test_trainer.py::test_correctness_by_one_named_reward",
        ),
    ),
    mutant(
        "own_completion_as_demonstration",
        "the group's demonstration is shown to the rollout that wrote it",
        ("routing.py", "is_best_PG = own_PG == best_P1", "is_best_PG = own_PG < 0"),
        tests=(
            "test_routing.py::test_one_demonstration_serves_the_group_and_never_itself",
            "test_trainer.py::test_no_rollout_is_shown_itself_and_one_demonstration_serves_the_group",
        ),
    ),
    mutant(
        "demonstration_by_row_order",
        "the first correct row is the demonstration, so the choice depends on the order of rows",
        (
            "routing.py",
            "    digest.update(torch.tensor(completion_ids, dtype=torch.int64).numpy().tobytes())\n",
            "",
        ),
        tests=(
            "test_split_invariance.py::test_update_does_not_depend_on_the_order_of_a_group",
            "test_routing.py::test_every_correct_sibling_may_serve",
        ),
    ),
    mutant(
        "failed_rollout_as_demonstration",
        "any rollout may be the demonstration, failed ones, too",
        ("rollouts.py", "        if is_correct[i]\n", ""),
        tests=("test_trainer.py::test_no_rollout_is_shown_itself_and_one_demonstration_serves_the_group",),
    ),
    mutant(
        "groups_of_one_process",
        "every process takes its rollouts for the first of all",
        ("trainer.py", "first_row=self.accelerator.process_index * num_rows", "first_row=0"),
        tests=("test_processes.py::test_two_processes_make_the_update_of_one[straddling-whole]",),
    ),
]

BRANCHES = [
    mutant(
        "distilled_rows_take_the_policy_loss",
        "distilled rollouts are trained by the policy branch, too",
        ("batch.py", '"tool_mask": tool_mask * policy_B1.to(tool_mask.dtype),', '"tool_mask": tool_mask,'),
        ("student_pass.py", "labels = labels.masked_fill(~self._is_policy_B.unsqueeze(1), -100)", "pass"),
        tests=(f"{OBJECTIVE}[srpo]",),
    ),
    mutant(
        "tool_tokens_scored",
        "tokens that a tool wrote are trained on",
        (
            "batch.py",
            'return (mask * batch["tool_mask"] if "tool_mask" in batch else mask).bool()',
            "return mask.bool()",
        ),
        tests=(f"{GAPS}::test_tool_tokens_are_no_part_of_omega",),
    ),
    mutant(
        "old_logps_ignored",
        "the distillation branch has no importance ratio off-policy",
        (
            "trainer.py",
            "old_logps_N=None if routed.old_logps_BT is None else routed.old_logps_BT[distilled_BT]",
            "old_logps_N=None",
        ),
        tests=("test_objective.py::test_second_iteration_uses_the_old_policy_and_clips",),
    ),
    mutant(
        "student_states_off_by_one",
        "the student's hidden states are those after each token, not those that predict it",
        ("student_pass.py", "captured[0][:, -num_completion - 1 : -1]", "captured[0][:, -num_completion:]"),
        tests=("test_passes.py::test_one_backbone_pass_serves_both_branches", f"{OBJECTIVE}[srpo]"),
    ),
    mutant(
        "teacher_states_off_by_one",
        "the teacher's hidden states are those one position too early",
        (
            "teacher_pass.py",
            "starts = [len(row.prompt_ids) - 1 for row in rows]",
            "starts = [len(row.prompt_ids) - 2 for row in rows]",
        ),
        tests=("test_passes.py::test_states_predict_the_completion_tokens[1000-padded]",),
    ),
    mutant(
        "shared_prompt_positions_ignore_padding",
        "prompts that share a pass have the positions of their padding, too",
        (
            "teacher_pass.py",
            "position_ids_UL = (mask_UL.cumsum(1) - 1).clamp(min=0)",
            "position_ids_UL = torch.arange(mask_UL.shape[1], device=device).expand_as(mask_UL)",
        ),
        tests=("test_passes.py::test_states_predict_the_completion_tokens[1000-shared]",),
    ),
]

MATHEMATICS = [
    mutant(
        "kls_swapped",
        "alpha 0 is the reverse KL and 1 the forward KL",
        ("losses/divergence.py", "{0.0: forward_kl, 1.0: reverse_kl}", "{1.0: forward_kl, 0.0: reverse_kl}"),
        tests=(
            "test_losses.py::test_divergence_on_topk_is_the_oracles",
            "test_losses.py::test_divergence_on_topk_is_trls",
        ),
    ),
    mutant(
        "kls_swapped_in_closed_form",
        "the same in the chunked operator",
        (
            "ops/token_terms.py",
            "if alpha == 0.0:\n        teacher_probs",
            "if alpha == 1.0:\n        teacher_probs",
        ),
        ("ops/token_terms.py", "if alpha == 1.0:\n        grad_RK", "if alpha == 0.0:\n        grad_RK"),
        tests=(
            "test_ops.py::test_chunked_is_the_reference[5-33-7]",
            f"{OBJECTIVE}[forward KL]",
            f"{OBJECTIVE}[reverse KL]",
        ),
    ),
    mutant(
        "mixture_weights_swapped",
        "Jensen-Shannon's mixture is alpha p + (1 - alpha) q",
        (
            "losses/divergence.py",
            "student_logps_NK + math.log1p(-alpha)",
            "student_logps_NK + math.log(alpha)",
        ),
        (
            "losses/divergence.py",
            "teacher_logps_NK.detach() + math.log(alpha)",
            "teacher_logps_NK.detach() + math.log1p(-alpha)",
        ),
        tests=("test_losses.py::test_divergences_of_two_coins_by_hand",),
    ),
    mutant(
        "jensen_shannon_weights_swapped",
        "Jensen-Shannon weighs the teacher's term by 1 - alpha",
        (
            "losses/divergence.py",
            "return alpha * teacher_term_N + (1.0 - alpha) * ",
            "return (1.0 - alpha) * teacher_term_N + alpha * ",
        ),
        tests=("test_losses.py::test_divergences_of_two_coins_by_hand",),
    ),
    mutant(
        "teachers_topk",
        "the support is the teacher's top K instead of the student's",
        (
            "losses/divergence.py",
            "indices_NK = student_logps_NV.detach().topk",
            "indices_NK = teacher_logps_NV.detach().topk",
        ),
        tests=("test_losses.py::test_support_is_the_students_not_the_teachers",),
    ),
    mutant(
        "teachers_topk_in_closed_form",
        "the same in the chunked operator",
        (
            "ops/token_terms.py",
            "student_top_RK, indices_RK = student_logps_RV.topk(topk, dim=-1)",
            "indices_RK = teacher_logits_RV.topk(topk, dim=-1).indices\n"
            "        student_top_RK = student_logps_RV.gather(-1, indices_RK)",
        ),
        tests=("test_ops.py::test_chunked_is_the_reference[5-33-7]", f"{OBJECTIVE}[srpo]"),
    ),
    mutant(
        "tail_dropped",
        "the top K is renormalised although the tail was asked for",
        (
            "ops/token_terms.py",
            "_topk_and_tail if spec.add_tail else _topk_renormalized",
            "_topk_renormalized",
        ),
        tests=("test_ops.py::test_chunked_is_the_reference[5-33-7]", f"{OBJECTIVE}[srpo]"),
    ),
    mutant(
        "tails_gradient_dropped",
        "no gradient reaches the tokens outside the top K",
        (
            "ops/token_terms.py",
            "return divergence_R, grad_top_RK, grad_tail_R / student_logps_RK[:, topk].exp() - total_R",
            "return divergence_R, grad_top_RK, torch.zeros_like(divergence_R)",
        ),
        tests=("test_ops.py::test_gradient_is_the_numerical_one[3-True-0.5-chunked]", f"{OBJECTIVE}[srpo]"),
    ),
    mutant(
        "entropy_of_the_topk",
        "the teacher's entropy is that of its top 5 tokens, not of the full vocabulary",
        (
            "ops/chunked.py",
            "entropy(torch.log_softmax(logits_CV[local], dim=-1))",
            "entropy(torch.log_softmax(logits_CV[local].topk(5, dim=-1).values, dim=-1))",
        ),
        tests=(
            "test_ops.py::test_teacher_entropy_is_the_oracles",
            "test_objective.py::test_route_metrics_equal_the_oracles",
        ),
    ),
    mutant(
        "teachers_temperature_ignored",
        "the divergence divides the student's logits by the temperature, the teacher's not",
        (
            "ops/chunked.py",
            "logits_CV, side_hidden_ND[tokens], side_head, problem.spec.temperature, way",
            "logits_CV, side_hidden_ND[tokens], side_head, problem.spec.temperature if side_head is head else 1.0, way",
        ),
        tests=(f"{OBJECTIVE}[temperature]",),
    ),
    mutant(
        "entropys_temperature_ignored",
        "the entropy of the weights is that at temperature 1",
        (
            "teacher_pass.py",
            "entropy_N = teacher_entropy(torch.cat(kept), pass_head, temperature)",
            "entropy_N = teacher_entropy(torch.cat(kept), pass_head, 1.0)",
        ),
        tests=(f"{OBJECTIVE}[temperature]",),
    ),
    mutant(
        "importance_ratio_uncapped",
        "the importance clip is off",
        ("losses/importance.py", ".exp().clamp(max=clip)", ".exp()"),
        tests=(
            "test_losses.py::test_importance_ratio_is_the_oracles[2.0]",
            "test_losses.py::test_importance_ratio_is_trls_bit_for_bit",
        ),
    ),
    mutant(
        "importance_ratio_inverted",
        "the importance ratio is pi_old / pi_theta",
        (
            "losses/importance.py",
            "log_ratio = student_logps.detach().to(dtype) - old_logps.detach().to(dtype)",
            "log_ratio = old_logps.detach().to(dtype) - student_logps.detach().to(dtype)",
        ),
        tests=(
            "test_losses.py::test_importance_ratio_is_the_oracles[2.0]",
            "test_objective.py::test_second_iteration_uses_the_old_policy_and_clips",
        ),
    ),
    mutant(
        "importance_ratio_with_gradient",
        "a gradient flows through the importance ratio",
        ("losses/importance.py", "student_logps.detach().to(dtype)", "student_logps.to(dtype)"),
        tests=("test_losses.py::test_importance_ratio_is_detached_and_float32[2.0]",),
    ),
    mutant(
        "teacher_not_detached",
        "a gradient flows to the teacher through the divergence",
        (
            "losses/divergence.py",
            "return _relative_entropy(student_logps_NK, teacher_logps_NK.detach())",
            "return _relative_entropy(student_logps_NK, teacher_logps_NK)",
        ),
        tests=("test_losses.py::test_no_gradient_flows_to_the_teacher[reverse_kl]",),
    ),
]

TEACHER = [
    mutant(
        "ema_direction_swapped",
        "teacher <- rate * teacher + (1 - rate) * student",
        (
            "teacher.py",
            "value.lerp_(student, self.update_rate)",
            "value.lerp_(student, 1 - self.update_rate)",
        ),
        tests=(
            "test_teacher.py::test_ema_direction_is_toward_the_student_at_the_rate_given",
            "test_teacher.py::test_trainer_teacher_moves_by_the_ema_law_of_its_students",
        ),
    ),
    mutant(
        "ema_in_the_models_dtype",
        "the average of a bfloat16 model is kept in bfloat16 and stands still",
        (
            "teacher.py",
            'torch.promote_types(parameter.dtype, torch.float32) if self.kind == "ema" else parameter.dtype',
            "parameter.dtype",
        ),
        tests=("test_teacher.py::test_ema_follows_one_minus_point_95_to_the_n[dtype1]",),
    ),
    mutant(
        "teacher_aliases_the_student",
        "the teacher's values are the student's own memory: it is always the live student",
        (
            "teacher.py",
            "part_of(parameter).to(self._store_dtype(parameter), copy=True)",
            "part_of(parameter).to(self._store_dtype(parameter))",
        ),
        tests=("test_teacher.py::test_a_moved_student_does_not_move_the_teacher",),
    ),
    mutant(
        "live_teacher_scores",
        "rollouts are scored with the live student's backbone instead of the EMA's",
        (
            "teacher_pass.py",
            "with _in_evaluation(student), teacher.installed(), autocast:",
            "with _in_evaluation(student), autocast:",
        ),
        tests=(f"{GAPS}::test_later_rollouts_are_scored_with_the_teachers_weights_not_the_students[ema]",),
    ),
    mutant(
        "students_head_for_the_teacher",
        "the teacher's hidden states are projected with the student's head, its gradient attached",
        ("teacher_pass.py", "weight_VD = teacher.value_of(head.weight_VD)", "weight_VD = head.weight_VD"),
        tests=(f"{GAPS}::test_later_rollouts_are_scored_with_the_teachers_weights_not_the_students[ema]",),
    ),
    mutant(
        "live_head_follows_the_student",
        "under the live teacher, old hidden states are projected with the present head",
        ("teacher_pass.py", '    if teacher.kind == "live":', "    if False:"),
        tests=("test_teacher.py::test_live_teacher_keeps_the_head_of_its_rollouts",),
    ),
    mutant(
        "student_not_restored",
        "after the teacher's pass the student keeps the teacher's values",
        ("teacher.py", "self._exchange(self._parts(), set_aside, back=True)", "pass"),
        tests=("test_teacher.py::test_the_student_is_restored_to_the_bit",),
    ),
    mutant(
        "teacher_with_dropout",
        "the teacher scores in training mode",
        ("teacher_pass.py", "    model.eval()\n", ""),
        tests=(f"{GAPS}::test_the_teacher_has_no_dropout_and_the_student_keeps_its_own",),
    ),
    mutant(
        "teacher_ticks_every_optimizer_step",
        "the teacher moves at every optimizer step of a rollout batch",
        ("trainer.py", "if not self._rollout_batch_ends:\n", "if False:\n"),
        tests=(f"{TICKS}[iterations]", f"{TICKS}[steps of a batch]"),
    ),
    mutant(
        "teacher_ticks_every_micro_step",
        "the teacher moves at every micro-batch of an optimizer step",
        (
            "trainer.py",
            '        """Let the teacher move, before the step is logged or saved."""\n'
            "        self._trainer._tick_teacher()\n",
            '        """Let the teacher move, before the step is logged or saved."""\n'
            "        self._trainer._tick_teacher()\n\n    on_substep_end = on_step_end\n",
        ),
        tests=(f"{TICKS}[batches of a step]",),
    ),
    mutant(
        "teacher_ticks_twice",
        "the teacher moves twice after a rollout batch",
        (
            "trainer.py",
            "        distance = self._teacher.tick()\n",
            "        self._teacher.tick()\n        distance = self._teacher.tick()\n",
        ),
        tests=(f"{TICKS}[every step]",),
    ),
    mutant(
        "teacher_ticks_before_the_step",
        "the teacher moves toward the student of before the optimizer step",
        (
            "trainer.py",
            "def on_step_end(self, args: Any",
            "def on_pre_optimizer_step(self, args: Any",
        ),
        tests=(f"{GAPS}::test_the_teacher_moves_toward_the_student_of_after_the_step",),
    ),
]

CONTEXT = [
    mutant(
        "feedback_ignored",
        "feedback of reward functions never reaches the teacher",
        ("trainer.py", 'feedback=[text or "" for text in feedback]', 'feedback=["" for _ in feedback]'),
        tests=("test_trainer.py::test_feedback_reaches_the_teacher_where_no_sibling_is_right",),
    ),
    mutant(
        "feedback_of_the_last_function_alone",
        "feedback of several reward functions is not joined",
        ("trainer.py", 'if self._is_routed and column == "feedback" and earlier:', "if False:"),
        tests=("test_trainer.py::test_feedback_of_several_functions_is_joined_and_a_wrong_number_refused",),
    ),
    mutant(
        "source_order_ignored",
        "the first source that the package knows is shown, not the first that the option names",
        (
            "teacher_context.py",
            "next((candidates[source] for source in sources if candidates[source])",
            "next((candidates[source] for source in candidates if source in sources and candidates[source])",
        ),
        tests=("test_teacher_context.py::test_sources_are_tried_in_their_order",),
    ),
    mutant(
        "special_tokens_in_untrusted_text",
        "markers in a demonstration become special tokens",
        (
            "teacher_context.py",
            "self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)",
            "self.tokenizer(text, add_special_tokens=False)",
        ),
        tests=("test_teacher_context.py::test_untrusted_text_is_text",),
    ),
    mutant(
        "special_tokens_in_text_prompts",
        "the same for prompts that are no conversation",
        (
            "teacher_context.py",
            "self.tokenizer(text, split_special_tokens=True)",
            "self.tokenizer(text)",
        ),
        tests=(f"{GAPS}::test_markers_in_the_demonstration_of_a_text_prompt_stay_text",),
    ),
    mutant(
        "demonstration_keeps_its_thinking",
        "<think> blocks stay in demonstrations",
        (
            "teacher_context.py",
            "return (text if keep_thinking else remove_thinking(text)).strip()",
            "return text.strip()",
        ),
        tests=("test_teacher_context.py::test_thinking_is_removed_from_demonstrations",),
    ),
    mutant(
        "thinking_option_ignored",
        "remove_thinking_from_demonstration has no effect",
        (
            "rollouts.py",
            "keep_thinking = not config.remove_thinking_from_demonstration",
            "keep_thinking = False",
        ),
        tests=(f"{GAPS}::test_the_option_decides_whether_demonstrations_keep_their_thinking[False]",),
    ),
    mutant(
        "demonstration_loses_its_end",
        "a demonstration that is too long loses its result instead of its start",
        (
            "teacher_context.py",
            "kept_solution = solution_ids[from_solution:]",
            "kept_solution = solution_ids[: len(solution_ids) - from_solution]",
        ),
        tests=("test_teacher_context.py::test_long_demonstration_loses_its_start_and_nothing_else",),
    ),
    mutant(
        "system_message_dropped",
        "the teacher does not read what comes before the last user turn",
        ("teacher_context.py", "[*messages[:position], _with_text(", "[_with_text("),
        tests=(
            "test_teacher_context.py::test_chat_prompt_keeps_the_system_message_and_ends_with_the_assistants_header",
        ),
    ),
    mutant(
        "chat_template_arguments_dropped",
        "the teacher's chat template gets no arguments (thinking stays on)",
        ("teacher_context.py", "            **self.chat_template_kwargs,\n", ""),
        tests=("test_teacher_context.py::test_chat_template_arguments_reach_the_template",),
    ),
]

CHECKPOINTS = [
    mutant(
        "resume_without_rollouts",
        "a run resumed inside a rollout batch samples a new one",
        ("trainer.py", "self._buffered_inputs = rollouts.batches", "self._buffered_inputs = None"),
        tests=("test_resume.py::test_resumed_run_equals_uninterrupted_run[inside a rollout batch-full]",),
    ),
    mutant(
        "resume_without_teacher",
        "a resumed run starts with a new teacher",
        ("trainer.py", "        self._teacher.load(folder)\n", ""),
        tests=("test_resume.py::test_resumed_run_equals_uninterrupted_run[one step a batch-full]",),
    ),
    mutant(
        "resume_without_counters",
        "a resumed run counts its micro-batches from 0",
        (
            "trainer.py",
            "self._step, self._buffered_inputs = state.micro_step, None",
            "self._step, self._buffered_inputs = 0, None",
        ),
        tests=("test_resume.py::test_resumed_run_equals_uninterrupted_run[inside a rollout batch-full]",),
    ),
    mutant(
        "resume_without_sampler_epoch",
        "a resumed run meets the first epoch's order of prompts",
        ("sampler.py", "        if self.shuffle:\n", "        if False:\n"),
        tests=("test_resume.py::test_resumed_run_equals_uninterrupted_run[one step a batch-full]",),
    ),
    mutant(
        "resume_on_processes_without_epoch",
        "on several processes a resumed run meets the first epoch's order of prompts",
        (
            "resumable.py",
            "        if self._trainer._train_sampler is not None:",
            "        if self._trainer.accelerator.num_processes == 1:",
        ),
        tests=("test_processes.py::test_resume_on_two_processes[epochs]",),
    ),
    mutant(
        "every_epoch_in_the_same_order",
        "each epoch, resumed or not, has the first one's order of prompts",
        ("sampler.py", "for _ in range(epoch):", "for _ in range(0):"),
        tests=(f"{GAPS}::test_an_epoch_that_is_set_has_the_order_of_trls_sampler",),
    ),
    mutant(
        "checkpoint_published_before_the_teacher",
        "a checkpoint takes its final name before the teacher is saved in it",
        (
            "resumable.py",
            "        self._save_run_state(staged)\n"
            "        self.accelerator.wait_for_everyone()\n"
            "        if self.args.should_save:\n"
            "            self._publish(run_dir, staged)\n",
            "        if self.args.should_save:\n"
            "            self._publish(run_dir, staged)\n"
            "        self._save_run_state(Path(run_dir) / name)\n",
        ),
        tests=("test_resume.py::test_interrupted_save_is_never_chosen_and_costs_nothing[save_state]",),
    ),
]

MUTANTS = [*NORMALIZATION, *ROUTING, *BRANCHES, *MATHEMATICS, *TEACHER, *CONTEXT, *CHECKPOINTS]


# ------------------------------------------------------------------ running them

# A pytest plugin of the copies: refuses to test anything but the copy, and writes down what failed and how.
PLUGIN = """
import json
from pathlib import Path

import pytest
import srpo_trl

COPY = Path(__file__).resolve().parent
failures = {}


def pytest_configure(config):
    found = Path(srpo_trl.__file__).resolve()
    if not found.is_relative_to(COPY):
        raise pytest.UsageError(f"the tests import {found}, not the copy in {COPY}")


def pytest_runtest_logreport(report):
    if report.failed:
        crash = getattr(report.longrepr, "reprcrash", None)
        failures[report.nodeid] = (crash.message.splitlines() or [""])[0] if crash else report.when


def pytest_sessionfinish(session, exitstatus):
    (COPY / "failures.json").write_text(json.dumps(failures))
"""


class StaleMutantError(Exception):
    """The mutant's old text does not occur exactly once."""


class Job(NamedTuple):
    """Tests to run on one copy."""

    name: str
    edits: tuple[Edit, ...]
    tests: tuple[str, ...]


class Result(NamedTuple):
    """What pytest said of a job: its exit code (or why there is none), failures by node id, output, seconds."""

    code: int | str
    failures: dict[str, str]
    output: str
    seconds: float


def make_copy(folder: Path, edits: tuple[Edit, ...] = ()) -> None:
    """Copy the package and its tests to `folder`, with the edits applied.

    Raises:
        StaleMutantError: an old text does not occur exactly once.
    """
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("src", "tests"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=ignore)
    shutil.copy(REPOSITORY / "pyproject.toml", folder)
    # Tests that start processes put nothing but their own folder on the path: the copy must be found there, too.
    (folder / "tests" / "srpo_trl").symlink_to(folder / "src" / "srpo_trl", target_is_directory=True)
    (folder / "mutant_plugin.py").write_text(PLUGIN, encoding="utf-8")
    for file, old, new in edits:
        path = folder / "src" / "srpo_trl" / file
        text = path.read_text(encoding="utf-8")
        if text.count(old) != 1:
            raise StaleMutantError(f"{file} has {text.count(old)} occurrences of {old!r}")
        path.write_text(text.replace(old, new), encoding="utf-8")


def import_once() -> None:
    """Import what all tests need, but nothing of this package: forked from here, a job starts in no time."""
    runpy.run_path(str(REPOSITORY / "tests" / "conftest.py"))  # before torch: offline, one thread
    for module in (
        "pandas",
        "peft",
        "hypothesis",
        "trl.trainer.grpo_trainer",
        "trl.experimental.sdpo.loss_utils",
    ):
        importlib.import_module(module)
    importlib.import_module("transformers.models.qwen3.modeling_qwen3")
    if importlib.util.find_spec("deepspeed"):  # accelerate imports it wherever it is installed
        importlib.import_module("deepspeed")
    assert "srpo_trl" not in sys.modules
    gc.collect()
    gc.freeze()


def fork(job: Job, folder: Path) -> int:
    """Run the job's tests on the copy in a child process; return its id."""
    child = os.fork()
    if child:
        return child
    output = os.open(folder / "output.txt", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.setsid()  # a job that hangs is ended with the processes that it started
    os.chdir(folder)
    sys.path[:0] = [str(folder / "src"), str(folder)]
    sys.dont_write_bytecode = True
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path[:2])
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    code = 3  # pytest's own for an internal error
    try:
        options = [
            "-q",
            "--tb=short",
            "-p",
            "mutant_plugin",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:unraisableexception",
        ]
        code = int(pytest.main([*options, *(f"tests/{test}" for test in job.tests)]))
    finally:
        sys.stdout.flush()
        os._exit(code)


def run(jobs: Sequence[Job], num_parallel: int) -> Iterator[tuple[Job, Result]]:
    """Run each job on a copy of its own, and yield the results as they come."""
    waiting, running = list(jobs), {}
    with tempfile.TemporaryDirectory(prefix="mutants-") as root:
        while waiting or running:
            while waiting and len(running) < num_parallel:
                job = waiting.pop(0)
                folder = Path(root) / job.name
                folder.mkdir()
                try:
                    make_copy(folder, job.edits)
                except StaleMutantError as error:
                    yield job, Result("STALE", {}, str(error), 0.0)
                    continue
                running[fork(job, folder)] = job, folder, time.monotonic()
            time.sleep(0.1)
            for child, (job, folder, start) in list(running.items()):
                ended, status = os.waitpid(child, os.WNOHANG)
                seconds = time.monotonic() - start
                if not ended and seconds < TIMEOUT_SECONDS:
                    continue
                if not ended:
                    os.killpg(child, signal.SIGKILL)
                    os.waitpid(child, 0)
                del running[child]
                written = folder / "failures.json"
                failures = json.loads(written.read_text(encoding="utf-8")) if written.is_file() else {}
                output = (folder / "output.txt").read_text(encoding="utf-8", errors="replace")
                code = os.waitstatus_to_exitcode(status) if ended else "HANGS"
                shutil.rmtree(folder)
                yield job, Result(code, failures, output, seconds)


def failure_of(test: str, failures: dict[str, str]) -> str | None:
    """Return the first line of a test's failure, of any of its cases where no parameters are named."""
    node = f"tests/{test}"
    return next(
        (text for name, text in failures.items() if name == node or name.startswith(f"{node}[")), None
    )


def judge(job: Job, result: Result) -> tuple[str, list[str]]:
    """Return the verdict on a mutant, "killed" or another, and lines that explain it."""
    if isinstance(result.code, str):
        return result.code, result.output.splitlines()[-5:]
    if result.code not in (0, 1):
        return "BROKEN", result.output.splitlines()[-20:]
    passed = [test for test in job.tests if failure_of(test, result.failures) is None]
    if passed:
        return "SURVIVED", [f"passes all the same: {test}" for test in passed]
    return "killed", [f"{test}: {failure_of(test, result.failures)}" for test in job.tests]


def check_unmutated(tests: Sequence[str], num_parallel: int) -> bool:
    """Run all named tests once on unchanged copies, one for each file; return whether every one passes."""
    by_file: dict[str, list[str]] = {}
    for test in tests:
        by_file.setdefault(test.split("::")[0], []).append(test)
    jobs = [Job(f"unchanged-{file}", (), tuple(those)) for file, those in by_file.items()]
    all_pass = True
    for _job, result in run(jobs, num_parallel):
        if result.code != 0:
            print(result.output)
            all_pass = False
    return all_pass


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="run these mutants alone")
    parser.add_argument("--jobs", type=int, default=2, help="mutants at a time (default 2)")
    parser.add_argument("--list", action="store_true", help="print the mutants and stop")
    parser.add_argument("--verbose", action="store_true", help="show how each test failed")
    arguments = parser.parse_args()
    names = [m.name for m in MUTANTS]
    assert len(set(names)) == len(names)
    unknown = sorted(set(arguments.only or ()) - set(names))
    if unknown:
        parser.error(f"no mutants named {', '.join(unknown)}; --list shows all")
    return arguments


def main() -> int:
    arguments = parse_arguments()
    mutants = [m for m in MUTANTS if not arguments.only or m.name in arguments.only]
    if arguments.list:
        for m in mutants:
            print(f"{m.name}: {m.meaning}", *m.tests, sep="\n    ")
        return 0
    start = time.monotonic()
    tests = sorted({test for m in mutants for test in m.tests})
    print(f"{len(mutants)} mutants; first their {len(tests)} tests on the unchanged code", flush=True)
    import_once()
    if not check_unmutated(tests, arguments.jobs):
        print("The tests above must pass before they can tell a mutant.")
        return 1
    print(f"all pass ({time.monotonic() - start:.0f} s)", flush=True)

    by_name = {m.name: m for m in mutants}
    verdicts: dict[str, str] = {}
    for job, result in run([Job(m.name, m.edits, m.tests) for m in mutants], arguments.jobs):
        verdict, details = judge(job, result)
        verdicts[job.name] = verdict
        progress = f"[{len(verdicts):{len(str(len(mutants)))}}/{len(mutants)}]"
        meaning = by_name[job.name].meaning
        print(f"{progress} {verdict:8} {job.name} ({result.seconds:.0f} s): {meaning}", flush=True)
        if verdict != "killed" or arguments.verbose:
            print(*(f"      {line}" for line in details), sep="\n", flush=True)
    gc.unfreeze()
    alive = [name for name, verdict in verdicts.items() if verdict != "killed"]
    print(f"{len(mutants) - len(alive)} of {len(mutants)} mutants killed in {time.monotonic() - start:.0f} s")
    if alive:
        print("not killed:", ", ".join(alive))
    return 1 if alive else 0


if __name__ == "__main__":
    sys.exit(main())
