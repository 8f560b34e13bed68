"""Configurations at random: wrong ones are refused at construction, every option by name; the others train.

The fast tests make the same examples every time, as many as their constants say; the slow ones more.
"""

import dataclasses

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trl import GRPOConfig

from harness import LORA, chat_dataset, config, logged, make_trainer
from option_values import INHERITED, OPTIONS, OWN
from srpo_trl import SRPOConfig
from srpo_trl.config.inherited import inherited_problems
from srpo_trl.config.ranges import described, is_of

NUM_CONFIGURATIONS = 2500
NUM_STRAY_VALUES = 1000
NUM_RUNS = 40
SLOWER = 10  # times as many in the slow tests

# These read files, or environments of engines that are not installed everywhere.
ENGINES = {"deepspeed", "fsdp", "fsdp_config", "accelerator_config", "parallelism_config"}
FIELDS = sorted({f.name for f in dataclasses.fields(SRPOConfig) if f.init} - ENGINES - {"output_dir"})


def fuzzed(num_examples):
    return settings(
        max_examples=num_examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def some_of(values, at_most):
    """Values of some of the options in a dictionary of strategies."""
    names = st.lists(st.sampled_from(sorted(values)), max_size=at_most, unique=True)
    return names.flatmap(lambda names: st.fixed_dictionaries({name: values[name] for name in names}))


def refusal(**options):
    """The message that construction refuses these options with; empty where it takes them."""
    try:
        SRPOConfig(**({"output_dir": "unused", "use_cpu": True, "bf16": False} | options))
    except ValueError as error:
        return str(error)
    return ""


def test_every_own_option_is_fuzzed():
    assert set(OWN) == {f.name for f in dataclasses.fields(SRPOConfig)} - set(GRPOConfig.__dataclass_fields__)
    assert set(INHERITED) <= set(GRPOConfig.__dataclass_fields__)


# ------------------------------------------------------------------ wrong values are named, all of them at once

SEEN = {"configurations": 0, "refused": 0}


def a_configuration():
    """Right values of some options, and wrong ones of a few that then replace them."""
    return st.tuples(
        some_of({name: values for name, (values, _) in OPTIONS.items()}, at_most=12),
        some_of(
            {name: st.sampled_from(values) for name, (_, values) in OPTIONS.items() if values}, at_most=4
        ),
    )


def is_refused_by_name(right, wrong):
    """Construct, and check what is refused and how; return whether it was."""
    message = refusal(**(right | wrong))
    SEEN["configurations"] += 1
    SEEN["refused"] += bool(message)
    assert message or not wrong, "a wrong value passed"
    if message:
        problems = [line for line in message.splitlines() if line.startswith("- ")]
        assert message.startswith(f"SRPOConfig has {len(problems)} problem(s):")
        assert all(any(problem.startswith(f"- {name}") for problem in problems) for name in wrong), message
        assert all(any(name in problem for name in FIELDS) for problem in problems), message
    return bool(message)


@fuzzed(NUM_CONFIGURATIONS)
@given(a_configuration())
def test_wrong_options_are_named_in_one_message(configuration):
    is_refused_by_name(*configuration)


def test_enough_configurations_were_made_of_both_kinds():
    if SEEN["configurations"] < NUM_CONFIGURATIONS:
        pytest.skip("runs after test_wrong_options_are_named_in_one_message, whose configurations it counts")
    assert min(SEEN["refused"], SEEN["configurations"] - SEEN["refused"]) > 0.1 * NUM_CONFIGURATIONS


@pytest.mark.slow
@fuzzed(SLOWER * NUM_CONFIGURATIONS)
@given(a_configuration())
def test_wrong_options_are_named_in_one_message_at_length(configuration):
    is_refused_by_name(*configuration)


@pytest.mark.parametrize("name", OPTIONS)
def test_each_wrong_value_alone_is_refused_by_name(name):
    for value in OPTIONS[name][1]:
        assert is_refused_by_name({}, {name: value}), f"{name}={value!r}"


# ------------------------------------------------------------------ any value anywhere: refused or taken, no crash

STRAY = [
    *(None, True, False, 0, 1, -1, 2, 0.5, -0.5, 1.5, 1e-30, 1e30, 10**12, 10**400),
    *(
        float("nan"),
        float("inf"),
        -float("inf"),
        "",
        "abc",
        "1",
        "{",
        "{}",
        "{prompt}",
        "../x",
        "\x00",
        "é" * 99,
    ),
    *([], ["x"], [1.0], [None], {}, {"a": 1}, {1: 2}, (), object(), SRPOConfig),
]


@fuzzed(NUM_STRAY_VALUES)
@given(st.dictionaries(st.sampled_from(FIELDS), st.sampled_from(STRAY), min_size=1, max_size=3))
def test_stray_values_are_refused_or_taken(values):
    message = refusal(**values)
    assert not message or any(name in message for name in (*FIELDS, "GRPOConfig: "))


@pytest.mark.slow
@pytest.mark.parametrize("name", FIELDS)
def test_every_stray_value_of_every_option_is_refused_or_taken(name):
    for value in STRAY:
        message = refusal(**{name: value})
        assert not message or any(known in message for known in (*FIELDS, "GRPOConfig: "))


def test_types_are_the_annotated_ones():
    assert not inherited_problems(vars(SRPOConfig(output_dir="unused", use_cpu=True, bf16=False)))
    assert is_of(1, float)
    assert not is_of(True, float | None)
    assert not is_of(1.0, int)
    assert not is_of(["x", 1], list[str])
    assert described(list[int] | None) == "a list, each item a whole number or None"


# ------------------------------------------------------------------ what is taken trains

# Sizes with which the four prompts fill a rollout batch.
SIZES = st.sampled_from(
    [
        {"per_device_train_batch_size": 16},
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "steps_per_generation": 4},
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 3, "steps_per_generation": 2},
        {"per_device_train_batch_size": 8, "num_iterations": 2, "max_steps": 3},
        {"per_device_train_batch_size": 4, "generation_batch_size": 8, "num_generations": 2},
    ]
)
EVALUATION = {
    "eval_strategy": "steps",
    "eval_steps": 1,
    "per_device_eval_batch_size": 4,
    "eval_dataset": chat_dataset(),
}
SAMPLED = st.sampled_from([{}, {"rollout_func": None}, {"rollout_func": None, "peft_config": LORA}])
# Of a size, or of how often something is done; the harness sets them for one quick step.
NOT_OF_A_STEP = {
    *(
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "num_generations",
        "num_generations_eval",
    ),
    *("steps_per_generation", "generation_batch_size", "num_iterations", "max_steps", "num_train_epochs"),
    *("report_to", "save_strategy", "lr_scheduler_type", "eval_strategy"),
}
REACHED = []


