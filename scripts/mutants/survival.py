"""Mutants of what keeps a run alive: skipped steps, checked rewards, guards, the distilled share, repeated prompts."""

from mutant import mutant

FAULTS = "host/test_faults_training.py"
REWARDS = "host/test_faults_rewards.py"
GUARDS = "runs/test_guards.py"
SHARE = "rollout/test_distilled_fraction.py"
EARLIER = "rollout/test_solved_prompts.py"
REDRAW = "rollout/test_resample.py"

MUTANTS = [
    mutant(
        "nonfinite_step_is_taken",
        "an optimizer step whose gradient is not finite is taken",
        (
            "host/finite_steps.py",
            "self.was_skipped = number < 0 or not math.isfinite(number)",
            "self.was_skipped = False",
        ),
        tests=(f"{FAULTS}::test_a_step_that_is_not_finite_leaves_everything_but_the_counters",),
    ),
    mutant(
        "infinite_loss_with_a_finite_gradient",
        "a loss that is not finite skips no step where its gradient is finite",
        (
            "host/finite_steps.py",
            "return loss * torch.where(loss.detach().isfinite(), 1.0, torch.nan).to(loss.dtype)",
            "return loss",
        ),
        tests=(f"{FAULTS}::test_a_step_that_is_not_finite_leaves_everything_but_the_counters",),
    ),
    mutant(
        "float16_without_a_scaler_is_loss_scaling",
        "with fp16=True on a CPU, a gradient that is not finite is taken for the search for a scale",
        ("host/finite_steps.py", "if scaler is None and not is_engines:", "if False:"),
        tests=("host/test_finite_steps.py::test_float16_without_a_scaler_scales_no_loss",),
    ),
    mutant(
        "teacher_follows_a_step_that_overflows",
        "the teacher is updated after a step that the gradient scaler has skipped",
        ("trainer.py", "num_complete and not (finite is not None and finite.was_skipped)", "num_complete"),
        tests=(
            "trainer/test_float16_training.py::test_step_that_overflows_is_skipped_and_the_teacher_waits",
        ),
    ),
    mutant(
        "gradient_is_rounded_to_float16_before_its_scale",
        "a token's hidden gradient is rounded to float16 before the loss scale is multiplied in",
        (
            "loss/ops/chunked.py",
            "hidden_dtype = torch.bfloat16 if hidden_ND.dtype == torch.bfloat16 else dtype",
            "hidden_dtype = hidden_ND.dtype",
        ),
        tests=("loss/test_float16.py::test_scale_saves_gradients_that_float16_would_lose",),
    ),
    mutant(
        "emulated_bfloat16_is_not_told",
        "nobody hears that a T4 emulates bfloat16",
        ("host/arguments.py", "if major < 8:", "if major < 7:"),
        tests=("host/test_arguments.py::test_emulated_bfloat16_is_told_once_with_the_remedy",),
    ),
    mutant(
        "nonfinite_steps_without_end",
        "steps that are not finite are never too many",
        (
            "host/finite_steps.py",
            "if was_taken or self._num_in_a_row >= self._max_in_a_row:",
            "if was_taken:",
        ),
        tests=(f"{FAULTS}::test_the_run_stops_after_so_many_in_a_row",),
    ),
    mutant(
        "teacher_ticks_on_a_skipped_step",
        "the teacher moves after an optimizer step that was skipped",
        (
            "trainer.py",
            "if num_complete and not (finite is not None and finite.was_skipped):",
            "if num_complete:",
        ),
        tests=(f"{FAULTS}::test_a_rollout_batch_whose_last_step_is_skipped_does_not_move_the_teacher",),
    ),
    mutant(
        "hanging_reward_counts_as_failed",
        "completions whose reward function hung have the score 0",
        ("host/rewards/calls.py", "return [None] * call.num_rows", "return [0.0] * call.num_rows"),
        tests=(f"{REWARDS}::test_a_function_that_hangs_gives_no_scores_and_the_run_goes_on",),
    ),
    mutant(
        "timeouts_without_end",
        "a reward function that always hangs never stops the run",
        (
            "host/rewards/calls.py",
            "if self._num_lost_in_a_row == MAX_TIMEOUTS_IN_A_ROW:",
            "if False:",
        ),
        tests=(f"{REWARDS}::test_timeouts_in_a_row_stop_the_run",),
    ),
    mutant(
        "guard_acts_without_a_remedy",
        "a guard takes an action that does not help against what it found",
        (
            "runs/guards.py",
            'action = self._action if self._action in guard.remedies else "warn"',
            "action = self._action",
        ),
        tests=(f"{GUARDS}::test_an_action_is_taken_only_where_it_is_a_remedy",),
    ),
    mutant(
        "guard_repeats_itself",
        "a guard speaks at every log",
        (
            "runs/guards.py",
            "if message is not None and quiet_logs >= self._thresholds.window:",
            "if message is not None:",
        ),
        tests=(f"{GUARDS}::test_guard_speaks_once_and_alone",),
    ),
    mutant(
        "guard_stops_without_saving",
        "a guard that stops the run saves no checkpoint",
        (
            "host/callbacks.py",
            "control.should_save = control.should_training_stop = True",
            "control.should_training_stop = True",
        ),
        tests=("host/test_guard_actions.py::test_stop_saves_and_stops",),
    ),
    mutant(
        "share_without_hold",
        "the distilled share falls from the first step on",
        ("rollout/distilled_fraction.py", "(step - hold_steps) / decay_steps", "step / decay_steps"),
        tests=(f"{SHARE}::test_share_holds_then_falls_linearly",),
    ),
    mutant(
        "share_drawn_alike_at_every_step",
        "the same places of every rollout batch are within the share",
        ("rollout/distilled_fraction.py", "manual_seed((seed << 32) + step)", "manual_seed(seed << 32)"),
        tests=(f"{SHARE}::test_draw_is_seeded_and_has_the_shares_size",),
    ),
    mutant(
        "share_is_not_saved",
        "a resumed run has forgotten what a guard took from the distilled share",
        ("host/checkpoint_parts.py", "            other.restore(state[name])\n", "            pass\n"),
        tests=(f"{SHARE}::test_share_survives_a_resume",),
    ),
    mutant(
        "earlier_answers_without_bound",
        "earlier answers are kept of every prompt",
        ("rollout/solved_prompts.py", "while len(self._answers) > self._capacity:", "while False:"),
        tests=(f"{EARLIER}::test_the_newest_answer_is_kept_and_the_oldest_prompt_makes_room",),
    ),
    mutant(
        "earlier_answers_are_not_loaded",
        "a resumed run remembers no earlier answer",
        (
            "host/objects.py",
            "OwnFile(solved_prompts.save, solved_prompts.load)",
            "OwnFile(solved_prompts.save, lambda folder: None)",
        ),
        tests=(f"{EARLIER}::test_resumed_runs_remember",),
    ),
    mutant(
        "failed_prompts_come_for_ever",
        "a prompt that fails again comes a third time",
        (
            "host/prompt_order.py",
            "if self.max_resampled and has_failed and place >= num_resampled:",
            "if self.max_resampled and has_failed:",
        ),
        tests=(f"{REDRAW}::test_a_prompt_that_fails_again_does_not_come_a_third_time",),
    ),
]
