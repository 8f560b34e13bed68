"""Mutants of the teacher context."""

from mutant import mutant

RENDERED = "teacher/test_rendered_prompts.py"
GAPS = "trainer/test_mutation_gaps.py"

MUTANTS = [
    mutant(
        "no_room_is_any_room",
        "a model whose context leaves no room for a teacher's prompt is given one of any length",
        ("rollout/router.py", "if limit is not None]", "if limit]"),
        tests=(
            "rollout/test_router.py::test_a_teacher_prompt_has_the_room_that_the_models_context_leaves[0-False]",
        ),
    ),
    mutant(
        "feedback_ignored",
        "feedback of reward functions never reaches the teacher",
        (
            "host/trainer.py",
            'feedback=[text or "" for text in feedback or [None] * len(prompts)]',
            'feedback=[""] * len(prompts)',
        ),
        tests=("trainer/test_trainer.py::test_feedback_reaches_the_teacher_where_no_sibling_is_right",),
    ),
    mutant(
        "feedback_of_the_last_function_alone",
        "feedback of several reward functions is not joined",
        ("host/rewards/feedback.py", "if self._texts and texts:", "if False:"),
        tests=(
            "host/test_rewards_object.py::test_feedback_is_joined_line_by_line_and_taken_once",
            "trainer/test_trainer.py::test_feedback_of_several_functions_is_joined_and_a_wrong_number_refused",
        ),
    ),
    mutant(
        "source_order_ignored",
        "the first source that the package knows is shown, not the first that the option names",
        (
            "teacher/context.py",
            "next((candidates[source] for source in sources if candidates[source])",
            "next((candidates[source] for source in candidates if source in sources and candidates[source])",
        ),
        tests=("teacher/test_teacher_context.py::test_sources_are_tried_in_their_order",),
    ),
    mutant(
        "special_tokens_in_untrusted_text",
        "markers in a demonstration become special tokens",
        (
            "teacher/prompt_pieces.py",
            "return any(span[0] < end and start < span[1] for start, end in untrusted)",
            "return False",
        ),
        tests=("teacher/test_teacher_context.py::test_untrusted_text_is_text",),
    ),
    mutant(
        "special_tokens_in_text_prompts",
        "the same for prompts that are no conversation",
        (
            "teacher/prompt_pieces.py",
            "hostile = [span for span in found if _is_within_reach(span, untrusted)]",
            "hostile = [] if adds_special else [span for span in found if _is_within_reach(span, untrusted)]",
        ),
        tests=(f"{GAPS}::test_markers_in_the_demonstration_of_a_text_prompt_stay_text",),
    ),
    mutant(
        "markers_over_the_seam",
        "a marker counts that begins in a demonstration and ends in the template",
        (
            "teacher/prompt_pieces.py",
            "return any(span[0] < end and start < span[1] for start, end in untrusted)",
            "return any(start <= span[0] and span[1] <= end for start, end in untrusted)",
        ),
        tests=(f"{RENDERED}::test_a_marker_counts_where_all_of_it_is_trusted",),
    ),
    mutant(
        "dataset_is_not_trusted",
        "markers in the dataset's own text become letters in the teacher's prompt",
        ("teacher/templates.py", "prompt=[Piece(prompt)],", "prompt=[Piece(prompt, is_trusted=False)],"),
        tests=("teacher/test_teacher_context.py::test_untrusted_text_is_text",),
    ),
    mutant(
        "rendered_prompts_are_text",
        "in a prompt to which the chat template has been applied the solution follows in the assistant's turn",
        (
            "teacher/context.py",
            "start, end = self.turn_in_text(prompt) or (0, len(prompt))",
            "start, end = 0, len(prompt)",
        ),
        tests=(f"{RENDERED}::test_the_solution_stands_in_the_last_user_turn",),
    ),
    mutant(
        "last_header_of_a_rendered_prompt",
        "the solution stands in the first user turn of a rendered prompt",
        (
            "teacher/rendered_prompts.py",
            "header = prompt.rfind(form.header)",
            "header = prompt.find(form.header)",
        ),
        tests=(f"{RENDERED}::test_a_rendered_prompt_is_the_conversation_that_it_shows",),
    ),
    mutant(
        "added_tokens_are_no_markers",
        "markers of turns that a tokenizer does not call special count in a demonstration",
        ("teacher/prompt_pieces.py", "of.special or (of.content.strip() in written)", "of.special"),
        tests=(f"{RENDERED}::test_a_rendered_prompt_is_the_conversation_that_it_shows[DeepSeek-one turn]",),
    ),
    mutant(
        "row_without_a_user_turn_ends_the_run",
        "a row without a user turn raises in the middle of a run",
        (
            "teacher/context.py",
            "        if position is None:\n            return None",
            "        if position is None:\n            raise RuntimeError",
        ),
        tests=("host/test_faults_rows.py::test_rows_without_a_user_turn_train_by_grpo",),
    ),
    mutant(
        "demonstration_keeps_its_thinking",
        "<think> blocks stay in demonstrations",
        (
            "teacher/context.py",
            "    if not keep_thinking:  # turn by turn",
            "    if False:  # turn by turn",
        ),
        tests=("teacher/test_teacher_context.py::test_thinking_is_removed_from_demonstrations",),
    ),
    mutant(
        "thinking_option_ignored",
        "remove_thinking_from_demonstration has no effect",
        (
            "rollout/graded.py",
            "demonstration_text(completion, keep_thinking=keep_thinking)",
            "demonstration_text(completion, keep_thinking=False)",
        ),
        tests=(f"{GAPS}::test_the_option_decides_whether_demonstrations_keep_their_thinking[False]",),
    ),
    mutant(
        "demonstration_loses_its_end",
        "a demonstration that is too long loses its result instead of its start",
        (
            "teacher/context.py",
            "kept_solution = solution_ids[from_solution:]",
            "kept_solution = solution_ids[: len(solution_ids) - from_solution]",
        ),
        tests=("teacher/test_teacher_context.py::test_long_demonstration_loses_its_start_and_nothing_else",),
    ),
    mutant(
        "system_message_dropped",
        "the teacher does not read what comes before the last user turn",
        ("teacher/context.py", "                *messages[:position],\n", ""),
        tests=(
            "teacher/test_teacher_context.py::test_chat_prompt_keeps_the_system_message_and_ends_with_the_assistants_header",
        ),
    ),
    mutant(
        "chat_template_arguments_dropped",
        "the teacher's chat template gets no arguments (thinking stays on)",
        ("teacher/context.py", "            **self.chat_template_kwargs,\n", ""),
        tests=("teacher/test_teacher_context.py::test_chat_template_arguments_reach_the_template",),
    ),
    mutant(
        "marker_as_a_word_of_the_vocabulary",
        "a special token's marker that a word-level tokenizer knows as a word becomes that token",
        (
            "teacher/prompt_pieces.py",
            "encoded = tokenizer(texts, add_special_tokens=adds_special, return_offsets_mapping=True)",
            "encoded = tokenizer(\n"
            "        texts, add_special_tokens=adds_special, return_offsets_mapping=True, split_special_tokens=True\n"
            "    )\n"
            "    markers = {}",
        ),
        tests=("teacher/test_fuzz_data.py::test_every_marker_of_a_tokenizer_is_text",),
    ),
    mutant(
        "half_characters",
        "lone surrogates reach the tokenizer",
        (
            "teacher/prompt_pieces.py",
            "pieces = [piece._replace(text=whole_characters(piece.text)) for piece in pieces]",
            "pieces = list(pieces)",
        ),
        tests=("teacher/test_fuzz_data.py::test_half_a_character_reaches_no_tokenizer",),
    ),
]
