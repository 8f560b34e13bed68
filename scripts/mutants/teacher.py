"""Mutants of the teacher's weights and ticks."""

from mutant import mutant

TICKS = "teacher/test_teacher.py::test_trainer_updates_the_teacher_once_per_rollout_batch_after_its_last_step"
GAPS = "trainer/test_mutation_gaps.py"

MUTANTS = [
    mutant(
        "ema_direction_swapped",
        "teacher <- rate * teacher + (1 - rate) * student",
        (
            "teacher/weights.py",
            "value.lerp_(student, rate)",
            "value.lerp_(student, 1 - rate)",
        ),
        tests=(
            "teacher/test_teacher.py::test_ema_direction_is_toward_the_student_at_the_rate_given",
            "teacher/test_teacher.py::test_trainer_teacher_moves_by_the_ema_law_of_its_students",
        ),
    ),
    mutant(
        "ema_in_the_models_dtype",
        "the average of a bfloat16 model is kept in bfloat16 and stands still",
        (
            "teacher/weights.py",
            'torch.promote_types(parameter.dtype, torch.float32) if self.kind == "ema" else parameter.dtype',
            "parameter.dtype",
        ),
        tests=("teacher/test_teacher.py::test_ema_follows_one_minus_point_95_to_the_n[dtype1]",),
    ),
    mutant(
        "teacher_aliases_the_student",
        "the teacher's values are the student's own memory: it is always the live student",
        (
            "teacher/weights.py",
            "local_shard(parameter).to(self._store_dtype(parameter), copy=True)",
            "local_shard(parameter).to(self._store_dtype(parameter))",
        ),
        tests=("teacher/test_teacher.py::test_a_moved_student_does_not_move_the_teacher",),
    ),
    mutant(
        "live_teacher_scores",
        "rollouts are scored with the live student's backbone instead of the EMA's",
        (
            "teacher/scoring.py",
            "with _in_evaluation(model), teacher.swapped_in(), autocast:",
            "with _in_evaluation(model), autocast:",
        ),
        tests=(f"{GAPS}::test_later_rollouts_are_scored_with_the_teachers_weights_not_the_students[ema]",),
    ),
    mutant(
        "students_head_for_the_teacher",
        "the teacher's hidden states are projected with the student's head, its gradient attached",
        ("teacher/scoring.py", "weight_VD = teacher.value_of(head.weight_VD)", "weight_VD = head.weight_VD"),
        tests=(f"{GAPS}::test_later_rollouts_are_scored_with_the_teachers_weights_not_the_students[ema]",),
    ),
    mutant(
        "foreign_hidden_states_in_the_students_head",
        "a frozen model that is not the student is projected by the student's head",
        ("teacher/scoring.py", "if model is student and not any(", "if not any("),
        tests=("teacher/test_scoring.py::test_a_frozen_teacher_of_its_own_keeps_its_head",),
    ),
    mutant(
        "live_head_follows_the_student",
        "under the live teacher, old hidden states are projected with the present head",
        ("teacher/scoring.py", '    if teacher.kind == "live" and model is student:', "    if False:"),
        tests=("teacher/test_teacher.py::test_live_teacher_keeps_the_head_of_its_rollouts",),
    ),
    mutant(
        "student_not_restored",
        "after the teacher's pass the student keeps the teacher's values",
        ("teacher/weights.py", "self._swap(self._parts(), set_aside, back=True)", "pass"),
        tests=("teacher/test_teacher.py::test_the_student_is_restored_to_the_bit",),
    ),
    mutant(
        "teacher_with_dropout",
        "the teacher scores in training mode",
        ("teacher/scoring.py", "    model.eval()\n", ""),
        tests=(f"{GAPS}::test_the_teacher_has_no_dropout_and_the_student_keeps_its_own",),
    ),
    mutant(
        "teacher_ticks_every_optimizer_step",
        "the teacher moves at every optimizer step of a rollout batch",
        ("trainer.py", "num_complete = self._counter.take_complete(self._step)\n", "num_complete = 1\n"),
        tests=(f"{TICKS}[iterations]", f"{TICKS}[steps of a batch]"),
    ),
    mutant(
        "teacher_ticks_every_micro_step",
        "the teacher moves at every micro-batch of an optimizer step",
        (
            "host/step_boundary.py",
            '        """Call it."""\n        self._function()\n',
            '        """Call it."""\n        self._function()\n\n    on_substep_end = on_step_end\n',
        ),
        tests=(
            "rollout/test_rollout_batches.py::test_all_updates_come_after_the_optimizer_step_toward_its_student",
        ),
    ),
    mutant(
        "teacher_ticks_twice",
        "the teacher moves twice after a rollout batch",
        (
            "trainer.py",
            "            self._sums.add(**distance_sums(self.teacher.update(num_complete)))\n",
            "            self.teacher.update(num_complete)\n"
            "            self._sums.add(**distance_sums(self.teacher.update(num_complete)))\n",
        ),
        tests=(f"{TICKS}[every step]",),
    ),
    mutant(
        "teacher_ticks_before_the_step",
        "the teacher moves toward the student of before the optimizer step",
        (
            "host/step_boundary.py",
            "self._function = function\n\n    def on_step_end(",
            "self._function = function\n\n    def on_pre_optimizer_step(",
        ),
        tests=(f"{GAPS}::test_the_teacher_moves_toward_the_student_of_after_the_step",),
    ),
]
