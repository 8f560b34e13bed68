"""Mutants of checkpoints and resuming."""

from mutant import mutant

GAPS = "test_mutation_gaps.py"

MUTANTS = [
    mutant(
        "resume_without_rollouts",
        "a run resumed inside a rollout batch samples a new one",
        ("taught_rollouts.py", "self._buffered_inputs = rollouts.batches", "self._buffered_inputs = None"),
        tests=("test_resume.py::test_resumed_run_equals_uninterrupted_run[inside a rollout batch-full]",),
    ),
    mutant(
        "resume_without_teacher",
        "a resumed run starts with a new teacher",
        ("taught_rollouts.py", "        self._teacher.load(folder)\n", ""),
        tests=("test_resume.py::test_resumed_run_equals_uninterrupted_run[one step a batch-full]",),
    ),
    mutant(
        "resume_without_counters",
        "a resumed run counts its micro-batches from 0",
        (
            "taught_rollouts.py",
            "self._step = resumed_micro_batches(state.micro_step, saved, now, has_rollouts=state.has_rollouts)",
            "self._step = 0",
        ),
        tests=("test_resume.py::test_resumed_run_equals_uninterrupted_run[inside a rollout batch-full]",),
    ),
    mutant(
        "resume_without_sampler_epoch",
        "a resumed run meets the first epoch's order of prompts",
        ("base_trainers/sampler.py", "        if self.shuffle:\n", "        if False:\n"),
        tests=("test_resume.py::test_resumed_run_equals_uninterrupted_run[one step a batch-full]",),
    ),
    mutant(
        "resume_on_processes_without_epoch",
        "on several processes a resumed run meets the first epoch's order of prompts",
        (
            "base_trainers/resumable.py",
            "        if self._train_sampler is not None:",
            "        if self.accelerator.num_processes == 1:",
        ),
        tests=("test_processes.py::test_resume_on_two_processes[epochs]",),
    ),
    mutant(
        "every_epoch_in_the_same_order",
        "each epoch, resumed or not, has the first one's order of prompts",
        ("base_trainers/sampler.py", "for _ in range(epoch):", "for _ in range(0):"),
        tests=(f"{GAPS}::test_an_epoch_that_is_set_has_the_order_of_trls_sampler",),
    ),
    mutant(
        "checkpoint_published_before_the_teacher",
        "a checkpoint takes its final name before the teacher is saved in it",
        (
            "base_trainers/resumable.py",
            "        self._save_run_state(staged)\n        return staged",
            "        return staged",
        ),
        (
            "base_trainers/resumable.py",
            "                self._publish(run_dir, staged)\n",
            "                self._publish(run_dir, staged)\n            self._save_run_state(Path(run_dir) / name)\n",
        ),
        tests=("test_resume.py::test_interrupted_save_is_never_chosen_and_costs_nothing[save_state]",),
    ),
    mutant(
        "finished_run_trains_on",
        "a finished run that is resumed takes one step more",
        (
            "base_trainers/resumable.py",
            "if self.control.should_training_stop or self.state.global_step >= self.state.max_steps:",
            "if self.control.should_training_stop:",
        ),
        tests=("test_resume.py::test_finished_run_that_is_resumed_trains_no_further",),
    ),
    mutant(
        "pickles_are_loaded",
        "rollouts of a checkpoint are unpickled",
        (
            "base_trainers/checkpointing.py",
            'map_location="cpu", weights_only=True',
            'map_location="cpu", weights_only=False',
        ),
        tests=("test_security.py::test_source_reads_no_pickle_and_runs_no_text",),
    ),
    mutant(
        "checkpoint_of_another_engine",
        "a checkpoint that another engine wrote is resumed, with a new optimizer",
        ("base_trainers/checkpointing.py", "        if self.engine != engine:\n", "        if False:\n"),
        tests=("test_resume.py::test_checkpoint_of_another_engine_is_refused_before_it_is_loaded",),
    ),
    mutant(
        "last_checkpoint_removed_at_the_end",
        "a run whose best checkpoint is an earlier one ends without its last",
        (
            "base_trainers/resumable.py",
            "limit, self.args.save_total_limit = self.args.save_total_limit, None",
            "limit = self.args.save_total_limit",
        ),
        tests=("test_evaluation.py::test_best_checkpoint_is_kept_and_loaded",),
    ),
]
