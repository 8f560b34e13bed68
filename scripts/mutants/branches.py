"""Mutants of the two branches of the loss."""

from mutant import mutant

OBJECTIVE = "trainer/test_objective.py::test_loss_and_gradient_equal_the_oracles"
GAPS = "trainer/test_mutation_gaps.py"

MUTANTS = [
    mutant(
        "distilled_rows_take_the_policy_loss",
        "distilled rollouts are trained by the policy branch, too",
        (
            "rollout/batch.py",
            '"tool_mask": tool_mask * policy_B1.to(tool_mask.dtype),',
            '"tool_mask": tool_mask,',
        ),
        ("loss/student.py", "labels = labels.masked_fill(~self._is_policy_B.unsqueeze(1), -100)", "pass"),
        tests=(f"{OBJECTIVE}[srpo]",),
    ),
    mutant(
        "tool_tokens_scored",
        "tokens that a tool wrote are trained on",
        (
            "rollout/batch.py",
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
        tests=("trainer/test_objective.py::test_second_iteration_uses_the_old_policy_and_clips",),
    ),
    mutant(
        "student_states_off_by_one",
        "the student's hidden states are those after each token, not those that predict it",
        ("loss/student.py", "captured[0][:, -num_completion - 1 : -1]", "captured[0][:, -num_completion:]"),
        tests=("teacher/test_passes.py::test_one_backbone_pass_serves_both_branches", f"{OBJECTIVE}[srpo]"),
    ),
    mutant(
        "teacher_states_off_by_one",
        "the teacher's hidden states are those one position too early",
        (
            "teacher/scoring.py",
            "starts = [len(row.prompt_ids) - 1 for row in rows]",
            "starts = [len(row.prompt_ids) - 2 for row in rows]",
        ),
        tests=("teacher/test_passes.py::test_states_predict_the_completion_tokens[1000-padded]",),
    ),
    mutant(
        "shared_prompt_positions_ignore_padding",
        "prompts that share a pass have the positions of their padding, too",
        (
            "teacher/scoring.py",
            "position_ids_UL = (mask_UL.cumsum(1) - 1).clamp(min=0)",
            "position_ids_UL = torch.arange(mask_UL.shape[1], device=device).expand_as(mask_UL)",
        ),
        tests=("teacher/test_passes.py::test_states_predict_the_completion_tokens[1000-shared]",),
    ),
]
