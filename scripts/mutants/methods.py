"""Mutants of what a method says: flags of a route, the context that is needed, the options that follow from it."""

from mutant import mutant

OBJECTIVE = "trainer/test_objective.py::test_loss_and_gradient_equal_the_oracles"
METHODS = "methods/test_methods.py"
OPTIONS = "config/test_method.py"
GRADED = "rollout/test_graded.py"
DEFAULTS = "trainer/test_grpo_identity.py::test_every_default_without_grpo_is_the_papers"

MUTANTS = [
    mutant(
        "both_takes_no_policy_loss",
        "a rollout that both branches train has no policy loss: a route is compared, not read as a set",
        ("methods/record.py", "return (route & Route.POLICY) != 0", "return route == Route.POLICY"),
        tests=(f"{METHODS}::test_routes_are_sets_of_branches", f"{OBJECTIVE}[advantage mix]"),
    ),
    mutant(
        "both_is_not_distilled",
        "a rollout that both branches train is not distilled",
        ("methods/record.py", "return (route & Route.DISTILLED) != 0", "return route == Route.DISTILLED"),
        tests=(f"{METHODS}::test_routes_are_sets_of_branches", f"{OBJECTIVE}[advantage mix]"),
    ),
    mutant(
        "context_needed_where_there_is_some",
        "a router is asked for what needs context with the context that there is, which is none yet",
        ("methods/routers.py", "_asked(method.route, everywhere)", "_asked(method.route, graded)"),
        tests=(
            f"{METHODS}::test_context_is_needed_where_it_would_be_used",
            "trainer/test_trainer.py::test_completions_table_names_each_rollouts_route",
        ),
    ),
    mutant(
        "unscored_rollouts_need_context",
        "a rollout without a score gets a teacher prompt, which nothing uses",
        (
            "methods/routers.py",
            "return graded.is_scored_PG & is_rescored(",
            "return is_rescored(",
        ),
        tests=(
            f"{METHODS}::test_context_is_needed_where_it_would_be_used",
            f"{GRADED}::test_counts_of_a_batch",
        ),
    ),
    mutant(
        "prompts_of_rollouts_that_are_not_distilled",
        "the teacher reads prompts of rollouts that a router has not distilled in the end",
        (
            "rollout/graded.py",
            "[prompt if is_shown else None for prompt, is_shown in shown]",
            "[prompt for prompt, is_shown in shown]",
        ),
        tests=(f"{GRADED}::test_a_router_sees_the_context_of_all_processes",),
    ),
    mutant(
        "share_takes_no_context_away",
        "every rollout that needs context may have some, whatever the distilled share is",
        ("rollout/graded.py", "len(score_B), share, options.seed", "len(score_B), 1.0, options.seed"),
        tests=(f"{GRADED}::test_a_share_of_0_takes_all_context_away",),
    ),
    mutant(
        "share_learns_no_accuracy",
        "distilled_frac_until_accuracy has no effect: the share is not told how good a batch was",
        ("rollout/router.py", "            self.fraction.observe(rollouts.accuracy)\n", "            pass\n"),
        tests=("rollout/test_distilled_fraction.py::test_a_share_of_0_is_grpo",),
    ),
    mutant(
        "doubtful_options_unnoticed",
        "a router tells nothing of rewards that do not fit the threshold before the first batch",
        ("rollout/router.py", "        tell(decision_note(reward_names, reward_weights, *decision))\n", ""),
        tests=("rewards/test_correctness.py::test_a_run_tells_what_is_doubtful",),
    ),
    mutant(
        "routing_ignored",
        "the option routing does not take the place of a method's router",
        ("config/method.py", "        method = method._replace(route=router)\n", "        pass\n"),
        tests=(f"{OPTIONS}::test_a_router_takes_the_place_of_the_methods",),
    ),
    mutant(
        "distils_without_a_scorer",
        "a router that distills is taken by a method that no teacher scores for",
        ("config/method.py", "if distills and not method.distilling:", "if False:"),
        tests=(f"{OPTIONS}::test_what_does_not_fit_is_refused_with_a_remedy",),
    ),
    mutant(
        "router_tried_on_mixed_groups_alone",
        "a router that distills whole groups alone is taken for one that distills nothing",
        (
            "methods/testing.py",
            "torch.tensor(list(itertools.product(kinds, repeat=4)))",
            "torch.tensor([list(kinds)])",
        ),
        tests=(f"{OPTIONS}::test_a_router_is_tried_on_each_kind_of_group_and_late",),
    ),
    mutant(
        "own_methods_have_trls_defaults",
        "a method of the user's own has not SRPO's defaults",
        ("config/defaults.py", "method in METHODS else WEIGHTED", "method in METHODS else {}"),
        tests=(f"{OPTIONS}::test_the_factory_is_called_once_with_its_options",),
    ),
    mutant(
        "sdpo_weighs_tokens",
        "sdpo has SRPO's entropy weights where no beta is given",
        ("methods/__init__.py", 'Entry(sdpo.sdpo, "SDPO", UNWEIGHTED)', 'Entry(sdpo.sdpo, "SDPO")'),
        tests=(DEFAULTS,),
    ),
    mutant(
        "given_options_are_defaults",
        "the method's default takes the place of a value that was given",
        ("config/defaults.py", " for name in DEFERRED if options[name] is None}", " for name in DEFERRED}"),
        tests=(
            f"{OPTIONS}::test_what_was_given_stays_where_a_method_is_replaced",
            "trainer/test_grpo_identity.py::test_what_is_given_stays",
        ),
    ),
    mutant(
        "no_default_of_trls",
        "an option that a method has no default of is None, where GRPOConfig has one",
        ("config/defaults.py", "defaults.get(name, trls.get(name))", "defaults.get(name)"),
        tests=("trainer/test_grpo_identity.py::test_every_default_with_grpo_is_grpo_configs",),
    ),
]
