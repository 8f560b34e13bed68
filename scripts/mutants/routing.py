"""Mutants of routing and of the choice of the demonstration."""

from mutant import mutant

OBJECTIVE = "trainer/test_objective.py::test_loss_and_gradient_equal_the_oracles"

MUTANTS = [
    mutant(
        "papers_defaults_with_grpo",
        "method=grpo has the paper's defaults and all extras",
        (
            "methods/__init__.py",
            '"grpo": Entry(grpo.grpo, "GRPO", WITHOUT_EXTRAS)',
            '"grpo": Entry(grpo.grpo, "GRPO")',
        ),
        tests=(
            "trainer/test_grpo_identity.py::test_every_default_with_grpo_is_grpo_configs",
            "trainer/test_grpo_identity.py::test_logs_evaluation_and_files_with_grpo_are_grpo_trainers",
            "trainer/test_grpo_identity.py::test_a_step_that_is_not_finite_is_taken_with_grpo_as_grpo_trainer_takes_it",
        ),
    ),
    mutant(
        "extras_ignored_with_grpo",
        "sampled evaluation that is asked for by name is not done with method=grpo",
        (
            "config/defaults.py",
            "    if any(options[name] is not None for name in SAMPLED_EVALUATION):\n",
            "    if False:\n",
        ),
        tests=("trainer/test_grpo_identity.py::test_sampled_evaluation_that_is_asked_for_works_with_grpo",),
    ),
    mutant(
        "threshold_exclusive",
        "a reward that equals the threshold is no success: > instead of >=",
        ("rewards/correctness.py", "score_PG >= threshold", "score_PG > threshold"),
        tests=(
            "rewards/test_correctness.py::test_threshold_is_inclusive_and_nan_and_infinity_are_no_scores",
        ),
    ),
    mutant(
        "defaults_kept_when_replaced",
        "dataclasses.replace keeps the defaults of the method that is replaced",
        ("config/options.py", "            if getattr(self, name) == made:\n", "            if False:\n"),
        tests=("config/test_method.py::test_a_replaced_method_brings_its_defaults",),
    ),
    mutant(
        "option_for_the_factory_ignored",
        "a factory's parameter with the name of an option has not that option's value",
        (
            "config/method.py",
            "{name: options[name] for name in parameters if name in options}",
            "{name: 0.5 for name in parameters if name in options}",
        ),
        tests=("config/test_method.py::test_options_reach_the_factory_by_name",),
    ),
    mutant(
        "context_of_other_processes_unknown",
        "a router sees the context of this process's rollouts alone",
        (
            "rollout/graded.py",
            "has_context_PG=gather(has_context.int()).bool().view_as(score_PG)",
            "has_context_PG=torch.zeros(len(score_B)).index_fill(0, torch.arange(len(score_B))[rollouts.own_rows], 1)"
            ".bool().view_as(score_PG)",
        ),
        tests=("rollout/test_graded.py::test_a_router_sees_the_context_of_all_processes",),
    ),
    mutant(
        "correct_rollouts_distilled",
        "srpo distills correct rollouts, too",
        (
            "methods/routers.py",
            "torch.where(~graded.is_correct_PG & graded.has_context_PG, Route.DISTILLED, Route.POLICY)",
            "torch.where(graded.has_context_PG, Route.DISTILLED, Route.POLICY)",
        ),
        tests=("methods/test_methods.py::test_routes_equal_the_oracles_table[srpo]", f"{OBJECTIVE}[srpo]"),
    ),
    mutant(
        "sdpo_falls_back_on_policy",
        "sdpo trains rollouts without a teacher by GRPO instead of not at all",
        (
            "methods/routers.py",
            "return torch.where(graded.has_context_PG, Route.DISTILLED, Route.SKIPPED)",
            "return torch.where(graded.has_context_PG, Route.DISTILLED, Route.POLICY)",
        ),
        tests=("methods/test_methods.py::test_routes_equal_the_oracles_table[sdpo]", f"{OBJECTIVE}[sdpo]"),
    ),
    mutant(
        "nan_reward_counts_as_failed",
        "a rollout that nothing could score has the reward 0",
        (
            "rewards/correctness.py",
            "return torch.where(rewards_BF.isnan().all(dim=1), torch.nan, score_B)",
            "return score_B",
        ),
        tests=(
            "rewards/test_correctness.py::test_correctness_score_is_the_weighted_sum_or_one_function",
            "trainer/test_trainer.py::test_unscored_rollouts_are_excluded_from_the_loss",
        ),
    ),
    mutant(
        "unscored_rollouts_routed",
        "routing forgets that a rollout has no score",
        (
            "methods/routers.py",
            "return torch.where(graded.is_scored_PG, _asked(router, graded), Route.SKIPPED)",
            "return router(graded)",
        ),
        tests=("methods/test_methods.py::test_routes_equal_the_oracles_table[srpo]",),
    ),
    mutant(
        "infinite_rewards_used",
        "an infinite reward enters the group's advantages",
        (
            "host/trainer.py",
            "rewards_BF = torch.where(rewards_BF.isfinite(), rewards_BF, torch.nan)",
            "rewards_BF = rewards_BF.clone()",
        ),
        tests=("trainer/test_trainer.py::test_unscored_rollouts_are_excluded_from_the_loss",),
    ),
    mutant(
        "named_reward_ignored",
        "correctness is the weighted sum although one reward function was named",
        ("rewards/correctness.py", "if correctness_reward is not None:", "if False:"),
        tests=(
            "rewards/test_correctness.py::test_correctness_score_is_the_weighted_sum_or_one_function",
            "trainer/test_trainer.py::test_correctness_by_one_named_reward",
        ),
    ),
    mutant(
        "own_completion_as_demonstration",
        "the group's demonstration is shown to the rollout that wrote it",
        ("rollout/demonstrations.py", "is_best_PG = own_PG == best_P1", "is_best_PG = own_PG < 0"),
        tests=(
            "rollout/test_demonstrations.py::test_one_demonstration_serves_the_group_and_never_itself",
            "trainer/test_trainer.py::test_no_rollout_is_shown_itself_and_one_demonstration_serves_the_group",
        ),
    ),
    mutant(
        "demonstration_by_row_order",
        "the first correct row is the demonstration, so the choice depends on the order of rows",
        (
            "rollout/demonstrations.py",
            "    digest.update(torch.tensor(completion_ids, dtype=torch.int64).numpy().tobytes())\n",
            "",
        ),
        tests=(
            "trainer/test_split_invariance.py::test_update_does_not_depend_on_the_order_of_a_group",
            "rollout/test_demonstrations.py::test_every_correct_sibling_may_serve",
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
        ("host/trainer.py", "first_row=self.accelerator.process_index * len(prompts)", "first_row=0"),
        tests=("trainer/test_processes.py::test_two_processes_make_the_update_of_one[straddling-whole]",),
    ),
]
