"""Mutants of what takes the files and the configurations of TRL's users."""

from mutant import mutant

FROM_GRPO = "config/test_from_grpo.py"
FILES = "commands/test_trl_files.py"

MUTANTS = [
    mutant(
        "none_of_a_grpo_config",
        "None in a GRPOConfig means SRPO's default, not what it means to GRPOTrainer",
        ("config/from_grpo.py", "if values[name] is None and name not in changes", "if False"),
        tests=(f"{FROM_GRPO}::test_it_trains_by_srpo_with_the_scripts_values_unless_changed",),
    ),
    mutant(
        "batch_of_a_grpo_config",
        "the generation batch that a GRPOConfig derived is given beside the steps that it follows from",
        ("config/from_grpo.py", 'values["generation_batch_size"] = None', "pass"),
        tests=(f"{FROM_GRPO}::test_what_trl_derives_survives",),
    ),
    mutant(
        "derived_values_stay_after_a_change",
        "what a GRPOConfig derived from an option that is changed stays as it was",
        ("config/from_grpo.py", "any(source in changes for source in sources):", "False:"),
        tests=(f"{FROM_GRPO}::test_what_follows_from_a_change_is_derived_anew",),
    ),
    mutant(
        "ratio_above_one",
        "a warm-up over more than the whole run is taken for a number of steps",
        ("config/former.py", "or (name == SHARE and not _is_share(value))", ""),
        tests=(f"{FILES}::test_what_means_something_else_is_not_taken",),
    ),
    mutant(
        "former_value_changes_something",
        "a removed option is left out whatever its value was",
        ("config/former.py", "elif _is_idle(name, value):", "elif name in IDLE:"),
        tests=(f"{FILES}::test_what_means_something_else_is_not_taken",),
    ),
    mutant(
        "mixture_split_by_chance",
        "each process, and each reading, splits a mixture into other training and test rows",
        ("commands/inputs.py", "seed=MIXTURE_SEED", "seed=None"),
        tests=(f"{FILES}::test_a_mixture_is_split_alike_each_time",),
    ),
    mutant(
        "reward_model_without_its_name",
        "TRL puts the reward model in place of its name in the list that the command goes on with",
        ("commands/train.py", "reward_funcs=list(rewards),", "reward_funcs=rewards,"),
        tests=(f"{FILES}::test_a_reward_model_comes_first",),
    ),
    mutant(
        "first_value_of_a_wrong_type",
        "the first value of another type hides all other problems",
        ("commands/options.py", "            return None\n", "            raise\n"),
        tests=(f"{FILES}::test_values_of_another_type_join_the_other_problems",),
    ),
    mutant(
        "cpu_for_a_gpu_without_bfloat16",
        "a GPU without bfloat16 is told to train on the CPU",
        ("config/inherited.py", "if torch.accelerator.is_available():", "if False:"),
        tests=(f"{FILES}::test_a_machine_without_bfloat16_is_told_what_to_give",),
    ),
    mutant(
        "teacher_column_of_conversations",
        "a teacher_column of conversations ends in the datasets library",
        ("host/arguments.py", 'if not (isinstance(kind, Value) and "string" in kind.dtype):', "if False:"),
        tests=("trainer/test_scorers.py::test_a_column_that_names_no_teacher_is_refused_by_its_type",),
    ),
]
