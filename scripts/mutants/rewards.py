"""Mutants of how reward functions are called and of how graders read: processes, arguments, numbers, linear time."""

from mutant import mutant

PROCESS = "host/test_rewards_process.py"
ARGUMENTS = "host/test_rewards_arguments.py"
LINEAR = "rewards/test_rewards_linear_time.py"

MUTANTS = [
    mutant(
        "functions_with_a_limit_stay_in_a_thread",
        "a time limit is kept by a thread, which cannot interrupt code that keeps the interpreter",
        (
            "host/rewards/calls.py",
            "self._runner = self._runner or RewardProcess(self._named, is_async=self._is_async)",
            "self._runner = self._runner or RewardThread(self._named)",
        ),
        tests=(f"{PROCESS}::test_functions_of_any_kind_are_sent",),
    ),
    mutant(
        "dead_process_stops_the_run",
        "a function that ends its process stops the run at its first batch",
        (
            "host/rewards/calls.py",
            "            self._runner.kill()\n            return _Lost(died=str(error))\n",
            "            raise\n",
        ),
        tests=(f"{PROCESS}::test_a_process_that_ends_costs_its_batch",),
    ),
    mutant(
        "process_outlives_its_parent",
        "a busy process goes on when the training process is killed",
        ("host/rewards/worker.py", "    _end_with_parent(life_fd)\n    connection", "    connection"),
        tests=(f"{PROCESS}::test_it_ends_with_a_killed_parent",),
    ),
    mutant(
        "functions_share_their_arguments",
        "what a reward function changes in its arguments, the next one and the trainer see",
        ("host/rewards/run.py", "return private_arguments(arguments), [", "return arguments, ["),
        tests=(f"{ARGUMENTS}::test_what_a_function_changes_nobody_else_sees",),
    ),
    mutant(
        "logged_lists_are_shared",
        "a list that was logged and used again is logged with its later content",
        (
            "host/rewards/run.py",
            "LogCall(log, name, private_copy(_kept(values)))",
            "LogCall(log, name, _kept(values))",
        ),
        tests=(f"{ARGUMENTS}::test_a_list_that_was_logged_may_be_used_again",),
    ),
    mutant(
        "exit_ends_the_run",
        "SystemExit in a reward function ends the process without an error",
        (
            "host/rewards/run.py",
            "        except (Exception, KeyboardInterrupt):\n            raise\n",
            "        except (Exception, KeyboardInterrupt, SystemExit):\n            raise\n",
        ),
        tests=(f"{ARGUMENTS}::test_a_row_on_which_a_grader_exits_has_no_score",),
    ),
    mutant(
        "numbers_beyond_float32_pass",
        "a reward that float32 cannot hold becomes infinite there",
        (
            "host/rewards/scores.py",
            "if abs(value) > limit and not _is_infinite(number):",
            "if False:",
        ),
        tests=(f"{ARGUMENTS}::test_numbers_beyond_float32_are_named",),
    ),
    mutant(
        "weights_are_left_out_of_the_limit",
        "a reward that its weight takes beyond float32 passes",
        (
            "host/rewards/scores.py",
            "FLOAT32_MAX / max(1.0, abs(weight) * len(weights))",
            "FLOAT32_MAX / max(1.0, weight - weight)",
        ),
        tests=(f"{ARGUMENTS}::test_limits_hold_for_the_weighted_sum",),
    ),
    mutant(
        "thinking_is_removed_by_a_lazy_pattern",
        "removing thinking blocks takes quadratic time where none is closed",
        (
            "teacher/context.py",
            "    text = _without_closed_thinking(text)\n",
            '    text = re.sub(r"<think>.*?</think>\\s*", "", text, flags=re.DOTALL)\n',
        ),
        tests=(f"{LINEAR}::test_readers_take_linear_time[remove_thinking]",),
    ),
    mutant(
        "official_blocks_by_a_lazy_pattern",
        "reading inputs as the official grader does takes quadratic time where no brace is closed",
        (
            "rewards/tool_use.py",
            "    blocks = _paper_blocks(text)\n",
            '    blocks = re.findall(r"Action Input:\\s*({.*?})", text, re.DOTALL)\n',
        ),
        tests=(f"{LINEAR}::test_readers_take_linear_time[tool use, strict]",),
    ),
    mutant(
        "towers_are_computed",
        "a tower of powers is handed to SymPy",
        (
            "rewards/maths.py",
            "if any(is_costly_expression(item) for item in items if not isinstance(item, str)):",
            "if False:",
        ),
        tests=(f"{LINEAR}::test_a_tower_as_the_reference_grades_by_its_text_alone",),
    ),
    mutant(
        "long_runs_of_numbers_are_read",
        "a long run of numbers takes math-verify's patterns quadratic time",
        ("rewards/maths.py", "    text = shortened_runs(text)\n", ""),
        tests=(f"{LINEAR}::test_readers_take_linear_time[mathematics]",),
    ),
    mutant(
        "error_without_text_is_a_death",
        "an exception that cannot be shown ends the process that grades",
        (
            "host/rewards/worker.py",
            '"it logged what cannot be pickled" if answer.error is None else _described(answer.error)',
            '"it logged what cannot be pickled" if answer.error is None else repr(answer.error)',
        ),
        tests=("host/test_rewards_process.py::test_an_error_that_cannot_be_shown_is_an_error_and_no_death",),
    ),
    mutant(
        "logged_iterators_stay",
        "a generator that a function logs stops a run with a time limit",
        ("host/rewards/run.py", "private_copy(_kept(values))", "private_copy(values)"),
        tests=("host/test_rewards_process.py::test_iterators_and_views_that_are_logged_become_lists",),
    ),
]
