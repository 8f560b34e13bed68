"""Mutants of evaluation's scores and of the files that recipes and data come from."""

from mutant import mutant

SCORES = "evaluation/test_evaluation_scores.py"

MUTANTS = [
    mutant(
        "biased_pass_at_k",
        "pass@k is the plug-in estimate 1 - (1 - c / n)^k",
        (
            "evaluation/scores.py",
            "return 1.0 - math.comb(len(known) - sum(known), k) / math.comb(len(known), k)",
            "return 1.0 - (1.0 - sum(known) / len(known)) ** k",
        ),
        tests=(f"{SCORES}::test_pass_at_k_is_the_mean_over_all_choices_of_k_samples",),
    ),
    mutant(
        "majority_breaks_ties_by_order",
        "of answers with as many votes the first one counts",
        (
            "evaluation/scores.py",
            "        statistics.fmean(group) for group in verdicts.values() if len(group) == most_votes\n",
            "        [statistics.fmean(group) for group in verdicts.values() if len(group) == most_votes][:1]\n",
        ),
        tests=(f"{SCORES}::test_majority_is_the_expectation_over_drawn_winners",),
    ),
    mutant(
        "standard_error_without_bessel",
        "standard errors divide by n in place of n - 1",
        ("runs/scores.py", "stdev(values) /", "(stdev(values) * math.sqrt(1 - 1 / len(values))) /"),
        tests=(f"{SCORES}::test_standard_error_is_over_questions_that_have_a_value",),
    ),
    mutant(
        "start_counts_as_best",
        "the untrained model's score is a best score within a budget",
        ("runs/scores.py", "if point.step > 0\n", "if point.step >= 0\n"),
        tests=("runs/test_read.py::test_compare_and_report_have_one_answer",),
    ),
    mutant(
        "short_run_has_a_score",
        "a run that has not reached the budget has a score within it",
        ("runs/scores.py", "if budget is not None and not self.used(budget) >= budget.amount:", "if False:"),
        tests=("runs/test_read.py::test_compare_and_report_have_one_answer",),
    ),
    mutant(
        "number_without_a_unit",
        "a duration without a unit is seconds",
        ("runs/durations.py", "(s|min|m|h)\\s*", "(s|min|m|h|)\\s*"),
        ("runs/durations.py", '{"m": 60.0}', '{"m": 60.0, "": 1.0}'),
        tests=("runs/test_durations.py::test_anything_else_is_refused",),
    ),
    mutant(
        "unscored_samples_are_wrong",
        "a sample without a score counts as a wrong one",
        (
            "evaluation/scores.py",
            "    known = [verdict for verdict in correct if verdict is not None]\n",
            "    known = [verdict or False for verdict in correct]\n",
        ),
        tests=(f"{SCORES}::test_scores_of_samples_by_hand",),
    ),
    mutant(
        "padding_is_scored",
        "samples that only fill up a batch are counted",
        ("evaluation/evaluator.py", "            if plan.is_padding:\n", "            if False:\n"),
        tests=("evaluation/test_evaluator.py::test_samples_of_a_batch",),
    ),
    mutant(
        "tool_output_is_the_models",
        "tokens that a tool wrote count as the model's in evaluation",
        ("evaluation/evaluator.py", "tool_mask_BT[row, : len(ids)].tolist()", "[1] * len(ids)"),
        tests=(
            "evaluation/test_evaluator.py::test_samples_of_a_batch",
            "evaluation/test_evaluation.py::test_tool_output_is_not_the_models",
        ),
    ),
    mutant(
        "truncated_samples_have_no_tokens",
        "with mask_truncated_completions the lengths of cut samples are 0 in evaluation",
        ("evaluation/evaluator.py", '                "mask_truncated_completions": False,\n', ""),
        tests=("evaluation/test_evaluator.py::test_sampling_sets_the_trainer_and_gives_it_back",),
    ),
    mutant(
        "base_of_a_recipe_wins",
        "a recipe's own values give way to those of the file it builds on",
        ("commands/config_file.py", "values = own | values", "values |= own"),
        tests=("commands/test_config_file.py::test_the_files_own_values_win_over_those_that_it_builds_on",),
    ),
    mutant(
        "base_relative_to_the_process",
        "`base` is a path from where the process runs",
        (
            "commands/config_file.py",
            "folder = file.parent if file.is_file() else None",
            "folder = None",
        ),
        tests=("commands/test_config_file.py::test_base_is_relative_to_the_file_that_names_it",),
    ),
    mutant(
        "recipe_before_the_file",
        "a recipe of the package hides a file of the same name",
        ("commands/config_file.py", "if file.exists() and not file.is_dir():", "if False:"),
        tests=("commands/test_recipes_command.py::test_a_file_of_that_name_comes_first",),
    ),
    mutant(
        "launched_processes_launch_again",
        "a process that the launcher has started starts the launcher",
        (
            "commands/launch.py",
            'return LAUNCHED in os.environ or "LOCAL_RANK" in os.environ',
            "return False",
        ),
        tests=(
            "commands/test_launcher_options.py::test_processes_that_were_launched_leave_the_files_options_alone",
        ),
    ),
    mutant(
        "launch_checks_as_one_process",
        "before a launch groups are counted over this process alone",
        (
            "commands/train.py",
            "with as_one_of(launch.num_processes) if launch else nullcontext():",
            "with nullcontext():",
        ),
        tests=("commands/test_launcher_options.py::test_groups_are_counted_over_all_processes",),
    ),
    mutant(
        "gsm8k_keeps_thousands_commas",
        "the commas of a published answer stay in it",
        ("data/gsm8k.py", 'final_answer[1].replace(",", "")', "final_answer[1]"),
        tests=("data/test_gsm8k.py::test_rows_of_the_hubs_folder",),
    ),
]
