"""Mutants of checkpoints and resuming."""

from mutant import mutant

GAPS = "trainer/test_mutation_gaps.py"
WHOLE = "host/test_whole_checkpoints.py"
LOCK = "host/test_run_lock.py"
READ = "host/test_read_back.py"
BETWEEN = "host/test_between_steps.py"
FAULTS = "host/test_faults_checkpoints.py"
MANIFEST = "host/manifest.py"
RESUMABLE = "host/resumable.py"
CHECKPOINTS = "host/checkpoints.py"
PARTS = "host/checkpoint_parts.py"

MUTANTS = [
    mutant(
        "resume_without_rollouts",
        "a run resumed inside a rollout batch samples a new one",
        (PARTS, "            self.set_batches(batches)\n", ""),
        tests=(
            "host/test_resume.py::test_resumed_run_equals_uninterrupted_run[inside a rollout batch-full]",
        ),
    ),
    mutant(
        "resume_without_teacher",
        "a resumed run starts with a new teacher",
        (
            "host/objects.py",
            "OwnFile(teacher.save, teacher.load)",
            "OwnFile(teacher.save, lambda folder: None)",
        ),
        tests=("host/test_resume.py::test_resumed_run_equals_uninterrupted_run[one step a batch-full]",),
    ),
    mutant(
        "resume_without_counters",
        "a resumed run counts its micro-batches from 0",
        (PARTS, "        self.set_step(step)\n", "        self.set_step(0)\n"),
        tests=(
            "host/test_resume.py::test_resumed_run_equals_uninterrupted_run[inside a rollout batch-full]",
        ),
    ),
    mutant(
        "resume_without_sampler_epoch",
        "a resumed run meets the first epoch's order of prompts",
        ("host/prompt_order.py", "        if self.shuffle:\n", "        if False:\n"),
        tests=("host/test_resume.py::test_resumed_run_equals_uninterrupted_run[one step a batch-full]",),
    ),
    mutant(
        "resume_on_processes_without_epoch",
        "on several processes a resumed run meets the first epoch's order of prompts",
        (
            "host/trainer.py",
            "        self.prompt_order.begin_epoch(",
            "        if self.accelerator.num_processes == 1:\n            self.prompt_order.begin_epoch(",
        ),
        tests=("trainer/test_processes.py::test_resume_on_two_processes[epochs]",),
    ),
    mutant(
        "every_epoch_in_the_same_order",
        "each epoch, resumed or not, has the first one's order of prompts",
        ("host/prompt_order.py", "for _ in range(epoch):", "for _ in range(0):"),
        tests=(f"{GAPS}::test_an_epoch_that_is_set_has_the_order_of_trls_sampler",),
    ),
    mutant(
        "checkpoint_published_before_the_teacher",
        "a checkpoint takes its final name before the teacher is saved in it",
        (
            CHECKPOINTS,
            "            for part in self.parts:\n"
            "                part.save(staged, self._accelerator.process_index, writes=self._writes)\n",
            "",
        ),
        (
            CHECKPOINTS,
            "                publish(run_dir, name)\n",
            "                publish(run_dir, name)\n"
            "            for part in self.parts:\n"
            "                part.save(Path(run_dir) / name, self._accelerator.process_index, writes=self._writes)\n"
            "            if self._writes:\n",
        ),
        tests=(
            "host/test_checkpoints.py::test_a_part_that_cannot_be_written_leaves_nothing",
            "host/test_resume.py::test_interrupted_save_is_never_chosen_and_costs_nothing",
        ),
    ),
    mutant(
        "finished_run_trains_on",
        "a finished run that is resumed takes one step more",
        (
            "host/trainer.py",
            "if self.control.should_training_stop or self.state.global_step >= self.state.max_steps:",
            "if self.control.should_training_stop:",
        ),
        tests=("host/test_resume.py::test_finished_run_that_is_resumed_trains_no_further",),
    ),
    mutant(
        "pickles_are_loaded",
        "rollouts of a checkpoint are unpickled",
        (
            PARTS,
            'map_location="cpu", weights_only=True',
            'map_location="cpu", weights_only=False',
        ),
        tests=("project/test_security.py::test_source_reads_no_pickle_and_runs_no_text",),
    ),
    mutant(
        "checkpoint_of_another_engine",
        "a checkpoint that another engine wrote is resumed, with a new optimizer",
        (PARTS, "        if saved != now:\n", "        if False:\n"),
        tests=("host/test_resume.py::test_checkpoint_of_another_engine_is_refused_before_it_is_loaded",),
    ),
    mutant(
        "last_checkpoint_removed_at_the_end",
        "a run whose best checkpoint is an earlier one ends without its last",
        (
            "host/trainer.py",
            "self.args.save_total_limit if self.args.method_record.is_plain else None",
            "self.args.save_total_limit",
        ),
        tests=("evaluation/test_evaluation.py::test_best_checkpoint_is_kept_and_loaded",),
    ),
    mutant(
        "grpo_keeps_the_last_checkpoint",
        "with grpo a finished run leaves a checkpoint that GRPOTrainer removes",
        (
            "host/trainer.py",
            "self.args.save_total_limit if self.args.method_record.is_plain else None",
            "None",
        ),
        tests=(
            "host/test_grpo_checkpoints.py::test_grpo_leaves_the_checkpoints_and_files_that_grpo_trainer_leaves[1]",
        ),
    ),
    mutant(
        "contents_are_not_compared",
        "a file of a checkpoint that has changed inside counts as whole",
        (MANIFEST, 'return "" if _sha256(path) == entry["sha256"] else', 'return "" if True else'),
        tests=(f"{WHOLE}::test_a_broken_file_is_named_and_the_checkpoint_passed_over",),
    ),
    mutant(
        "missing_files_are_no_flaw",
        "a checkpoint without its optimizer counts as whole",
        (MANIFEST, '        return f"{name} is missing"\n', '        return ""\n'),
        tests=(f"{WHOLE}::test_a_broken_file_is_named_and_the_checkpoint_passed_over",),
    ),
    mutant(
        "checkpoint_without_a_list",
        "the list of a checkpoint's files is not written",
        (CHECKPOINTS, "                self._manifest.write(staged)\n", "                pass\n"),
        tests=(f"{WHOLE}::test_the_list_holds_every_file_with_its_size_and_checksum",),
    ),
    mutant(
        "named_checkpoint_is_not_checked",
        "a broken checkpoint that is named is loaded",
        (CHECKPOINTS, "        self.check_whole(folder)\n", ""),
        tests=(f"{WHOLE}::test_a_checkpoint_named_by_hand_is_refused_before_anything_is_loaded",),
    ),
    mutant(
        "best_checkpoint_is_not_checked",
        "a broken checkpoint is loaded as the best at the end",
        ("host/trainer.py", "        self.checkpoints.check_whole(best, to_resume=False)\n", ""),
        tests=(f"{WHOLE}::test_a_best_checkpoint_that_is_broken_is_not_loaded",),
    ),
    mutant(
        "model_alone_is_resumed",
        "a checkpoint of the model alone is gone on from, with a new optimizer",
        ("host/objects.py", "is_resumable=not args.save_only_model", "is_resumable=True"),
        tests=(f"{WHOLE}::test_a_checkpoint_of_the_model_alone_is_not_resumed",),
    ),
    mutant(
        "rotation_by_the_clock",
        "older checkpoints are those whose folders were changed earlier",
        (
            MANIFEST,
            "return sorted((int(step), path) for step, path in named if step.isascii() and step.isdecimal())",
            "return sorted(((int(step), path) for step, path in named if step.isdecimal()), "
            "key=lambda item: item[1].stat().st_mtime)",
        ),
        (MANIFEST, "key=lambda step: (step <= current, step))", "key=lambda step: 0)"),
        tests=(f"{WHOLE}::test_rotation_does_not_look_at_the_clock",),
    ),
    mutant(
        "rotation_takes_later_steps_for_newer",
        "a run that goes back to an earlier checkpoint keeps those of the run before",
        (MANIFEST, "key=lambda step: (step <= current, step))", "key=lambda step: step)"),
        tests=(f"{WHOLE}::test_a_run_that_goes_back_keeps_what_it_writes",),
    ),
    mutant(
        "experts_are_not_read_back",
        "a mixture of experts is resumed with the experts of the model that was passed in",
        (
            "host/read_back.py",
            "if isinstance(model, PreTrainedModel) and conversions_of(model):",
            "if False:",
        ),
        ("host/read_back.py", "    if unread or left_over:\n", "    if False:\n"),
        tests=(f"{READ}::test_a_resumed_mixture_of_experts_ends_as_the_run_that_never_stopped[full]",),
    ),
    mutant(
        "keys_that_do_not_fit_are_passed_over",
        "parameters that a checkpoint does not hold stay as they were",
        ("host/read_back.py", "    if unread or left_over:\n", "    if False:\n"),
        tests=(f"{READ}::test_keys_that_do_not_fit_stop_a_resume",),
    ),
    mutant(
        "adapters_keys_are_passed_over",
        "parameters that an adapter's file does not hold stay as they were",
        ("host/read_back.py", "    if isinstance(model, PeftModel):\n", "    if False:\n"),
        tests=(f"{READ}::test_keys_that_do_not_fit_stop_a_resume[lora-missing]",),
    ),
    mutant(
        "two_runs_in_one_folder",
        "a second run takes the folder of the first",
        ("host/run_lock.py", "            if not is_gone:\n", "            if False:\n"),
        tests=(f"{LOCK}::test_a_second_run_is_refused_before_it_writes_and_the_first_goes_on",),
    ),
    mutant(
        "killed_run_keeps_its_folder",
        "the lock of a run that was killed holds forever",
        (
            "host/run_lock.py",
            "        except psutil.NoSuchProcess:\n            return True\n",
            "        except psutil.NoSuchProcess:\n            return False\n",
        ),
        tests=(f"{LOCK}::test_a_process_that_is_gone_has_left_its_lock_behind",),
    ),
    mutant(
        "reused_number_keeps_the_folder",
        "a process with the number of one that was killed is taken for the run",
        ("host/run_lock.py", "self.booted)) > _CLOCK_TOLERANCE", "self.booted)) > 1e12"),
        tests=(f"{LOCK}::test_a_number_that_another_process_has_now_is_no_run",),
    ),
    mutant(
        "folder_is_not_given_back",
        "a run that ended keeps its folder from the next of its process",
        (CHECKPOINTS, "                self._lock.release()\n", ""),
        tests=(f"{LOCK}::test_trainers_one_after_another_share_a_folder",),
    ),
    mutant(
        "saves_inside_a_step",
        "a checkpoint is written inside an optimizer step",
        (
            CHECKPOINTS,
            "        if not self._boundary.is_inside:\n            return False\n",
            "        return False\n",
        ),
        tests=(f"{BETWEEN}::test_a_save_inside_a_step_comes_at_its_end",),
    ),
    mutant(
        "preempted_inside_a_step",
        "a preemption signal writes a checkpoint before the optimizer's step",
        (
            CHECKPOINTS,
            "        if not self._boundary.is_inside:\n            return False\n",
            "        return False\n",
        ),
        ("host/step_boundary.py", "if isinstance(callback, JITCheckpointCallback):", "if False:"),
        tests=(f"{BETWEEN}::test_a_preempted_run_goes_on_to_the_same_weights",),
    ),
    mutant(
        "stops_inside_a_step",
        "a run stops between two micro-batches",
        (
            "host/step_boundary.py",
            "        control.should_training_stop = control.should_epoch_stop = False\n",
            "",
        ),
        tests=(f"{BETWEEN}::test_a_stop_inside_a_step_comes_at_its_end",),
    ),
    mutant(
        "every_failed_write_is_a_full_disk",
        "a limit on the size of files is reported as a full disk",
        ("host/write_failures.py", "_CAUSES.get(number, _UNKNOWN) if", "_CAUSES[errno.ENOSPC] if"),
        tests=(f"{FAULTS}::test_a_write_that_fails_is_named_as_what_it_is",),
    ),
    mutant(
        "clock_that_is_set_ends_runs",
        "a living run's lock is taken for one left behind once the clock has been set",
        (
            "host/run_lock.py",
            "abs((started - booted) - (self.started - self.booted))",
            "abs(started - self.started)",
        ),
        tests=(f"{LOCK}::test_a_clock_that_is_set_ends_no_run",),
    ),
    mutant(
        "locks_of_any_values",
        "a lock with values of another kind ends the run in a TypeError",
        (
            "host/run_lock.py",
            "return found if is_text and is_process and are_times else None",
            "return found",
        ),
        tests=(f"{LOCK}::test_a_lock_with_values_of_another_kind_cannot_be_read",),
    ),
    mutant(
        "lists_of_any_entries",
        "a checkpoint whose list names no files is whole",
        (MANIFEST, "if not isinstance(files, dict) or not files:", "if not isinstance(files, dict):"),
        tests=(f"{WHOLE}::test_a_list_that_has_changed_is_named",),
    ),
    mutant(
        "copies_without_teacher",
        "a copy of a checkpoint that broke off before the list and the teacher is chosen",
        (
            "host/unlisted.py",
            "return _missing_parts(folder) or _missing_of_srpo(folder)",
            "return _missing_parts(folder)",
        ),
        tests=(f"{WHOLE}::test_a_copy_that_broke_off_before_the_list_is_passed_over",),
    ),
    mutant(
        "copies_without_weights",
        "a copy of a checkpoint that broke off before the list and the weights is chosen",
        (
            "host/unlisted.py",
            'return "" if has_weights else "model.safetensors is missing, and there are no other weights"',
            'return ""',
        ),
        tests=(f"{WHOLE}::test_a_copy_that_broke_off_before_the_list_is_passed_over",),
    ),
    mutant(
        "best_checkpoint_lost_with_a_rename",
        "a finished run that is resumed in a renamed folder keeps its last model",
        ("host/trainer.py", "            self.checkpoints.find_best(self.state)\n", "            pass\n"),
        tests=(f"{WHOLE}::test_a_run_that_was_moved_finds_its_best_checkpoint",),
    ),
]
