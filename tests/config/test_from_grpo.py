"""`SRPOConfig.from_grpo`: a script's configuration keeps its values and what they mean."""

import copy
import pickle
from dataclasses import dataclass, field, fields, replace

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from trl import GRPOConfig

from harness import chat_dataset, contains_answer, tiny_model, tiny_tokenizer
from option_values import INHERITED
from srpo_trl import SRPOConfig, SRPOTrainer
from srpo_trl.config.inherited import TRL_ERRORS
from srpo_trl.config.ranges import LARGEST
from srpo_trl.host.arguments import bound_arguments

NAMES = [option.name for option in fields(GRPOConfig)]
CPU = {"output_dir": "unused", "use_cpu": True, "bf16": False}
# None, and what it means to GRPOTrainer.
MEANT = {
    "epsilon_high": lambda args: args.epsilon,
    "num_generations_eval": lambda args: args.num_generations,
    "vllm_importance_sampling_clip_max": lambda args: LARGEST,
}


def grpo(**options):
    return GRPOConfig(**CPU | options)


def changed(args, config):
    """Names of the options whose value is another one."""
    pairs = {name: (getattr(args, name), getattr(config, name)) for name in NAMES}
    return {
        name for name, (a, b) in pairs.items() if a != b and repr(a) != repr(b)
    }  # NaN differs from itself


def check(args, config):
    for name in changed(args, config):
        assert getattr(args, name) is None, name
        assert getattr(config, name) == MEANT[name](args), name


options = st.fixed_dictionaries({}, optional={name: right for name, (right, _) in INHERITED.items()})


@given(options)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_value_keeps_its_meaning(values):
    unset = (
        "learning_rate",
        "scale_rewards",
        "vllm_importance_sampling_mode",
    )  # None is SRPO's word, not GRPOConfig's
    values = {name: value for name, value in values.items() if value is not None or name not in unset}
    try:
        args = grpo(**values)
        SRPOConfig(**CPU | values | {"method": "grpo"})
    except TRL_ERRORS:
        assume(False)
    check(args, SRPOConfig.from_grpo(args, method="grpo"))


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"generation_batch_size": 32},
        {"steps_per_generation": 3, "gradient_accumulation_steps": 2},
        {"fsdp": True, "fsdp_config": {"fsdp_transformer_layer_cls_to_wrap": "Qwen3DecoderLayer"}},
        {"accelerator_config": {"dispatch_batches": True}},
        {"model_init_kwargs": '{"dtype": "float32"}', "report_to": "none", "scale_rewards": False},
        {"gradient_checkpointing_kwargs": {"use_reentrant": True}, "debug": "underflow_overflow"},
        {"eval_strategy": "steps", "logging_steps": 4, "metric_for_best_model": "eval_loss"},
        {"vllm_importance_sampling_clip_max": None, "vllm_importance_sampling_clip_min": 0.1},
    ],
    ids=str,
)
def test_what_trl_derives_survives(values):
    args = grpo(**values)
    config = SRPOConfig.from_grpo(args, method="grpo")
    check(args, config)
    assert config.fsdp_plugin_args == args.fsdp_plugin_args
    check(args, copy.deepcopy(pickle.loads(pickle.dumps(config))))


def test_it_trains_by_srpo_with_the_scripts_values_unless_changed():
    config = SRPOConfig.from_grpo(grpo(epsilon=0.1, eval_strategy="steps", eval_steps=5))
    assert (config.method, config.learning_rate, config.scale_rewards) == ("srpo", 1e-6, "group")
    assert (config.epsilon_high, config.num_generations_eval, config.eval_temperature) == (0.1, 8, 0.6)
    config = SRPOConfig.from_grpo(grpo(), learning_rate=None, scale_rewards=None, epsilon_high=None)
    assert (config.learning_rate, config.scale_rewards, config.epsilon_high) == (5e-6, "none", 0.28)


def test_what_follows_from_a_change_is_derived_anew():
    config = SRPOConfig.from_grpo(grpo(), fp16=True, per_device_train_batch_size=4, num_generations=4)
    assert (config.bf16, config.generation_batch_size, config.num_generations_eval) == (False, 4, 4)
    config = SRPOConfig.from_grpo(grpo(steps_per_generation=4), generation_batch_size=16)
    assert config.steps_per_generation == 2
    config = SRPOConfig.from_grpo(grpo(), gradient_checkpointing=False)
    assert not config.activation_checkpointing


