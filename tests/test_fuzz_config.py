"""Configurations at random: wrong ones are refused at construction, every option by name; the others train.

The counts of the fast tests are fixed and their examples are always the same ones.
"""

import dataclasses

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trl import GRPOConfig

from harness import LORA, chat_dataset, config, logged, make_trainer
from option_values import INHERITED, OPTIONS, OWN
from srpo_trl import SRPOConfig
from srpo_trl.option_types import is_of

NUM_CONFIGURATIONS = 2500
NUM_STRAY_VALUES = 1000
NUM_STEPS = 40
SLOWER = 10  # times as many in the slow tests

ours = set(SRPOConfig.__dataclass_fields__) - set(GRPOConfig.__dataclass_fields__)


def fuzzed(num_examples):
    return settings(
        max_examples=num_examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def test_every_own_option_is_fuzzed():
    assert set(OWN) == ours
    assert set(INHERITED) <= set(GRPOConfig.__dataclass_fields__)


# ------------------------------------------------------------------ wrong values are named, all of them at once

SEEN = {"configurations": 0, "refused": 0}


def some_of(values, at_most):
    """Values of some of the options in a dictionary of strategies."""
    names = st.lists(st.sampled_from(sorted(values)), max_size=at_most, unique=True)
    return names.flatmap(lambda names: st.fixed_dictionaries({name: values[name] for name in names}))


def a_configuration():
    """Right values of some options, and the names of those that are then made wrong."""
    return st.tuples(
        some_of({name: values for name, (values, _) in OPTIONS.items()}, at_most=12),
        some_of({name: st.sampled_from(values) for name, (_, values) in OPTIONS.items()}, at_most=4),
    )


def is_refused_by_name(right, wrong):
    """Construct, and check what is refused and how; return whether it was."""
    SEEN["configurations"] += 1
    try:
        SRPOConfig(output_dir="unused", use_cpu=True, **({"bf16": False} | right | wrong))
    except ValueError as error:
        SEEN["refused"] += 1
        message = str(error)
        lines = [line for line in message.splitlines() if line.startswith("- ")]
        assert message.startswith(f"SRPOConfig has {len(lines)} problem(s):")
        unnamed = [name for name in wrong if f"- {name}" not in message]
        assert not unnamed, message
        known = SRPOConfig.__dataclass_fields__
        assert all(any(name in line for name in known) for line in lines), message
        return True
    assert not wrong, "a wrong value passed"
    return False


@fuzzed(NUM_CONFIGURATIONS)
@given(a_configuration())
def test_wrong_options_are_named_in_one_message(configuration):
    is_refused_by_name(*configuration)


def test_enough_configurations_were_made_of_both_kinds():
    assert SEEN["configurations"] >= NUM_CONFIGURATIONS
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
        "../../x",
        "\x00",
        "é" * 99,
    ),
    *([], ["x"], [1.0], [None], {}, {"a": 1}, {1: 2}, (), object(), SRPOConfig),
]
# Read files or environments of engines that are not installed everywhere.
ENGINES = {"deepspeed", "fsdp", "fsdp_config", "accelerator_config", "parallelism_config"}
FIELDS = sorted({f.name for f in dataclasses.fields(SRPOConfig) if f.init} - ENGINES - {"output_dir"})


@fuzzed(NUM_STRAY_VALUES)
@given(st.dictionaries(st.sampled_from(FIELDS), st.sampled_from(STRAY), min_size=1, max_size=3))
def test_stray_values_are_refused_or_taken(values):
    try:
        SRPOConfig(**({"output_dir": "unused", "use_cpu": True, "bf16": False} | values))
    except ValueError as error:
        assert str(error).startswith("SRPOConfig has")


@pytest.mark.slow
@pytest.mark.parametrize("name", FIELDS)
def test_every_stray_value_of_every_option_is_refused_or_taken(name):
    for value in STRAY:
        try:
            SRPOConfig(**({"output_dir": "unused", "use_cpu": True, "bf16": False} | {name: value}))
        except ValueError as error:
            assert str(error).startswith("SRPOConfig has")


def test_defaults_have_their_own_types():
    """Else the types that options are annotated with could not be relied on."""
    from srpo_trl.inherited_problems import inherited_problems

    assert not inherited_problems(SRPOConfig(output_dir="unused", use_cpu=True, bf16=False))
    assert is_of(1, float)
    assert not is_of(True, float)
    assert not is_of(1.0, int)


# ------------------------------------------------------------------ what is taken trains

NOT_IN_A_STEP = {
    "max_steps",
    "num_train_epochs",
    "report_to",
    "save_strategy",
    "lr_scheduler_type",
    "eval_strategy",
}
# Sizes with which four prompts fill a rollout batch.
SIZES = st.sampled_from(
    [
        {"per_device_train_batch_size": 16},
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "steps_per_generation": 4},
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 3, "steps_per_generation": 2},
        {"per_device_train_batch_size": 8, "num_iterations": 2, "max_steps": 3},
        {"per_device_train_batch_size": 8, "generation_batch_size": 16, "num_generations": 2},
    ]
)
EVALUATION = st.sampled_from(
    [
        {},
        {},
        {
            "eval_strategy": "steps",
            "eval_steps": 1,
            "per_device_eval_batch_size": 4,
            "eval_dataset": chat_dataset(),
        },
    ]
)
SAMPLED = st.sampled_from([{}, {"rollout_func": None}, {"rollout_func": None, "peft_config": LORA}])
of_a_step = {name: values for name, (values, _) in OPTIONS.items() if name not in NOT_IN_A_STEP}
for chosen_together in ("per_device_train_batch_size", "gradient_accumulation_steps", "num_generations"):
    of_a_step.pop(chosen_together)
for chosen_together in (
    "steps_per_generation",
    "generation_batch_size",
    "num_iterations",
    "num_generations_eval",
):
    of_a_step.pop(chosen_together)


def trains(folder, sizes, evaluation, sampled, options):
    """Build a trainer and train; return the step reached, or None where construction refused it."""
    together = sizes | evaluation | sampled
    try:
        config(
            folder, **options | {k: v for k, v in together.items() if k in SRPOConfig.__dataclass_fields__}
        )
    except ValueError as error:
        assert "problem(s)" in str(error)
        return None
    trainer = make_trainer(folder, **options | together)
    trainer.train()
    assert logged(trainer, "train_loss")
    return trainer.state.global_step


TRAINED = []


def a_run():
    return st.tuples(SIZES, EVALUATION, SAMPLED, some_of(of_a_step, at_most=12))


@fuzzed(NUM_STEPS)
@given(a_run())
def test_what_is_taken_trains(tmp_path_factory, run):
    TRAINED.append(trains(tmp_path_factory.mktemp("run"), *run))


def test_enough_configurations_trained():
    assert len(TRAINED) >= NUM_STEPS
    assert sum(bool(step) for step in TRAINED) > 0.5 * NUM_STEPS


@pytest.mark.slow
@fuzzed(SLOWER * NUM_STEPS)
@given(a_run())
def test_what_is_taken_trains_at_length(tmp_path_factory, run):
    trains(tmp_path_factory.mktemp("run"), *run)
