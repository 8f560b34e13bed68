"""Mutants of divergences, weights and their operators."""

from mutant import mutant

OBJECTIVE = "trainer/test_objective.py::test_loss_and_gradient_equal_the_oracles"

MUTANTS = [
    mutant(
        "kls_swapped",
        "alpha 0 is the reverse KL and 1 the forward KL",
        ("loss/divergence.py", "{0.0: forward_kl, 1.0: reverse_kl}", "{1.0: forward_kl, 0.0: reverse_kl}"),
        tests=(
            "loss/test_losses.py::test_divergence_on_topk_is_the_oracles",
            "loss/test_losses.py::test_divergence_on_topk_is_trls",
        ),
    ),
    mutant(
        "kls_swapped_in_closed_form",
        "the same in the chunked operator",
        (
            "loss/ops/token_losses.py",
            "if alpha == 0.0:\n        teacher_probs",
            "if alpha == 1.0:\n        teacher_probs",
        ),
        (
            "loss/ops/token_losses.py",
            "if alpha == 1.0:\n        student_probs",
            "if alpha == 0.0:\n        student_probs",
        ),
        tests=(
            "loss/test_ops.py::test_chunked_is_the_reference[5-33-7]",
            f"{OBJECTIVE}[forward KL]",
            f"{OBJECTIVE}[reverse KL]",
        ),
    ),
    mutant(
        "mixture_weights_swapped",
        "Jensen-Shannon's mixture is alpha p + (1 - alpha) q",
        (
            "loss/divergence.py",
            "student_logps_NK + math.log1p(-alpha)",
            "student_logps_NK + math.log(alpha)",
        ),
        (
            "loss/divergence.py",
            "teacher_logps_NK.detach() + math.log(alpha)",
            "teacher_logps_NK.detach() + math.log1p(-alpha)",
        ),
        tests=("loss/test_losses.py::test_divergences_of_two_coins_by_hand",),
    ),
    mutant(
        "jensen_shannon_weights_swapped",
        "Jensen-Shannon weighs the teacher's term by 1 - alpha",
        (
            "loss/divergence.py",
            "return alpha * teacher_term_N + (1.0 - alpha) * ",
            "return (1.0 - alpha) * teacher_term_N + alpha * ",
        ),
        tests=("loss/test_losses.py::test_divergences_of_two_coins_by_hand",),
    ),
    mutant(
        "teachers_topk",
        "the support is the teacher's top K instead of the student's",
        (
            "loss/divergence.py",
            "indices_NK = student_topk(student_logps_NV, topk)",
            "indices_NK = student_topk(teacher_logps_NV, topk)",
        ),
        tests=("loss/test_losses.py::test_support_is_the_students_not_the_teachers",),
    ),
    mutant(
        "not_the_topk_in_closed_form",
        "the support of the chunked operator is not the student's top K",
        (
            "loss/ops/token_losses.py",
            "logits_RV.topk(topk, dim=-1).indices",
            "(-logits_RV).topk(topk, dim=-1).indices",
        ),
        tests=("loss/test_ops.py::test_chunked_is_the_reference[5-33-7]", f"{OBJECTIVE}[srpo]"),
    ),
    mutant(
        "tail_dropped",
        "the top K is renormalized although the tail was asked for",
        (
            "loss/ops/token_losses.py",
            "    if not spec.add_tail:\n",
            "    if True:\n",
        ),
        tests=("loss/test_ops.py::test_chunked_is_the_reference[5-33-7]", f"{OBJECTIVE}[srpo]"),
    ),
    mutant(
        "tails_gradient_dropped",
        "no gradient reaches the tokens outside the top K",
        (
            "loss/ops/token_losses.py",
            "grad_top_RK, grad_tail_R / bounded_tail_R - total_R)",
            "grad_top_RK, torch.zeros_like(divergence_R))",
        ),
        tests=(
            "loss/test_ops.py::test_gradient_is_the_numerical_one[3-True-0.5-chunked]",
            f"{OBJECTIVE}[srpo]",
        ),
    ),
    mutant(
        "tail_as_one_minus_a_sum",
        "the tail's mass is one minus the mass of the top K, in which a small one loses its digits",
        (
            "loss/divergence.py",
            "outside_NV.logsumexp(-1, keepdim=True).clamp(min=math.log(MIN_TAIL_MASS))",
            "(1 - logps_NV.gather(-1, indices_NK).exp().sum(-1, keepdim=True)).clamp(min=MIN_TAIL_MASS).log()",
        ),
        tests=(
            "loss/test_losses.py::test_a_small_tail_has_all_its_digits",
            "loss/test_losses.py::test_gradient_of_a_small_tail_is_the_float64_one",
            "loss/test_ops.py::test_gradient_of_a_small_tail_is_the_float64_one",
        ),
    ),
    mutant(
        "tail_as_one_minus_a_sum_in_closed_form",
        "the same in the chunked operator",
        (
            "loss/ops/token_losses.py",
            "tail_R = tail_R / denominator_R",
            "tail_R = 1 - (logits_RW[:, 1:] - largest_R1).exp().sum(-1) / denominator_R",
        ),
        tests=("loss/test_ops.py::test_gradient_of_a_small_tail_is_the_float64_one",),
    ),
    mutant(
        "entropy_of_the_topk",
        "the teacher's entropy is that of its top 5 tokens, not of the full vocabulary",
        (
            "loss/ops/chunked.py",
            "row_statistics_(logits_CV[local])",
            "row_statistics_(logits_CV[local].topk(5, dim=-1).values)",
        ),
        tests=(
            "loss/test_ops.py::test_token_statistics_are_the_oracles",
            "trainer/test_objective.py::test_route_metrics_equal_the_oracles",
        ),
    ),
    mutant(
        "row_constant_without_the_support",
        "the tokens off the support do not feel that the support's probabilities sum up with theirs",
        (
            "loss/ops/token_losses.py",
            "grad_tail_R / bounded_tail_R - total_R)",
            "grad_tail_R / bounded_tail_R)",
        ),
        tests=("loss/test_ops.py::test_gradient_is_the_numerical_one[3-True-0.5-chunked]",),
    ),
    mutant(
        "supports_own_gradient_dropped",
        "the support's tokens have no gradient beside the row constant's",
        (
            "loss/ops/chunked.py",
            "        grad_RV.scatter_(-1, gradient_ids(rows), terms.grad_RK)\n",
            "",
        ),
        tests=(
            "loss/test_ops.py::test_gradient_is_the_numerical_one[3-True-0.5-chunked]",
            f"{OBJECTIVE}[srpo]",
        ),
    ),
    mutant(
        "teachers_tail_never_summed",
        "the teacher's tail is one minus a sum where reverse KL divides by it",
        ("loss/ops/teacher_rows.py", "if may_sum_tails(spec):", "if False:"),
        tests=("loss/test_ops.py::test_gradient_of_a_small_tail_is_the_float64_one",),
    ),
    mutant(
        "noise_of_a_tail_is_a_divergence",
        "what rounding leaves of one minus a sum is the teacher's tail where both sides are sure",
        (
            "loss/ops/teacher_rows.py",
            "torch.where(is_noise_R, student_tail_R.to(tail_R.dtype), tail_R)",
            "tail_R",
        ),
        tests=("loss/test_ops.py::test_tokens_that_both_sides_are_sure_of_have_no_divergence",),
    ),
    mutant(
        "teachers_support_is_not_normalized",
        "the teacher's masses on the support and outside do not sum to 1",
        (
            "loss/ops/teacher_rows.py",
            "top_logps_RK.sub_((top_R + tail_R)",
            "top_logps_RK.clone().sub_((top_R + tail_R)",
        ),
        tests=("loss/test_ops.py::test_tokens_that_both_sides_are_sure_of_have_no_divergence",),
    ),
    mutant(
        "level_of_the_teachers_logits_stays",
        "logits of a high level are renormalized by a log-sum-exp of their size",
        ("loss/ops/teacher_rows.py", "logits_RW.amax(-1) if", "torch.zeros_like(logits_RW[:, 0]) if"),
        tests=("loss/test_ops.py::test_a_level_that_all_logits_share_costs_no_digits",),
    ),
    mutant(
        "log_sum_exp_of_other_tokens",
        "the log-sum-exp that the rollouts carry is another token's",
        (
            "rollout/coefficients.py",
            "else scores.log_sum_exp_BT[distilled_BT]",
            "else scores.log_sum_exp_BT[distilled_BT].flip(0)",
        ),
        tests=(f"{OBJECTIVE}[srpo]",),
    ),
    mutant(
        "log_sum_exp_of_the_teacher_in_hand",
        "the log-sum-exp is made anew by a head that the teacher's update has moved since",
        (
            "rollout/coefficients.py",
            "else scores.log_sum_exp_BT[distilled_BT]",
            "else scores.log_sum_exp_BT[distilled_BT] * (1 + 0.01 * step)",
        ),
        tests=(
            "trainer/test_objective.py::test_a_later_step_equals_the_oracles_with_the_teacher_by_its_law",
        ),
    ),
    mutant(
        "teachers_temperature_ignored",
        "the divergence divides the student's logits by the temperature, the teacher's not",
        (
            "loss/ops/chunked.py",
            "logps_RW = teacher_logps(hidden_RD, head, rows.ids_RW, log_sum_exp_R, spec.temperature,",
            "logps_RW = teacher_logps(hidden_RD, head, rows.ids_RW, log_sum_exp_R, 1.0,",
        ),
        tests=(f"{OBJECTIVE}[temperature]",),
    ),
    mutant(
        "entropys_temperature_ignored",
        "the entropy of the weights is that at temperature 1",
        (
            "teacher/scoring.py",
            "token_statistics(hidden_ND, head, temperature, refuse_nonfinite=False)",
            "token_statistics(hidden_ND, head, 1.0, refuse_nonfinite=False)",
        ),
        tests=(f"{OBJECTIVE}[temperature]",),
    ),
    mutant(
        "importance_ratio_uncapped",
        "the importance clip is off",
        ("loss/importance.py", ".exp().clamp(max=clip)", ".exp()"),
        tests=(
            "loss/test_losses.py::test_importance_ratio_is_the_oracles[2.0]",
            "loss/test_losses.py::test_importance_ratio_is_trls_bit_for_bit",
        ),
    ),
    mutant(
        "importance_ratio_inverted",
        "the importance ratio is pi_old / pi_theta",
        (
            "loss/importance.py",
            "log_ratio = student_logps.detach().to(dtype) - old_logps.detach().to(dtype)",
            "log_ratio = old_logps.detach().to(dtype) - student_logps.detach().to(dtype)",
        ),
        tests=(
            "loss/test_losses.py::test_importance_ratio_is_the_oracles[2.0]",
            "trainer/test_objective.py::test_second_iteration_uses_the_old_policy_and_clips",
        ),
    ),
    mutant(
        "importance_ratio_with_gradient",
        "a gradient flows through the importance ratio",
        ("loss/importance.py", "student_logps.detach().to(dtype)", "student_logps.to(dtype)"),
        tests=("loss/test_losses.py::test_importance_ratio_is_detached_and_float32[2.0]",),
    ),
    mutant(
        "teacher_not_detached",
        "a gradient flows to the teacher through the divergence",
        (
            "loss/divergence.py",
            "return _relative_entropy(student_logps_NK, teacher_logps_NK.detach())",
            "return _relative_entropy(student_logps_NK, teacher_logps_NK)",
        ),
        tests=("loss/test_losses.py::test_no_gradient_flows_to_the_teacher[reverse_kl]",),
    ),
    mutant(
        "infinite_logits_are_trained_on",
        "an infinite student logit outside the top K leaves the loss finite, and nobody hears of it",
        ("loss/ops/__init__.py", "result.loss * torch.where(is_finite, 1.0, torch.nan)", "result.loss"),
        tests=("loss/test_ops.py::test_infinite_logits_are_refused",),
    ),
    mutant(
        "infinite_teacher_logits_are_taken",
        "an infinite teacher logit is not refused when the rollouts are scored",
        (
            "loss/ops/__init__.py",
            '_refuse_infinite_logits("teacher", statistics.entropy_N.isfinite().all())',
            "pass",
        ),
        tests=("loss/test_ops.py::test_infinite_logits_are_refused",),
    ),
    mutant(
        "clipped_entries_are_learned_from",
        "an entry above the pointwise clip keeps its gradient",
        ("loss/ops/token_losses.py", "        grad_RK.masked_fill_(share_RK > clip, 0.0)\n", ""),
        tests=(
            "loss/test_entry_clip.py::test_half_of_the_entries_are_clipped",
            "loss/test_entry_clip.py::test_nothing_is_learned_where_everything_is_clipped",
        ),
    ),
    mutant(
        "pointwise_clip_ignored",
        "the option distillation_pointwise_clip reaches no operator",
        ("loss/student.py", "pointwise_clip=args.distillation_pointwise_clip,", "pointwise_clip=None,"),
        tests=(f"{OBJECTIVE}[clipped entries]",),
    ),
    mutant(
        "clip_of_a_method_that_samples",
        "a pointwise clip is taken beside a method whose estimator has no entries, and fails in the first step",
        (
            "config/rules.py",
            'of_method.get("estimator", distillation_estimator) == "sampled"',
            'distillation_estimator == "sampled"',
        ),
        tests=("config/test_config.py::test_wrong_values_are_refused_by_name",),
    ),
    mutant(
        "clip_leaves_terms_out",
        "the gradient of a clipped reverse KL leaves out the multiple of p_k that drops out of a whole sum alone",
        (
            "loss/ops/token_losses.py",
            "share_RK if clip is None else student_probs_RK.add_(share_RK)",
            "share_RK.clone()",
        ),
        tests=("loss/test_entry_clip.py::test_half_of_the_entries_are_clipped",),
    ),
    mutant(
        "kernels_learn_from_clipped_entries",
        "an entry above the pointwise clip keeps its gradient in the kernels",
        (
            "loss/ops/triton_terms.py",
            "        gradient = tl.where(summand > entry_clip, 0.0, gradient)\n",
            "",
        ),
        tests=("loss/test_ops_triton.py::test_nothing_is_learned_where_everything_is_clipped",),
    ),
    mutant(
        "mix_exchanges_its_sides",
        "the mix is alpha KL(teacher || student) + (1 - alpha) KL(student || teacher)",
        (
            "loss/divergence.py",
            "return alpha * reverse_NK + (1.0 - alpha) * ",
            "return (1.0 - alpha) * reverse_NK + alpha * ",
        ),
        tests=("loss/test_entry_clip.py::test_the_mix_of_two_coins_by_hand",),
    ),
    mutant(
        "mix_exchanges_its_sides_in_closed_form",
        "the same in the chunked operator",
        (
            "loss/ops/token_losses.py",
            "student_part_RK = student_logps_RK.exp().mul_(alpha)",
            "student_part_RK = student_logps_RK.exp().mul_(1.0 - alpha)",
        ),
        (
            "loss/ops/token_losses.py",
            "teacher_logps_RK.exp().mul_(alpha - 1.0)",
            "teacher_logps_RK.exp().mul_(-alpha)",
        ),
        tests=(
            "loss/test_entry_clip.py::test_what_is_not_clipped_is_the_divergence",
            "methods/test_family_oracle.py::test_decoupling_is_the_mix_of_the_two_kls",
        ),
    ),
    mutant(
        "mixes_tail_never_summed",
        "the teacher's tail is one minus a sum where the mix divides by it",
        (
            "loss/ops/teacher_rows.py",
            "spec.alpha > 0.0 if spec.is_linear else",
            "False if spec.is_linear else",
        ),
        tests=("loss/test_ops.py::test_gradient_of_a_small_tail_is_the_float64_one",),
    ),
    mutant(
        "hellinger_as_one_minus_a_sum",
        "the Hellinger distance of near sides is one minus their product, which has no digits there",
        (
            "loss/ops/chunked.py",
            "square_R = roots_RV.sub_(other_roots_RV).square_().sum(-1)",
            "square_R = (2 - 2 * (roots_RV * other_roots_RV).sum(-1)).clamp(min=0.0)",
        ),
        tests=("loss/test_hellinger.py::test_near_0_the_distance_is_float64s",),
    ),
    mutant(
        "every_row_counts_its_prompt_again",
        "the size of a teacher pass does not know that a prompt is shared",
        ("teacher/packing.py", "self.num_prompts + (not shares_last_prompt)", "self.num_prompts + 1"),
        tests=("teacher/test_passes.py::test_siblings_of_one_prompt_stay_in_one_pass_where_its_tokens_fit",),
    ),
]
