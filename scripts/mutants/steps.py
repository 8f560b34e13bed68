"""Mutants of the order of an optimizer step, of what guards its loss and of what is logged; and of a resume."""

from mutant import mutant

WINDOW = "rollout/test_step_window.py"
FINITE = "host/test_finite_steps.py"
GAPS = "trainer/test_mutation_gaps.py"
COUNT = "rollout/test_rollout_batches.py"
HEADS = f"{COUNT}::test_heads_stay_as_they_were_when_their_rollouts_were_scored"

MUTANTS = [
    # ---------------------------------------------------------------- the window of a step
    mutant(
        "window_from_its_end",
        "the micro-batches of an optimizer step are handed out from the last one on",
        ("rollout/step_window.py", "return self._ready.pop(0)", "return self._ready.pop()"),
        tests=(f"{WINDOW}::test_all_micro_batches_are_prepared_in_order_before_the_first_is_handed_out",),
    ),
    mutant(
        "window_prepared_from_its_end",
        "the micro-batches of an optimizer step are prepared from the last one on",
        (
            "rollout/step_window.py",
            "for position, batch in enumerate(self._coming)]",
            "for position, batch in [*enumerate(self._coming)][::-1]]",
        ),
        tests=(
            f"{WINDOW}::test_all_micro_batches_are_prepared_in_order_before_the_first_is_handed_out",
            f"{COUNT}::test_the_teacher_moves_once_per_rollout_batch[2-3-1]",
        ),
    ),
    mutant(
        "window_counted_by_its_first",
        "the totals of an optimizer step are those of its first micro-batch",
        ("rollout/step_window.py", "opened(self._ready)", "opened(self._ready[:1])"),
        tests=(
            f"{WINDOW}::test_all_micro_batches_are_prepared_in_order_before_the_first_is_handed_out",
            "trainer/test_split_invariance.py::test_update_does_not_depend_on_the_split[(4, 4, 4)]",
        ),
    ),
    mutant(
        "window_keeps_what_broke_off",
        "what was left of an optimizer step that broke off is trained on in the next",
        (
            "rollout/step_window.py",
            "self._coming, self._ready = list(batches), []",
            "self._coming = list(batches)",
        ),
        tests=(f"{WINDOW}::test_a_step_that_broke_off_leaves_nothing_to_the_next",),
    ),
    mutant(
        "window_is_used_up_early",
        "the last micro-batch but one counts as the step's last",
        ("rollout/step_window.py", "return not self._ready", "return len(self._ready) < 2"),
        tests=(f"{WINDOW}::test_it_is_used_up_with_the_steps_last_micro_batch",),
    ),
    mutant(
        "prepared_at_one_count",
        "TRL prepares all micro-batches of an optimizer step as if each were its first",
        (
            "trainer.py",
            "            self._step = first + position  # TRL's count of micro-batches decides when it generates\n",
            "",
        ),
        tests=(f"{COUNT}::test_the_teacher_moves_once_per_rollout_batch[3-1-1]",),
    ),
    mutant(
        "count_runs_ahead",
        "TRL's count of micro-batches stays where the last one was prepared",
        ("trainer.py", "        self._step = first\n        self._sums", "        self._sums"),
        tests=(f"{COUNT}::test_the_teacher_moves_once_per_rollout_batch[3-1-1]",),
    ),
    # ---------------------------------------------------------------- steps that are not finite
    mutant(
        "guard_leaves_the_loss",
        "an infinite loss with a finite gradient reaches no other process",
        (
            "host/finite_steps.py",
            "return loss * torch.where(loss.detach().isfinite(), 1.0, torch.nan).to(loss.dtype)",
            "return loss",
        ),
        tests=(f"{FINITE}::test_a_loss_that_is_not_finite_reaches_the_gradient",),
    ),
    mutant(
        "guard_keeps_no_parts",
        "a report does not say which part of the loss is not finite",
        (
            "host/finite_steps.py",
            "self._record.add(inputs, loss=loss.detach(), **parts)",
            "self._record.add(inputs, loss=loss.detach())",
        ),
        tests=(f"{FINITE}::test_a_step_that_is_not_finite_is_skipped_saved_and_told",),
    ),
    mutant(
        "record_of_all_steps",
        "a report is of every micro-batch since the run began",
        ("host/finite_steps.py", "        self._record.clear()\n", ""),
        tests=("host/test_faults_training.py::test_the_run_stops_after_so_many_in_a_row",),
    ),
    mutant(
        "evaluations_are_guarded",
        "a report of a step has the micro-batches of an evaluation before it",
        (
            "host/trainer.py",
            "if self.finite_steps is None or not self.model.training:",
            "if self.finite_steps is None:",
        ),
        tests=(f"{GAPS}::test_an_evaluations_loss_is_no_part_of_a_steps_record",),
    ),
    mutant(
        "skipped_steps_are_not_skipped",
        "the optimizer takes a step that was to be skipped",
        (
            "host/finite_steps.py",
            "            self._accelerator.sync_gradients = False\n",
            "            pass\n",
        ),
        tests=(f"{FINITE}::test_a_step_that_is_not_finite_is_skipped_saved_and_told",),
    ),
    mutant(
        "not_finite_in_all",
        "steps that are not finite end the run where they are too many in all, not in a row",
        (
            "host/finite_steps.py",
            "        elif not self.was_skipped:\n            self._num_in_a_row = 0\n",
            "",
        ),
        tests=(f"{FINITE}::test_several_in_a_row_end_the_run_and_a_finite_one_between_does_not_count",),
    ),
    # ---------------------------------------------------------------- logs
    mutant(
        "evaluation_takes_trainings_sums",
        "what is logged of an evaluation has the metrics of training, which the next log of training then lacks",
        ("host/trainer.py", "logs |= source(self.model.training)", "logs |= source(True)"),
        tests=("logs/test_run_logs.py::test_log_file_has_every_log_and_the_options",),
    ),
    mutant(
        "evaluation_drains_the_sums",
        "the sums of training's metrics are handed out where an evaluation is logged",
        (
            "trainer.py",
            "self._sums.drain(self.sum_over_processes, self.accelerator.device) if is_training else {}",
            "self._sums.drain(self.sum_over_processes, self.accelerator.device)",
        ),
        tests=(f"{GAPS}::test_an_evaluation_takes_nothing_of_trainings_metrics",),
    ),
    mutant(
        "first_log_source_alone",
        "of what joins a log, the first source is heard alone",
        ("host/trainer.py", "for source in self.log_sources:", "for source in self.log_sources[:1]:"),
        tests=("trainer/test_trainer.py::test_every_metric_is_logged",),
    ),
    mutant(
        "table_is_not_filled",
        "TRL's completions table has no divergences",
        (
            "trainer.py",
            "        self._rollout_log.fill_table(self._logs, self.sum_over_processes)\n",
            "",
        ),
        tests=("logs/test_run_logs.py::test_completions_table_has_each_rollouts_divergence",),
    ),
    mutant(
        "cut_line_stays",
        "a line of a log that a kill has cut off stays, and the next one is added to it",
        ("runs/log.py", "                _end_last_line(file)\n", ""),
        tests=("logs/test_run_logs.py::test_a_line_cut_off_by_a_kill_costs_itself_alone",),
    ),
    mutant(
        "table_with_every_log",
        "TRL's completions table comes with every log, whatever log_completions_steps says",
        ("host/trainer.py", "is_due: bool = step // every > self._table_step // every", "is_due = True"),
        tests=(
            "host/test_console.py::test_tables_of_completions_come_with_the_first_log_and_every_so_many_steps",
        ),
    ),
    mutant(
        "time_left_of_the_last_step",
        "the time left is at the pace of training alone, without evaluation and saving",
        (
            "host/console.py",
            "pace = (time.perf_counter() - self._began) / num_done",
            "pace = seconds / steps",
        ),
        tests=("host/test_console.py::test_a_line_has_the_numbers_to_read_first_the_pace_and_the_time_left",),
    ),
    mutant(
        "card_keeps_old_findings",
        "guards.jsonl of an earlier run in the folder counts as this run's",
        ("host/callbacks.py", "            log.begin(state.global_step)", "            pass"),
        tests=("host/test_model_card.py::test_a_run_leaves_a_card_with_what_it_logged",),
    ),
    # ---------------------------------------------------------------- the student's own head
    mutant(
        "students_head_is_copied_apart",
        "a head that has never trained is taken for a matrix when heads are kept apart",
        ("teacher/heads.py", "    if known.head is STUDENT_HEAD:\n        return known\n", ""),
        tests=(HEADS,),
    ),
    mutant(
        "students_head_is_saved",
        "a head that has never trained is taken for a matrix when a checkpoint is written",
        (
            "teacher/heads.py",
            "return None if head is STUDENT_HEAD or scored_by == teacher_state",
            "return None if scored_by == teacher_state",
        ),
        tests=(HEADS,),
    ),
    mutant(
        "head_frozen_since_is_the_students",
        "rollouts in use that were scored with a head which is frozen now are projected with the student's own",
        (
            "teacher/in_use.py",
            "if head is STUDENT_HEAD and past[name] is not None:  # frozen now, and not when they were scored",
            "if False:",
        ),
        tests=("teacher/test_in_use.py::test_a_head_that_is_frozen_since_is_the_one_that_was_saved",),
    ),
    mutant(
        "examples_without_the_students_head",
        "examples know no teacher's head where it is the student's own",
        (
            "teacher/in_use.py",
            "return None if shards_parameters(self._accelerator) else lm_head_of(self._student())",
            "return None",
        ),
        tests=("teacher/test_in_use.py::test_the_whole_head_is_the_students_where_that_never_trained",),
    ),
    # ---------------------------------------------------------------- a resume under another method
    mutant(
        "rollouts_of_another_method_are_trained_on",
        "a run goes on under another method",
        ("rollout/batch_counter.py", "if saved.method != now.method:", "if False:"),
        tests=(f"{COUNT}::test_another_method_is_refused_with_both_names",),
    ),
    mutant(
        "methods_are_told_apart_by_name_alone",
        "a checkpoint does not tell a method from the same one with other options or another router",
        (
            "config/options.py",
            'return ", ".join([self.method, *(f"{name}={value}" for name, value in given.items() if value)])',
            "return self.method",
        ),
        tests=("config/test_method.py::test_a_name_tells_methods_apart",),
    ),
    mutant(
        "another_method_is_gone_on_with_unsaid",
        "nothing is told of a run that goes on under another method or other batch options",
        (
            "host/checkpoint_parts.py",
            "        self.tell(resume_note(saved, now, self.counter.number_of(step)))\n",
            "",
        ),
        tests=(
            "host/test_checkpoint_parts.py"
            "::test_other_options_are_refused_inside_a_rollout_batch_and_told_elsewhere",
        ),
    ),
]
