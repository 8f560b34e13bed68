"""Mutants of the two branches of the loss."""

from mutant import mutant

OBJECTIVE = "trainer/test_objective.py::test_loss_and_gradient_equal_the_oracles"
GAPS = "trainer/test_mutation_gaps.py"
POLICY_TOKENS = "trainer/test_policy_tokens.py"

MUTANTS = [
    mutant(
        "distilled_rows_take_the_policy_loss",
        "distilled rollouts are trained by the policy branch, too",
        (
            "rollout/batch.py",
            '"tool_mask": tool_mask * policy_B1.to(tool_mask.dtype),',
            '"tool_mask": tool_mask,',
        ),
        (
            "loss/student.py",
            "labels[:, -num_completion:].masked_fill_(~self._policy_BT, -100)",
            "pass",
        ),
        tests=(f"{OBJECTIVE}[srpo]",),
    ),
    mutant(
        "head_scores_every_position",
        "TRL's head is given prompts, padding and distilled rows, too",
        (
            "host/trainer.py",
            "scores_labelled_only=not args.method_record.is_plain",
            "scores_labelled_only=False",
        ),
        tests=(f"{POLICY_TOKENS}::test_the_head_scores_exactly_the_policys_tokens[srpo-4]",),
    ),
    mutant(
        "tools_old_logps_stay",
        "a tool's tokens, which are not scored, keep their old log-probabilities",
        (
            "rollout/batch.py",
            "inputs[key] = torch.where(routed.policy_BT, batch[key], 0.0)",
            "inputs[key] = torch.where(policy_B1, batch[key], 0.0)",
        ),
        tests=(f"{POLICY_TOKENS}::test_what_is_known_of_a_tools_tokens_changes_nothing",),
    ),
    mutant(
        "empty_head_makes_zeros",
        "a micro-batch without policy tokens makes zeros of the head's size",
        ("seams/trl.py", 'if not len(hidden_ND) and not hasattr(weight, "ds_id"):', "if False:"),
        tests=(f"{POLICY_TOKENS}::test_without_policy_tokens_its_head_makes_no_product_and_no_zeros",),
    ),
    mutant(
        "no_branch_gives_the_head_a_gradient",
        "a micro-batch with neither policy nor distilled tokens leaves the head without a gradient",
        (
            "loss/student.py",
            "has_own_gradient = len(hidden_ND) or not bool((labels_BL != -100).any())",
            "has_own_gradient = len(hidden_ND)",
        ),
        tests=(f"{POLICY_TOKENS}::test_every_parameter_has_its_gradient[neither-untied]",),
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
            "None if routed.old_logps_BT is None else routed.old_logps_BT[distilled_BT]",
            "None",
        ),
        tests=("trainer/test_objective.py::test_second_iteration_uses_the_old_policy_and_clips",),
    ),
    mutant(
        "student_states_off_by_one",
        "the student's hidden states are those after each token, not those that predict it",
        ("loss/student.py", "hidden_BLD[:, -num_completion - 1 : -1]", "hidden_BLD[:, -num_completion:]"),
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
