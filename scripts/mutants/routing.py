"""Mutants of routing and of the choice of the demonstration."""

from mutant import mutant

OBJECTIVE = "trainer/test_objective.py::test_loss_and_gradient_equal_the_oracles"

MUTANTS = [
    mutant(
        "papers_defaults_with_grpo",
        "routing=grpo has the paper's defaults and all extras",
        ("config/defaults.py", '    if config.routing == "grpo":\n', "    if False:\n"),
        tests=(
            "trainer/test_grpo_identity.py::test_every_default_with_grpo_is_grpo_configs",
            "trainer/test_grpo_identity.py::test_logs_evaluation_and_files_with_grpo_are_grpo_trainers",
            "trainer/test_grpo_identity.py::test_a_step_that_is_not_finite_is_taken_with_grpo_as_grpo_trainer_takes_it",
        ),
    ),
    mutant(
        "extras_ignored_with_grpo",
        "sampled evaluation that is asked for by name is not done with routing=grpo",
        (
            "config/defaults.py",
            "        if not missing.issuperset(SAMPLED_EVALUATION):\n",
            "        for name in SAMPLED_EVALUATION:\n            setattr(config, name, None)\n        if False:\n",
        ),
        tests=("trainer/test_grpo_identity.py::test_sampled_evaluation_that_is_asked_for_works_with_grpo",),
    ),
    mutant(
        "threshold_exclusive",
        "a reward that equals the threshold is no success: > instead of >=",
        ("methods/routers.py", "score_B >= threshold", "score_B > threshold"),
        tests=("methods/test_routing.py::test_threshold_is_inclusive_and_nan_and_infinity_are_no_scores",),
    ),
    mutant(
        "correct_rollouts_distilled",
        "srpo distils correct rollouts, too",
        (
            "methods/routers.py",
            "torch.where(~is_correct & has_teacher, Route.DISTILLED, Route.POLICY)",
            "torch.where(has_teacher, Route.DISTILLED, Route.POLICY)",
        ),
        tests=("methods/test_routing.py::test_routes_equal_the_oracles_table[srpo]", f"{OBJECTIVE}[srpo]"),
    ),
    mutant(
        "sdpo_falls_back_on_policy",
        "sdpo trains rollouts without a teacher by GRPO instead of not at all",
        (
            "methods/routers.py",
            "return torch.where(has_teacher, Route.DISTILLED, Route.SKIPPED)",
            "return torch.where(has_teacher, Route.DISTILLED, Route.POLICY)",
        ),
        tests=("methods/test_routing.py::test_routes_equal_the_oracles_table[sdpo]", f"{OBJECTIVE}[sdpo]"),
    ),
    mutant(
        "nan_reward_counts_as_failed",
        "a rollout that nothing could score has the reward 0",
        (
            "rollout/graded.py",
            "return torch.where(rewards_BF.isnan().all(dim=1), torch.nan, score_B)",
            "return score_B",
        ),
        tests=(
            "methods/test_routing.py::test_deciding_score_is_the_weighted_sum_or_one_function",
            "trainer/test_trainer.py::test_unscorable_rollouts_are_trained_by_nothing",
        ),
    ),
    mutant(
        "unscored_rollouts_routed",
        "routing forgets that a rollout has no score",
        (
            "methods/routers.py",
            "return torch.where(correctness.is_scored_B, routes_B, Route.SKIPPED)",
            "return routes_B",
        ),
        tests=("methods/test_routing.py::test_routes_equal_the_oracles_table[srpo]",),
    ),
    mutant(
        "infinite_rewards_used",
        "an infinite reward enters the group's advantages",
        (
            "host/taught_rollouts.py",
            "rewards_BF = torch.where(rewards_BF.isfinite(), rewards_BF, torch.nan)",
            "rewards_BF = rewards_BF.clone()",
        ),
        tests=("trainer/test_trainer.py::test_unscorable_rollouts_are_trained_by_nothing",),
    ),
    mutant(
        "named_reward_ignored",
        "correctness is the weighted sum although one reward function was named",
        ("rollout/graded.py", "if correctness_reward is not None:", "if False:"),
        tests=(
            "methods/test_routing.py::test_deciding_score_is_the_weighted_sum_or_one_function",
            "trainer/test_trainer.py::test_correctness_by_one_named_reward",
        ),
    ),
    mutant(
        "own_completion_as_demonstration",
        "the group's demonstration is shown to the rollout that wrote it",
        ("methods/routers.py", "is_best_PG = own_PG == best_P1", "is_best_PG = own_PG < 0"),
        tests=(
            "methods/test_routing.py::test_one_demonstration_serves_the_group_and_never_itself",
            "trainer/test_trainer.py::test_no_rollout_is_shown_itself_and_one_demonstration_serves_the_group",
        ),
    ),
    mutant(
        "demonstration_by_row_order",
        "the first correct row is the demonstration, so the choice depends on the order of rows",
        (
            "methods/routers.py",
            "    digest.update(torch.tensor(completion_ids, dtype=torch.int64).numpy().tobytes())\n",
            "",
        ),
        tests=(
            "trainer/test_split_invariance.py::test_update_does_not_depend_on_the_order_of_a_group",
            "methods/test_routing.py::test_every_correct_sibling_may_serve",
        ),
    ),
    mutant(
        "failed_rollout_as_demonstration",
        "any rollout may be the demonstration, failed ones, too",
        ("rollout/graded.py", "        if is_correct[i]\n", ""),
        tests=(
            "trainer/test_trainer.py::test_no_rollout_is_shown_itself_and_one_demonstration_serves_the_group",
        ),
    ),
    mutant(
        "groups_of_one_process",
        "every process takes its rollouts for the first of all",
        ("host/checked_calls.py", "first_row=self.accelerator.process_index * len(prompts)", "first_row=0"),
        tests=("trainer/test_processes.py::test_two_processes_make_the_update_of_one[straddling-whole]",),
    ),
]