@pytest.mark.parametrize(
    ("given", "changes"),
    [
        ({"eval_strategy": "steps", "logging_steps": 10}, {"logging_steps": 50}),
        ({"eval_strategy": "steps", "eval_steps": 5}, {"logging_steps": 50}),
        ({"eval_strategy": "steps"}, {"eval_strategy": "no"}),
        ({"torch_compile_backend": "eager"}, {"torch_compile": True}),
        (
            {"load_best_model_at_end": True, "eval_strategy": "epoch", "save_strategy": "epoch"},
            {"load_best_model_at_end": False},
        ),
        ({"fsdp": "full_shard"}, {"fsdp": ""}),
        ({"fsdp": "full_shard", "fsdp_config": {"min_num_params": 3}}, {"fsdp": "shard_grad_op"}),
        ({"generation_batch_size": 16}, {"per_device_train_batch_size": 4}),
        ({"generation_batch_size": 16}, {"gradient_accumulation_steps": 4}),
        ({"generation_batch_size": 32}, {"num_generations": 16}),
        ({}, {"generation_batch_size": 16}),
        ({}, {"steps_per_generation": 4}),
    ],
    ids=str,
)
def test_a_change_is_as_if_it_had_been_given(given, changes):
    config = SRPOConfig.from_grpo(grpo(**copy.deepcopy(given)), **changes)  # transformers adds to fsdp_config
    expected = SRPOConfig.from_grpo(grpo(**given | changes))
    assert not changed(expected, config)


def test_compilation_can_be_switched_off(monkeypatch):
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "")  # which transformers sets
    monkeypatch.setenv("ACCELERATE_DYNAMO_MODE", "")
    args = grpo()
    args.torch_compile, args.torch_compile_backend, args.torch_compile_mode = True, "inductor", "default"
    config = SRPOConfig.from_grpo(args, torch_compile=False)
    assert (config.torch_compile, config.torch_compile_backend, config.torch_compile_mode) == (
        False,
        None,
        None,
    )


def test_a_batch_that_does_not_divide_follows():
    config = SRPOConfig.from_grpo(
        grpo(steps_per_generation=2), per_device_train_batch_size=12, num_generations=4
    )
    assert (config.steps_per_generation, config.generation_batch_size) == (2, 24)


@dataclass
class OfScript(GRPOConfig):
    benchmarks: list[str] = field(default_factory=list)


@dataclass
class Wider(SRPOConfig):
    benchmarks: list[str] = field(default_factory=list)


def test_fields_of_a_derived_class_are_kept():
    args = OfScript(**CPU, benchmarks=["math"])
    args.loose = 3
    config = SRPOConfig.from_grpo(args)
    assert (config.benchmarks, config.loose) == (["math"], 3)
    wider = Wider.from_grpo(args)
    assert type(wider) is Wider
    assert wider.benchmarks == ["math"]
    again = SRPOConfig.from_grpo(wider, beta=0.1)
    assert type(again) is Wider
    assert (again.beta, again.benchmarks) == (0.1, ["math"])


def test_a_derived_class_takes_srpos_configuration():
    args = SRPOConfig(**CPU, eval_strategy="steps", method="sdpo", learning_rate=None)
    args.loose = 3
    wider = Wider.from_grpo(args)
    assert type(wider) is Wider
    assert not changed(args, wider)
    assert (wider.method, wider.defaulted, wider.loose) == ("sdpo", args.defaulted, 3)
    again = Wider.from_grpo(args, method="grpo")
    assert not changed(replace(args, method="grpo"), again)
    assert again.defaulted == replace(args, method="grpo").defaulted


def test_what_is_no_configuration_or_no_option_is_refused():
    with pytest.raises(TypeError, match=r"args is of type dict; from_grpo needs a trl\.GRPOConfig"):
        SRPOConfig.from_grpo({"output_dir": "x"})
    with pytest.raises(TypeError, match=r"lr is not an option\. It is called learning_rate"):
        SRPOConfig.from_grpo(grpo(), lr=1e-5)
    with pytest.raises(ValueError, match="joint token denominator"):
        SRPOConfig.from_grpo(grpo(loss_type="bnpo"))


def test_the_trainer_takes_a_grpo_configuration_and_says_so(tmp_path, caplog):
    options = {"max_steps": 1, "max_completion_length": 8, "num_generations": 4, "report_to": "none"}
    args = grpo(**options | {"output_dir": str(tmp_path), "per_device_train_batch_size": 4})
    trainer = SRPOTrainer(
        model=tiny_model(),
        reward_funcs=contains_answer,
        args=args,
        train_dataset=chat_dataset(),
        processing_class=tiny_tokenizer(),
    )
    assert changed(args, trainer.args) <= {*MEANT, "per_device_eval_batch_size"}  # which samples do not use
    assert trainer.args.method == "srpo"
    assert "taken as SRPOConfig.from_grpo(args)" in caplog.text
    assert "learning_rate=1e-06" in caplog.text
    trainer.train()
    assert trainer.state.global_step == 1


def test_a_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = SRPOConfig(**CPU, method="kdrl", teacher_model="~/teacher")
    assert config.teacher_models == {"teacher": str(tmp_path / "teacher")}
    config = SRPOConfig(**CPU | {"output_dir": "~/out"})
    assert config.output_dir == str(tmp_path / "out")
    bound = bound_arguments(("~/model", contains_answer), {"args": config, "train_dataset": chat_dataset()})
    assert bound["model"] == str(tmp_path / "model")
