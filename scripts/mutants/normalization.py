"""Mutants of token counts and weight sums."""

from mutant import mutant

OBJECTIVE = "trainer/test_objective.py::test_loss_and_gradient_equal_the_oracles"
SPLIT = "trainer/test_split_invariance.py::test_update_does_not_depend_on_the_split[(4, 4, 4)]"
TOTALS = "loss/test_step_totals.py"

MUTANTS = [
    mutant(
        "weights_per_micro_batch",
        "entropy weights have the mean 1 in each micro-batch instead of over the optimizer step",
        (
            "rollout/coefficients.py",
            "totals.mean_unnormalized_weight",
            "WindowTotals(\n"
            "        *local_totals(routed.routed_BT, routed.distilled_BT, raw_weight_BT)\n"
            "    ).mean_unnormalized_weight",
        ),
        tests=(SPLIT,),
    ),
    mutant(
        "weights_not_normalized",
        "weights are exp(-beta H) as they are, without the mean of 1",
        (
            "loss/token_weights.py",
            "weights = raw_weights / mean_unnormalized_weight",
            "weights = raw_weights",
        ),
        tests=("loss/test_losses.py::test_entropy_weights_have_the_mean_1[dtype0-1.0]", f"{OBJECTIVE}[srpo]"),
    ),
    mutant(
        "weights_over_policy_tokens",
        "the mean of the weights runs over every routed token instead of the distilled ones",
        (
            "loss/step_totals.py",
            "            sum_in_float64(distilled_BT),\n",
            "            sum_in_float64(routed_BT),\n",
        ),
        tests=(f"{TOTALS}::test_coefficients_by_hand", f"{OBJECTIVE}[srpo]"),
    ),
    mutant(
        "weights_favor_unsure_tokens",
        "the weight's sign: exp(+beta H)",
        ("loss/token_weights.py", "torch.exp(-beta * ", "torch.exp(beta * "),
        tests=(
            "loss/test_losses.py::test_raw_weights_by_hand_in_float64_without_gradient",
            f"{OBJECTIVE}[srpo with sharp weights]",
        ),
    ),
    mutant(
        "beta_ignored",
        "weights are exp(-H) whatever beta is",
        ("loss/token_weights.py", "torch.exp(-beta * ", "torch.exp(-"),
        tests=(
            "loss/test_losses.py::test_raw_weights_by_hand_in_float64_without_gradient",
            f"{OBJECTIVE}[srpo with sharp weights]",
        ),
    ),
    mutant(
        "denominator_of_distillation_alone",
        "the distillation branch is divided by its own tokens instead of all routed ones",
        (
            "loss/step_totals.py",
            "denominator = totals.num_routed_tokens.clamp(min=1) / num_processes\n    return strength",
            "denominator = totals.num_distilled_tokens.clamp(min=1) / num_processes\n    return strength",
        ),
        tests=(f"{TOTALS}::test_coefficients_by_hand", f"{OBJECTIVE}[srpo]"),
    ),
    mutant(
        "denominator_of_policy_alone",
        "the policy branch is divided by its own tokens instead of all routed ones",
        (
            "trainer.py",
            "self._totals.num_routed_tokens * rescaling",
            "(self._totals.num_routed_tokens - self._totals.num_distilled_tokens) * rescaling",
        ),
        tests=(f"{OBJECTIVE}[srpo]",),
    ),
    mutant(
        "distillation_denominator_per_micro_batch",
        "the distillation branch is a mean of the micro-batches' means",
        (
            "trainer.py",
            "teacher_sides(routed, self._method, step, self._totals, processes,",
            "teacher_sides(\n"
            "    routed,\n"
            "    self._method,\n"
            "    step,\n"
            "    self._totals._replace(\n"
            "        num_routed_tokens=routed.routed_BT.sum().double() * self.current_gradient_accumulation_steps\n"
            "    ),\n"
            "    processes,\n",
        ),
        tests=(SPLIT,),
    ),
    mutant(
        "policy_denominator_per_micro_batch",
        "the policy branch is a mean of the micro-batches' means",
        (
            "trainer.py",
            "self._totals.num_routed_tokens * rescaling",
            "routed.routed_BT.sum().double() * self.current_gradient_accumulation_steps * rescaling",
        ),
        tests=(SPLIT,),
    ),
    mutant(
        "trls_rescaling_left_in",
        "TRL's own division by accumulation over generation steps is not undone",
        (
            "trainer.py",
            "rescaling = self._batches.steps_per_generation / self.current_gradient_accumulation_steps",
            "rescaling = 1.0",
        ),
        tests=("trainer/test_split_invariance.py::test_update_does_not_depend_on_the_split[(4, 4, 1)]",),
    ),
    mutant(
        "skipped_rows_in_the_denominator",
        "rollouts that nothing trains still count in the joint denominator",
        (
            "rollout/batch.py",
            "return self.scored_BT & (self.is_policy_B | self.is_distilled_B).unsqueeze(1)",
            "return self.scored_BT",
        ),
        tests=(
            f"{OBJECTIVE}[srpo]",
            "trainer/test_trainer.py::test_unscored_rollouts_are_excluded_from_the_loss",
        ),
    ),
    mutant(
        "totals_of_one_process",
        "each process divides by its own totals: they are not summed over processes",
        (
            "host/trainer.py",
            'summed: Tensor = self.accelerator.reduce(tensor, reduction="sum")',
            "summed = tensor",
        ),
        tests=("trainer/test_processes.py::test_two_processes_make_the_update_of_one[one sided-whole]",),
    ),
    mutant(
        "averaging_over_processes_left_in",
        "the averaging of gradients over processes is not undone in the distillation branch",
        (
            "loss/step_totals.py",
            "denominator = totals.num_routed_tokens.clamp(min=1) / num_processes\n    return strength",
            "denominator = totals.num_routed_tokens.clamp(min=1)\n    return strength",
        ),
        tests=(f"{TOTALS}::test_coefficients_by_hand",),
    ),
    mutant(
        "samplers_ratio_ignored",
        "vLLM's importance ratio is left out of the distillation branch",
        ("loss/step_totals.py", "if sampler_ratio_N is not None:", "if False:"),
        tests=(f"{TOTALS}::test_coefficients_carry_the_samplers_importance_ratio",),
    ),
    mutant(
        "mix_weights_swapped",
        "advantage mix: lambda weighs distillation and 1 - lambda the policy branch",
        (
            "methods/advantage_mix.py",
            "strength=lambda step: 1.0 - advantage_mix_lambda",
            "strength=lambda step: advantage_mix_lambda",
        ),
        (
            "methods/advantage_mix.py",
            "advantages=lambda t: advantage_mix_lambda * t.advantage_B",
            "advantages=lambda t: (1.0 - advantage_mix_lambda) * t.advantage_B",
        ),
        tests=(
            f"{OBJECTIVE}[advantage mix]",
            "methods/test_methods.py::test_the_mix_shares_the_loss_and_the_others_have_all_of_it",
        ),
    ),
]