def a_run():
    options = {name: values for name, (values, _) in OPTIONS.items() if name not in NOT_OF_A_STEP}
    return st.tuples(SIZES, st.sampled_from([{}, {}, EVALUATION]), SAMPLED, some_of(options, at_most=12))


def trains(folder, parts):
    """Build a trainer and train; return the step reached, 0 where construction refused the options together."""
    sizes, evaluation, sampled, options = parts
    options = options | sizes | evaluation | sampled
    try:
        config(folder, **{name: value for name, value in options.items() if name in FIELDS})
    except ValueError:
        return 0
    trainer = make_trainer(folder, **options)
    trainer.train()
    assert logged(trainer, "train_loss")
    return trainer.state.global_step


@fuzzed(NUM_RUNS)
@given(a_run())
def test_what_is_taken_trains(tmp_path_factory, parts):
    REACHED.append(trains(tmp_path_factory.mktemp("run"), parts))


def test_enough_configurations_trained():
    if len(REACHED) < NUM_RUNS:
        pytest.skip("runs after test_what_is_taken_trains, whose runs it counts")
    assert sum(step > 0 for step in REACHED) > 0.5 * NUM_RUNS


@pytest.mark.slow
@fuzzed(SLOWER * NUM_RUNS)
@given(a_run())
def test_what_is_taken_trains_at_length(tmp_path_factory, parts):
    trains(tmp_path_factory.mktemp("run"), parts)


@pytest.mark.parametrize("options", [{"temperature": 2}, {"repetition_penalty": 2}], ids=str)
def test_whole_numbers_are_numbers(tmp_path, options):
    """transformers takes them for no float at the first rollout."""
    make_trainer(tmp_path, rollout_func=None, max_completion_length=2, **options).train()
