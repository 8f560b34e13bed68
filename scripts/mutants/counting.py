"""Mutants of the count of rollout batches, and of what is told about correctness."""

from mutant import mutant

COUNT = "rollout/test_rollout_batches.py"
CORRECT = "rewards/test_correctness.py"

MUTANTS = [
    mutant(
        "teacher_moves_where_both_counts_meet",
        "a rollout batch that ends inside an optimizer step moves no teacher",
        (
            "rollout/batch_counter.py",
            "        return num_new\n",
            "        return 0 if self.is_under_way(num_micro_batches) else 1\n",
        ),
        tests=(
            f"{COUNT}::test_each_rollout_batch_is_complete_once",
            f"{COUNT}::test_the_teacher_moves_once_per_rollout_batch[2-3-1]",
        ),
    ),
    mutant(
        "several_rollout_batches_move_the_teacher_once",
        "rollout batches that one optimizer step completes count as one",
        ("trainer.py", "self.teacher.update(num_complete)", "self.teacher.update(1)"),
        tests=(f"{COUNT}::test_the_teacher_moves_once_per_rollout_batch[3-1-1]",),
    ),
    mutant(
        "updates_at_once_without_compounding",
        "n updates toward one student are one at n times the rate",
        (
            "teacher/weights.py",
            "1.0 - (1.0 - self.update_rate) ** num_moves",
            "num_moves * self.update_rate",
        ),
        tests=(f"{COUNT}::test_several_updates_toward_one_student_are_as_many_ticks",),
    ),
    mutant(
        "head_moves_under_rollouts_in_use",
        "the average moves the head that rollouts in use were scored with",
        (
            "teacher/in_use.py",
            "        self._heads.keep_apart_from(self.weights.state_dict().values())\n",
            "",
        ),
        tests=(f"{COUNT}::test_each_rollout_is_distilled_from_the_teacher_that_scored_it[2-3-1-ema]",),
    ),
    mutant(
        "one_head_for_all_rollouts_in_use",
        "a step's rollouts are all projected with the head of the last ones",
        (
            "teacher/heads.py",
            "return self._heads[number, name].head",
            "return [*self._heads.values()][-1].head",
        ),
        tests=(
            f"{COUNT}::test_each_rollout_is_distilled_from_the_teacher_that_scored_it[4-5-1-ema]",
            f"{COUNT}::test_each_rollout_is_distilled_from_the_teacher_that_scored_it[2-3-1-live]",
        ),
    ),
    mutant(
        "head_of_rollouts_in_use_is_not_saved",
        "a run resumed in a straddling step projects its rollouts with the head of now",
        (
            "teacher/heads.py",
            "None if head is STUDENT_HEAD or scored_by == teacher_state else",
            "None if True else",
        ),
        tests=(f"{COUNT}::test_a_run_resumed_in_straddling_steps_equals_the_uninterrupted_one[ema-2]",),
    ),
    mutant(
        "count_of_other_options_goes_on",
        "a run resumed under other batch options goes on with a count of the old ones",
        (
            "rollout/batch_counter.py",
            "return num_complete * now.micro_batches_per_rollout_batch",
            "return num_micro_batches",
        ),
        tests=(
            f"{COUNT}::test_a_resumed_count_has_as_many_rollout_batches",
            f"{COUNT}::test_a_run_resumed_under_other_options_counts_on[half the batch, twice the accumulation]",
        ),
    ),
    mutant(
        "rollouts_of_other_options_are_trained_on",
        "a run goes on inside a rollout batch under any batch options",
        ("rollout/batch_counter.py", "if not has_rollouts or not before:", "if True:"),
        tests=(f"{COUNT}::test_inside_a_rollout_batch_other_options_are_refused_before_anything_is_loaded",),
    ),
    mutant(
        "outcomes_of_other_prompts",
        "under other batch options, outcomes are told to the prompts of the old place in the data",
        (
            "host/prompt_order.py",
            "        if batch != self._num_reported_before:\n",
            "        if False:\n",
        ),
        tests=(f"{COUNT}::test_a_run_resumed_under_other_options_counts_on[iterations]",),
    ),
    mutant(
        "checkpoint_of_another_version_is_guessed_at",
        "fields that a checkpoint lacks end in a bare error",
        ("host/checkpoint_parts.py", "    if missing or unknown:\n", "    if False:\n"),
        tests=(f"{COUNT}::test_a_checkpoint_of_another_version_is_refused_by_its_fields",),
    ),
    mutant(
        "several_rewards_decide_unnoticed",
        "nothing is told of several rewards, or of weights, that decide what is correct",
        (
            "rewards/correctness_watch.py",
            'return " ".join([*notes, _remedy(names)]) if notes else ""',
            'return ""',
        ),
        tests=(
            f"{CORRECT}::test_a_doubtful_decision_is_told_with_the_option_to_set",
            f"{CORRECT}::test_a_run_tells_what_is_doubtful",
        ),
    ),
    mutant(
        "one_sided_scores_unnoticed",
        "nothing is told of scores that differ, all on one side of the threshold",
        ("rollout/router.py", "        self._tell(self.watch.observe(score_B.tolist()))\n", ""),
        tests=(f"{CORRECT}::test_a_run_tells_what_is_doubtful",),
    ),
    mutant(
        "groups_that_fail_raise_an_alarm",
        "rewards that are all the same are taken for a wrong threshold",
        ("rewards/correctness_watch.py", "    if not scores.differ:\n", "    if not scores.number:\n"),
        tests=(f"{CORRECT}::test_no_false_alarm", f"{CORRECT}::test_one_verdict_on_rewards_that_differ"),
    ),
    mutant(
        "a_learned_task_raises_an_alarm",
        "a run whose last rollouts are all correct is told that its threshold does not fit",
        (
            "rewards/correctness_watch.py",
            "self._scores.with_others(batch_scores(values))",
            "batch_scores(values)",
        ),
        tests=(f"{CORRECT}::test_no_false_alarm",),
    ),
]
