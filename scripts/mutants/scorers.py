"""Mutants of scorers: whose weights score after which prompt, where that applies, and what a plan counts."""

from mutant import mutant

SCORERS = "trainer/test_scorers.py"
NOTHING = f"{SCORERS}::test_what_is_said_of_nothing_does_not_apply"
PLAN = "commands/test_memory_plan.py"
IN_USE = "teacher/in_use.py"
BRANCH = "rollout/policy_branch.py"

MUTANTS = [
    # ---------------------------------------------------------------- weights, prompts, models
    mutant(
        "initial_weights_are_the_self_teachers",
        "a scorer by the initial weights is run with the self-teacher's",
        (IN_USE, '"initial": lambda: self._initial}', '"initial": lambda: self.weights}'),
        tests=(
            f"{SCORERS}::test_each_kind_of_weights_scores_after_the_students_prompt",
            f"{SCORERS}::test_kl_between_two_scorers",
        ),
    ),
    mutant(
        "resumed_without_the_initial_weights",
        "a checkpoint holds the self-teacher's weights alone, so that a resumed run begins with later ones",
        (IN_USE, "return [self.weights, self._initial] if own else [self.weights]", "return [self.weights]"),
        tests=(f"{SCORERS}::test_initial_weights_survive_a_resume[ema]",),
    ),
    mutant(
        "columns_prompt_has_the_reprompts_template",
        "a column's text is shown as a solution in the re-prompt, not as the whole prompt",
        (
            "rollout/graded.py",
            "encoder.encode_whole(values[i], rollouts.prompts[i], rollouts.tools[i]) if is_needed else None",
            "encoder.encode(\n"
            "    rollouts.prompts[i],\n"
            '    select_information(["reference"], "", "", str(values[i]), ""),\n'
            "    rollouts.tools[i],\n"
            ") if is_needed and values[i] else None",
        ),
        tests=(f"{SCORERS}::test_a_column_holds_the_whole_prompt[texts]",),
    ),
    mutant(
        "teacher_of_another_rows_column",
        "a row is scored by the teacher that another row's column names",
        ("rollout/scorers.py", "for name in model_of_row]", "for name in reversed(model_of_row)]"),
        tests=(f"{SCORERS}::test_each_row_is_scored_by_the_teacher_that_its_column_names",),
    ),
    mutant(
        "students_head_for_an_external_teacher",
        "a frozen external teacher's hidden states are projected with the student's head",
        ("teacher/scoring.py", "if model is student and not any(", "if not any("),
        tests=(
            f"{SCORERS}::test_an_external_teacher_costs_the_student_nothing",
            f"{SCORERS}::test_vla_opds_update_is_autograds_of_the_reverse_kl",
        ),
    ),
    mutant(
        "one_head_for_all_external_teachers",
        "the heads of two external teachers are taken for one",
        (IN_USE, "external.layout, (scorer.weights, name))", "external.layout, (scorer.weights, 0))"),
        tests=(f"{SCORERS}::test_several_teachers_update_is_the_mean_of_theirs",),
    ),
    mutant(
        "context_of_the_first_scorer_alone",
        "a rollout counts as one with context where a second scorer has no prompt for it",
        ("rollout/graded.py", "completions), *there]", "completions), *there[:1]]"),
        tests=("rollout/test_graded.py::test_context_is_there_where_each_scorer_has_a_prompt",),
    ),
    mutant(
        "observers_score_what_is_distilled",
        "a scorer that only observes scores no rollout that the policy loss alone trains",
        (
            "rollout/scorers.py",
            "    return rollouts.is_rescored_B\n",
            "    return is_distilled(rollouts.route_B)\n",
        ),
        tests=(f"{SCORERS}::test_where_nothing_is_shown_the_loss_is_trls_own",),
    ),
    # ---------------------------------------------------------------- what they say
    mutant(
        "logps_of_scorers_at_temperature_1",
        "a scorer's log-probabilities are not those of the sampling temperature",
        (
            "teacher/scoring.py",
            "torch.cat(list(ids)), made[1], temperature)",
            "torch.cat(list(ids)), made[1], 1.0)",
        ),
        tests=(
            f"{SCORERS}::test_each_kind_of_weights_scores_after_the_students_prompt",
            f"{SCORERS}::test_kdrls_update_is_grpos_and_autograds_of_k2",
        ),
    ),
    mutant(
        "kl_of_two_scorers_the_other_way_round",
        "KL(that || this) stands for KL(this || that)",
        (IN_USE, "            for scores in (this, that)\n", "            for scores in (that, this)\n"),
        tests=(f"{SCORERS}::test_kl_between_two_scorers",),
    ),
    mutant(
        "kl_of_two_scorers_at_temperature_1",
        "the KL of two scorers is not that of the sampling temperature",
        (IN_USE, "topk=None, temperature=self._args.temperature)", "topk=None, temperature=1.0)"),
        tests=(f"{SCORERS}::test_kl_between_two_scorers",),
    ),
    # ---------------------------------------------------------------- where it applies
    mutant(
        "pull_where_nothing_is_shown",
        "a rollout without context is pulled to a log-probability of 0",
        (
            BRANCH,
            "torch.where(applies_BT, pull_BT, 0.0)",
            "torch.where(mask_BT, pull_BT, 0.0)",
        ),
        tests=(f"{NOTHING}[pull]",),
    ),
    mutant(
        "anchor_where_nothing_is_shown",
        "the ratio of a rollout without context is to a log-probability of 0",
        (BRANCH, "applies_BT, anchor_BT.to(own_BT)", "mask_BT, anchor_BT.to(own_BT)"),
        tests=(f"{NOTHING}[anchor]",),
    ),
    mutant(
        "advantages_where_nothing_is_shown",
        "a rollout without context has the advantage that a method computes from nothing",
        (
            BRANCH,
            'self.inputs["advantages"] = torch.where(applies, advantages.to(own), own)',
            'self.inputs["advantages"] = advantages.to(own)',
        ),
        tests=(f"{NOTHING}[advantages]", f"{NOTHING}[advantages by rollout]"),
    ),
    mutant(
        "weights_of_the_first_scorer_alone_are_normalized",
        "the mean weight of several scorers is that of the first one",
        ("rollout/coefficients.py", "return sum(others, start=first)", "return first"),
        tests=("rollout/test_coefficients.py::test_weights_of_several_scorers_have_mean_one_together",),
    ),
    # ---------------------------------------------------------------- in a plan
    mutant(
        "planned_teacher_trains",
        "a plan upcasts an external teacher as if it trained",
        ("commands/plan/scorers.py", "models, trains=False)", "models)"),
        tests=(f"{PLAN}::test_external_teachers_are_sharded_where_the_student_is[fsdp2]",),
    ),
    mutant(
        "initial_weights_twice_in_a_plan",
        "a plan holds the initial weights beside a teacher that has them",
        ("commands/plan/run.py", 'return self.teacher_kind != "base" and any(', "return any("),
        tests=(f"{PLAN}::test_initial_weights_are_held_where_they_score",),
    ),
    mutant(
        "observers_states_are_planned_for_the_whole_step",
        "a plan holds the hidden states of what only observes as if they were distilled",
        ("commands/plan/phases.py", "1, False, {TEACHER: seen})", "1, False, _at(PHASES, seen))"),
        tests=(f"{PLAN}::test_what_only_observes_lets_go_after_the_passes",),
    ),
]
