"""Mutants of the teacher context."""

from mutant import mutant

GAPS = "test_mutation_gaps.py"

MUTANTS = [
    mutant(
        "feedback_ignored",
        "feedback of reward functions never reaches the teacher",
        (
            "taught_rollouts.py",
            'feedback=[text or "" for text in feedback]',
            'feedback=["" for _ in feedback]',
        ),
        tests=("test_trainer.py::test_feedback_reaches_the_teacher_where_no_sibling_is_right",),
    ),
    mutant(
        "feedback_of_the_last_function_alone",
        "feedback of several reward functions is not joined",
        ("taught_rollouts.py", 'if self._is_routed and column == "feedback" and earlier:', "if False:"),
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
            "        ids = self._encode_text(text)\n        if self._special_ids.isdisjoint(ids):",
            '        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]\n        if True:',
        ),
        tests=("test_teacher_context.py::test_untrusted_text_is_text",),
    ),
    mutant(
        "special_tokens_in_text_prompts",
        "the same for prompts that are no conversation",
        (
            "teacher_context.py",
            "        if self._special_ids.isdisjoint(ids):\n"
            "            return self._encode_text(text, adds_special=True)",
            '        if True:\n            return self.tokenizer(text)["input_ids"]',
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
    mutant(
        "marker_as_a_word_of_the_vocabulary",
        "a special token's marker that a word-level tokenizer knows as a word becomes that token",
        ("teacher_context.py", "if self._special_ids.isdisjoint(ids):", "if True:"),
        tests=("test_fuzz_data.py::test_every_marker_of_a_tokenizer_is_text",),
    ),
    mutant(
        "half_characters",
        "lone surrogates reach the tokenizer",
        ("teacher_context.py", "text = whole_characters(text)", "text = str(text)"),
        tests=("test_fuzz_data.py::test_half_a_character_reaches_no_tokenizer",),
    ),
]
