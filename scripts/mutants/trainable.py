"""Mutants of what trains: layers that are frozen and unfrozen, PEFT's copies, heads, and copies of the model."""

from mutant import mutant

TRAINABLE = "trainer/test_trainable.py"
COPIES = "trainer/test_model_copies.py::test_a_copy_computes_with_its_own_weights"
LATER = "trainer/test_objective.py::test_a_later_step_equals_the_oracles_with_the_teacher_by_its_law"
AVERAGE = f"{TRAINABLE}::test_teacher_is_the_average_of_all_parameters_whatever_is_frozen"
UNFROZEN = f"{TRAINABLE}::test_head_unfrozen_while_rollouts_are_in_use_leaves_their_teacher_alone"
FROZEN = f"{TRAINABLE}::test_head_that_trained_and_is_frozen_is_still_the_teachers_own"
RESUMED = f"{TRAINABLE}::test_a_resumed_run_goes_on_with_another_set_frozen"
SAVED = "trainer/test_adapters.py::test_saved_embeddings_and_head_train_as_the_modules_themselves"

MUTANTS = [
    mutant(
        "frozen_parameters_looked_up_as_trainable",
        "the teacher finds no parameter that is frozen at present",
        (
            "teacher/weights.py",
            "parameters = parameters_by_name(self._model)\n        gone",
            "parameters = dict(named_trainable(self._model))\n        gone",
        ),
        tests=(f"{AVERAGE}[one block at a time]",),
    ),
    mutant(
        "unfrozen_parameters_not_held",
        "what becomes trainable while training is the student's alone",
        ("trainer.py", "        self.teacher.hold_trainable()\n", ""),
        tests=(
            f"{AVERAGE}[embeddings from later on]",
            f"{UNFROZEN}[head-ema]",
            f"{TRAINABLE}::test_an_adapter_added_while_training_is_taken_up_and_the_first_is_kept",
        ),
    ),
    mutant(
        "average_stands_still_while_frozen",
        "the teacher's value of a parameter does not move while the student's is frozen",
        (
            "teacher/weights.py",
            "            student = parts[name].to(value.dtype)\n",
            "            if not self._parameters()[name].requires_grad:\n                continue\n"
            "            student = parts[name].to(value.dtype)\n",
        ),
        tests=(
            f"{TRAINABLE}::test_a_frozen_parameter_still_draws_the_average",
            f"{AVERAGE}[one block at a time]",
        ),
    ),
    mutant(
        "taken_up_again_when_unfrozen",
        "a parameter that is unfrozen once more gives the teacher the student's value",
        ("teacher/weights.py", "if name not in self._held]", "]"),
        tests=(
            f"{AVERAGE}[one block at a time]",
            f"{TRAINABLE}::test_what_becomes_trainable_starts_as_it_is_and_only_once",
        ),
    ),
    mutant(
        "frozen_head_is_the_students",
        "whether the teacher has a head of its own is asked of what trains at present",
        (
            "teacher/scoring.py",
            "or teacher.holds(tensor) for tensor",
            "or tensor.requires_grad for tensor",
        ),
        tests=(f"{FROZEN}[ema]", f"{FROZEN}[base]"),
    ),
    mutant(
        "head_of_rollouts_in_use_follows",
        "rollouts scored with a head that had never trained are projected with the one that trains",
        (
            "teacher/in_use.py",
            "        self._heads.give_own(teacher_head(student, self.weights, student))\n",
            "",
        ),
        tests=(f"{UNFROZEN}[head-ema]", f"{UNFROZEN}[head-live]", f"{UNFROZEN}[bias-base]"),
    ),
    mutant(
        "live_head_of_rollouts_in_use_taken_again",
        "a live teacher's head is the student's of when its bias was unfrozen",
        (
            "teacher/heads.py",
            "            if known.head is STUDENT_HEAD:\n                self._heads[key]",
            "            if True:\n                self._heads[key]",
        ),
        tests=(f"{TRAINABLE}::test_a_bias_unfrozen_later_leaves_the_live_teachers_head_alone",),
    ),
    mutant(
        "file_of_other_frozen_parameters_half_read",
        "a resumed teacher forgets what it holds of parameters that are frozen at present",
        (
            "teacher/weights.py",
            "self._held |= dict.fromkeys(sorted(names))",
            "self._held |= dict.fromkeys(sorted(names & dict(named_trainable(self._model)).keys()))",
        ),
        tests=(f"{TRAINABLE}::test_a_file_and_a_model_may_differ_in_what_is_frozen",),
    ),
    mutant(
        "initial_weights_forgotten_at_a_resume",
        "a teacher of initial weights starts again from the student that is resumed",
        (
            "teacher/weights.py",
            "            if name in names:\n",
            '            if name in names and self.kind != "base":\n',
        ),
        tests=(f"{RESUMED}[base]",),
    ),
    mutant(
        "live_head_forgotten_at_a_resume",
        "rollouts read from a checkpoint are projected with the student's head of now",
        ("teacher/heads.py", "if head is not STUDENT_HEAD and past is not None:", "if False:"),
        tests=(f"{RESUMED}[live]",),
    ),
    mutant(
        "live_bias_forgotten_at_a_resume",
        "rollouts read from a checkpoint are projected with the student's bias of now",
        (
            "teacher/heads.py",
            "head._replace(weight_VD=past[0], bias_V=past[1])",
            "head._replace(weight_VD=past[0])",
        ),
        tests=(f"{RESUMED}[live]",),
    ),
    mutant(
        "live_bias_follows_the_student",
        "under the live teacher, old hidden states are projected with the present bias",
        (
            "teacher/scoring.py",
            "weight_VD, bias_V = weight_VD.clone(), None if bias_V is None else bias_V.clone()",
            "weight_VD = weight_VD.clone()",
        ),
        tests=(f"{UNFROZEN}[bias-live]",),
    ),
    mutant(
        "computed_head_is_the_students",
        "a head that is computed from parameters is taken for one that never trains",
        (
            "teacher/scoring.py",
            "not isinstance(tensor, nn.Parameter) or teacher.holds(tensor)",
            "teacher.holds(tensor)",
        ),
        tests=(f"{TRAINABLE}::test_a_head_that_is_computed_is_the_teachers",),
    ),
    mutant(
        "gradient_shares_of_the_first_parameters",
        "gradients are asked for of parameters that are frozen",
        ("loss/gradient_norms.py", " if p.requires_grad}", "}"),
        tests=(
            f"{TRAINABLE}::test_gradient_shares_follow_what_is_trainable",
            f"{TRAINABLE}::test_branch_gradients_are_of_the_parameters_trainable_when_a_loss_is_added",
        ),
    ),
    mutant(
        "saved_head_refused",
        "an adapter with a copy of the LM head cannot be trained",
        ("host/arguments.py", ' and kind.__name__ != "ModulesToSaveWrapper"', ""),
        tests=(f"{SAVED}[both-ema]",),
    ),
    mutant(
        "head_before_the_adapters_copy",
        "the LM head is the one that the adapter's copy replaces",
        (
            "loss/head.py",
            "    module = embedded.get_output_embeddings()\n",
            "    module = embedded.get_output_embeddings()\n"
            '    module = getattr(module, "original_module", module)\n',
        ),
        tests=(
            f"{SAVED}[both-ema]",
            "trainer/test_adapters.py::test_head_is_the_adapters_copy_that_the_forward_uses",
        ),
    ),
    mutant(
        "adapter_of_the_head_added_later_trains_unread",
        "an adapter of the LM head that a callback adds is not refused",
        ("teacher/in_use.py", "        self._check_student(student)\n", ""),
        tests=(f"{TRAINABLE}::test_an_adapter_of_the_head_added_while_training_is_refused",),
    ),
    mutant(
        "copy_runs_the_first_model",
        "the forward holds the model it was made for",
        (
            "loss/student.py",
            "    trl_forward = model.forward.__func__  # type: ignore[attr-defined]\n",
            "    bound = model.forward\n\n    def trl_forward(self, *args, **kwargs):\n"
            "        return bound(*args, **kwargs)\n\n",
        ),
        tests=(f"{COPIES}[plain]", f"{COPIES}[adapter]", f"{COPIES}[bfloat16]"),
    ),
    mutant(
        "copy_runs_trls_first_model",
        "TRL's forward keeps the model it was made for",
        (
            "host/trainer.py",
            "        use_own_weights(self.student, scores_labelled_only=not args.method_record.is_plain)\n",
            "",
        ),
        tests=(f"{COPIES}[plain]", f"{COPIES}[grpo]"),
    ),
    mutant(
        "copy_runs_the_first_models_float32_head",
        "the LM head in float32 is the first model's",
        ("seams/own_forward.py", "if head is not None and has_float32_forward(head):", "if False:"),
        tests=(f"{COPIES}[float32 head]", f"{COPIES}[float32 saved head]"),
    ),
    mutant(
        "copy_keeps_the_first_model",
        "a copy computes with its own weights and keeps the first model in memory",
        ("seams/trl.py", "    cells[_REPLACED_FORWARD] = types.CellType(None)\n", ""),
        tests=("trainer/test_model_copies.py::test_a_copy_keeps_no_other_model_in_memory",),
    ),
    mutant(
        "copy_runs_the_first_models_hook",
        "a copy of a model with a hook on its forward runs the first model's",
        (
            "seams/own_forward.py",
            "    return getattr(self, _REPLACED)(*args, **kwargs)",
            "    return _HOOKS[0](*args, **kwargs)",
        ),
        (
            "seams/own_forward.py",
            "        setattr(model, _REPLACED, method)  # copied with the model, as the hook is\n",
            "        _HOOKS[:] = [method]\n",
        ),
        (
            "seams/own_forward.py",
            "\n\ndef _replaced_forward",
            "\n\n_HOOKS: list = []\n\n\ndef _replaced_forward",
        ),
        tests=("trainer/test_model_copies.py::test_a_hook_on_the_model_is_copied_with_it",),
    ),
    mutant(
        "teacher_without_its_bias",
        "the teacher's head has the student's bias in place of its own",
        (
            "teacher/scoring.py",
            "return head._replace(weight_VD=weight_VD, bias_V=bias_V)",
            "return head._replace(weight_VD=weight_VD)",
        ),
        tests=(f"{LATER}[bias]", f"{LATER}[bias, initial weights]", f"{FROZEN}[ema]"),
    ),
    mutant(
        "teacher_without_any_bias",
        "the teacher's head has no bias",
        (
            "teacher/scoring.py",
            "bias_V = None if head.bias_V is None else teacher.value_of(head.bias_V)",
            "bias_V = None",
        ),
        tests=(f"{LATER}[bias]", f"{LATER}[bias, sampled token]"),
    ),
    mutant(
        "teacher_without_soft_cap",
        "the teacher's logits are not capped",
        (
            "teacher/scoring.py",
            "return head._replace(weight_VD=weight_VD, bias_V=bias_V)",
            "return head._replace(weight_VD=weight_VD, bias_V=bias_V, softcap=None)",
        ),
        tests=(f"{LATER}[soft cap]",),
    ),
    mutant(
        "teacher_without_logit_scale",
        "the teacher's logits are not scaled",
        (
            "teacher/scoring.py",
            "return head._replace(weight_VD=weight_VD, bias_V=bias_V)",
            "return head._replace(weight_VD=weight_VD, bias_V=bias_V, logit_scale=1.0)",
        ),
        tests=(f"{LATER}[scale]", f"{LATER}[divisor]"),
    ),
    mutant(
        "entropies_of_the_students_head",
        "the teacher's entropies, and so the token weights, come from the student's bias",
        (
            "teacher/scoring.py",
            "        head = gathered_head(lm_head_of(model), scored_BT.device)\n",
            "        head = gathered_head(lm_head_of(model), scored_BT.device)\n"
            "        head = head._replace(bias_V=None)\n",
        ),
        tests=(f"{LATER}[bias, temperature]",),
    ),
    mutant(
        "pull_pushes",
        "a method's pull has the other sign",
        ("loss/step_totals.py", "return -(pull_BT * logps_BT).sum()", "return (pull_BT * logps_BT).sum()"),
        tests=("trainer/test_family.py::test_a_pull_by_the_advantage_is_grpos_first_update",),
    ),
    mutant(
        "weights_as_they_are_are_normalized",
        "weights that a method wants as they are get mean 1",
        ("rollout/coefficients.py", "if not method.mean_one:", "if False:"),
        tests=("trainer/test_family.py::test_paceds_weights_are_used_as_they_are",),
    ),
    mutant(
        "no_importance_clip_clips",
        "without a clip the importance ratio still weighs tokens",
        (
            "loss/student.py",
            "importance_clip=args.distillation_is_clip,",
            "importance_clip=args.distillation_is_clip or 2.0,",
        ),
        tests=("trainer/test_objective.py::test_second_iteration_uses_the_old_policy_and_clips[None]",),
    ),
]
