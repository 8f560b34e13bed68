"""Mutants of what looks at rows, and of the remedies for options of older recipes."""

from mutant import mutant

ROWS = "host/test_faults_rows.py"
FORMER = "config/test_former_options.py"
INHERITED = "config/test_inherited.py"
COLUMNS = "host/test_faults_columns.py"
OBJECT = "host/test_prompt_rows.py"

MUTANTS = [
    mutant(
        "stored_columns_for_rows",
        "the columns of a dataset are those that are stored, not those that its rows hold",
        (
            "host/datasets.py",
            "        columns = list(row)\n",
            "        columns = list(getattr(dataset, 'column_names', None) or row)\n",
        ),
        tests=(f"{ROWS}::test_rows_train_alike_however_a_dataset_gives_them[transform-srpo]",),
    ),
    mutant(
        "stored_prompts_of_a_transform",
        "prompts that a transform makes anew are looked at as they are stored",
        (
            "host/argument_types.py",
            "if isinstance(dataset, Dataset) and not is_as_stored(dataset):",
            "if False:",
        ),
        tests=(f"{ROWS}::test_rows_train_alike_however_a_dataset_gives_them",),
    ),
    mutant(
        "dropped_columns_are_seen",
        "a transform is looked at with the columns that remove_unused_columns drops",
        ("host/rows.py", "    if drops_unused:\n        unused", "    if False:\n        unused"),
        tests=(f"{ROWS}::test_rows_that_do_not_fit_are_refused_before_the_model_is_loaded",),
    ),
    mutant(
        "prompts_without_tokens",
        "a prompt of no tokens is found in the middle of a run",
        (
            "host/datasets.py",
            'reason = "" if len(tokens_of(row)) else "it has no tokens"',
            'reason = "" if tokens_of(row) is not None else "it has no tokens"',
        ),
        tests=(f"{ROWS}::test_rows_that_cannot_be_sampled_for_are_refused_by_row[empty text]",),
    ),
    mutant(
        "one_shape_of_prompts",
        "only the first row is tokenized when the trainer is made",
        ("host/datasets.py", "looked_at = sorted(counts)[:_MAX_SHAPES]", "looked_at = sorted(counts)[:1]"),
        tests=(f"{ROWS}::test_rows_that_cannot_be_sampled_for_are_refused_by_row",),
    ),
    mutant(
        "long_prompts_are_not_measured",
        "a prompt that is too long for the context is not found when the trainer is made",
        ("host/datasets.py", "if room is None or problems:", "if True:"),
        tests=(f"{ROWS}::test_rows_that_cannot_be_sampled_for_are_refused_by_row[longer than the context]",),
    ),
    mutant(
        "empty_images_are_images",
        "a column of images that holds none makes TRL take the rows for images",
        (
            "host/prompt_rows.py",
            "hidden = _CONVERSATION_COLUMNS if any(map(row_images, rows)) else IMAGE_COLUMNS",
            "hidden = ()",
        ),
        tests=(f"{ROWS}::test_empty_columns_of_images_change_nothing_for_a_text_model",),
    ),
    mutant(
        "rewards_lose_columns",
        "reward functions are not given the columns that TRL is not shown",
        (
            "host/prompt_rows.py",
            "return [{**row, **given} for row, given in zip(self._rows, rows, strict=True)]",
            "return list(rows)",
        ),
        tests=(f"{ROWS}::test_empty_columns_of_images_change_nothing_for_a_text_model",),
    ),
    mutant(
        "images_of_a_text_model",
        "images for a model that reads text alone are found after the first batch",
        (
            "host/datasets.py",
            '        if num_rows:\n            yield (\n                f"{name} has something',
            '        if False:\n            yield (\n                f"{name} has something',
        ),
        tests=(f"{ROWS}::test_images_for_a_text_model_are_refused_by_column",),
    ),
    mutant(
        "rows_left_out_are_scored",
        "the rollouts that stand in for a row count as that row's",
        (
            "host/prompt_rows.py",
            "rewards_BF.masked_fill(is_excluded_B.unsqueeze(1), torch.nan)",
            "rewards_BF",
        ),
        tests=(
            f"{OBJECT}::test_rollouts_of_excluded_rows_have_no_rewards",
            f"{ROWS}::test_a_row_that_shows_itself_later_is_left_out",
        ),
    ),
    mutant(
        "texts_among_conversations",
        "a batch of texts and conversations ends the run",
        ("host/prompt_rows.py", "if 0 < len(texts) < len(usable):", "if False:"),
        tests=(f"{ROWS}::test_no_row_of_a_stream_ends_a_run[a text]",),
    ),
    mutant(
        "template_without_the_user_is_taken",
        "a chat template that leaves no row a teacher is not refused",
        (
            "teacher/places.py",
            "if last_user_position(prompt) is not None:",
            "if False:",
        ),
        tests=(f"{ROWS}::test_a_template_without_the_users_text_is_refused_when_the_trainer_is_made",),
    ),
    mutant(
        "nearest_spelling_of_a_former_option",
        "an option that was removed is answered with the nearest name",
        (
            "config/renamed.py",
            "    if name in REPLACED:\n        return",
            "    if False:\n        return",
        ),
        tests=(f"{FORMER}::test_a_recipe_of_2025_is_told_what_became_of_its_options",),
    ),
    mutant(
        "python_says_nothing_of_former_options",
        "SRPOConfig's TypeError names no remedy",
        ("config/options.py", "@explains_unknown_options\n@dataclass", "@dataclass"),
        tests=(f"{FORMER}::test_python_says_it_too",),
    ),
    mutant(
        "extras_without_routing_are_ignored",
        "gradient_share_steps and log_examples_steps are taken with routing=grpo, and do nothing",
        ("config/rules.py", "        if value is not None:\n", "        if False:\n"),
        tests=("config/test_config.py::test_wrong_values_are_refused_by_name",),
    ),
    mutant(
        "options_out_of_range_pass",
        "numbers are not held against their range",
        ("config/ranges.py", "        elif not allowed.holds(value):\n", "        elif False:\n"),
        tests=(
            "config/test_config.py::test_wrong_values_are_refused_by_name",
            f"{INHERITED}::test_what_grpo_trainer_fails_with_is_refused_by_name_and_what_it_does_is_taken",
        ),
    ),
    mutant(
        "options_are_refused_where_nothing_reads_them",
        "Adam's options are held against their range with every optimizer",
        ("config/inherited.py", 'if "adam" in str(values["optim"]).lower()', "if True"),
        tests=(
            f"{INHERITED}::test_what_grpo_trainer_fails_with_is_refused_by_name_and_what_it_does_is_taken",
        ),
    ),
    mutant(
        "a_loss_as_metric_is_sampled_for",
        "metric_for_best_model=loss does not choose TRL's evaluation",
        (
            "config/defaults.py",
            "if config.metric_for_best_model in LOSS_METRICS and",
            "if False and",
        ),
        tests=(f"{INHERITED}::test_a_loss_as_the_best_metric_chooses_trls_evaluation",),
    ),
    mutant(
        "rows_without_images_have_none",
        "a row without images beside rows with them ends the run in the processor",
        (
            "host/prompt_rows.py",
            "images and [of_prompt or [] for of_prompt in images]",
            "images",
        ),
        tests=("trainer/test_vision.py::test_rows_without_images_train_beside_rows_with_them",),
    ),
    mutant(
        "arguments_given_as_options",
        "an argument of the trainer given to SRPOConfig is said to be another option, or nothing",
        ("config/renamed.py", "if name in AS_ARGUMENTS and", "if not AS_ARGUMENTS and"),
        tests=(f"{FORMER}::test_the_remedy_is_named[tokenizer]",),
    ),
    mutant(
        "added_columns_are_lost",
        "reward functions get the dataset's columns without what a rollout function added",
        (
            "host/prompt_rows.py",
            "[{**row, **given} for row, given in zip(self._rows, rows, strict=True)]",
            "list(self._rows)",
        ),
        tests=(f"{COLUMNS}::test_what_a_rollout_function_adds_reaches_the_reward_functions",),
    ),
    mutant(
        "late_columns_as_they_are",
        "a column that a stream's later row has, and no reward function takes, is passed to them",
        ("host/rewards/columns.py", "if column in kept or self._takes(column)]", "if True]"),
        tests=(f"{COLUMNS}::test_a_column_that_comes_or_goes_late_ends_no_run[more-srpo]",),
    ),
    mutant(
        "missing_columns_are_not_filled",
        "a whole batch without a column that a reward function needs ends the run",
        (
            "host/rewards/columns.py",
            "name not in REWARD_KEYWORDS and name not in columns]",
            "name in REWARD_KEYWORDS and name not in columns]",
        ),
        tests=(f"{COLUMNS}::test_a_whole_batch_without_a_needed_column_is_graded_with_none",),
    ),
    mutant(
        "reference_of_zero_is_none",
        "a reference answer of 0 counts as no reference",
        ("host/rows.py", "if value is None or value != value", "if not value or value != value"),
        tests=(f"{COLUMNS}::test_a_reference_is_the_text_of_a_value[0-0]",),
    ),
    mutant(
        "late_prompts_of_any_form",
        "a prompt that is a list of texts, in the middle of a stream, is given to TRL as it is",
        ("host/prompt_rows.py", "        if held is not None:\n", "        if False:\n"),
        tests=(f"{COLUMNS}::test_a_prompt_of_another_form_is_left_out_later",),
    ),
    mutant(
        "images_in_messages_are_not_seen",
        "a text model is given the images that stand inside messages",
        (
            "host/prompt_rows.py",
            'if not self.reads_images and (row_images(row) or has_image(row["prompt"])):',
            "if not self.reads_images and row_images(row):",
        ),
        tests=(f"{COLUMNS}::test_a_prompt_of_another_form_is_left_out_later",),
    ),
    mutant(
        "nothing_to_evaluate_on_is_found_late",
        "an evaluation data set without rows is found at the first evaluation",
        (
            "host/datasets.py",
            "    if is_evaluated:\n",
            "    if False:\n",
        ),
        tests=(f"{COLUMNS}::test_nothing_to_evaluate_on_is_refused_before_the_first_evaluation",),
    ),
    mutant(
        "prompts_of_any_length",
        "a prompt longer than the context that shows itself later is given to TRL",
        ("host/prompt_rows.py", "self.max_length is not None and num_tokens > self.max_length", "False"),
        tests=(f"{OBJECT}::test_why_a_row_cannot_be_sampled_for",),
    ),
]
