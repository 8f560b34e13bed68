"""Inherited options: GRPOTrainer fails with every value that is refused, and does what is taken."""

import math

import pytest
from trl import GRPOConfig, GRPOTrainer

from harness import chat_dataset, logged, make_trainer, tiny_model, tiny_tokenizer
from srpo_trl import SRPOConfig
from srpo_trl.config.inherited import (
    ADAM,
    CHOICES,
    INHERITED_RULES,
    LOOSE,
    RANGES,
    SAPO,
    VESPO,
    bfloat16_is_there,
    inherited_problems,
)
from srpo_trl.config.ranges import rule_problems

NAN, INFINITY = float("nan"), float("inf")
EVALUATION = {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 4}
WITH_ADAM = {"optim": "adamw_torch"}
SAVES = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3}
REFERENCE = {"beta": 0.1, "sync_ref_model": True, "ref_model_sync_steps": 1}
WORKERS = {"dataloader_num_workers": 1}

# option, values, what else is given
FAILS = [
    ("num_generations", [1, 0, None, 4.0], {}),
    ("steps_per_generation", [0, -1, 0.5], {}),
    ("generation_batch_size", [-16, 16.0], {}),
    ("per_device_train_batch_size", [0, -1, 16.0], {}),
    ("gradient_accumulation_steps", [0, -1, 2.0, None], {}),
    ("num_iterations", [0, -1, 2.0, None], {}),
    ("max_steps", [1.5], {}),
    ("num_train_epochs", [NAN, INFINITY, None, "1"], {"max_steps": -1}),
    ("max_completion_length", [0, -1], {}),
    ("temperature", [0, 0.0, -1.0, NAN, None], {}),
    ("top_k", [-1, -2, 0.5], {}),
    ("top_p", [-0.1], {}),
    ("min_p", [2, 1.1, -0.1, NAN], {}),
    ("repetition_penalty", [0, -1.0, NAN], {}),
    ("beta", [-0.1, NAN, None], {}),
    ("epsilon", [NAN, None, "0.2"], {}),
    ("epsilon_high", [NAN, "0.2"], {}),
    ("delta", [NAN, "1"], {}),
    ("entropy_coef", [NAN, INFINITY, None], {}),
    ("top_entropy_quantile", [-0.1], {}),
    ("loss_type", ["x", "", None], {}),
    ("importance_sampling_level", ["x", None], {}),
    ("multi_objective_aggregation", ["x", None], {}),
    ("scale_rewards", ["x", 3], {}),
    ("vespo_k_pos", [None, "1"], {"loss_type": "vespo"}),
    ("vespo_lambda_neg", [None, "1"], {"loss_type": "vespo"}),
    ("sapo_temperature_pos", [0, NAN, None], {"loss_type": "sapo"}),
    ("sapo_temperature_neg", [0, INFINITY], {"loss_type": "sapo"}),
    ("learning_rate", [-1e-9, -1, NAN, INFINITY, "1e-3"], {}),
    ("weight_decay", [NAN, INFINITY], WITH_ADAM),
    ("adam_beta1", [1, -0.1], WITH_ADAM),
    ("adam_beta2", [1, 1.5, NAN], WITH_ADAM),
    ("adam_epsilon", [-1e-9, NAN], WITH_ADAM),
    ("warmup_steps", [-1, NAN, INFINITY, None], {}),
    ("neftune_noise_alpha", [-1, NAN], {}),
    ("optim", ["x", None], {}),
    ("optim_args", ["x", "a=b=c", "a=1,b"], WITH_ADAM),
    ("lr_scheduler_type", ["x", None, "cosine_with_min_lr", "warmup_stable_decay"], {}),
    ("lr_scheduler_kwargs", [{"x": 1}, 3, "abc", ["x"]], {}),
    ("max_grad_norm", [None, "1"], {}),
    ("report_to", [3, [3]], {}),
    ("seed", [-1, 2**32, 0.5, None], {}),
    ("dataloader_num_workers", [-1, 0.5, None], {}),
    ("dataloader_persistent_workers", [True], {}),
    ("dataloader_multiprocessing_context", ["fork"], {}),
    ("pad_to_multiple_of", [0, "0", "abc", []], {}),
    ("chat_template_kwargs", [3, "abc", {"tokenize": True}, {"tools": []}], {}),
    ("generation_kwargs", [3, "abc", {"num_return_sequences": 2}], {}),
    ("reward_weights", [3, "abc", ["x"], [None]], {}),
    ("logging_strategy", ["x", None], {}),
    ("save_strategy", ["x", None], {}),
    ("eval_strategy", ["x", None], {}),
    ("log_level", ["x"], {}),
    ("log_level_replica", ["x"], {}),
    ("sync_ref_model", [True], {}),
    ("ref_model_sync_steps", [0, None], REFERENCE),
    ("num_generations_eval", [-1, 0.5], EVALUATION),
]
NUM_TRAINED = 13  # the first ones, with SRPOTrainer too
WORKS = [
    ("save_total_limit", [0, -1], SAVES),
    ("max_steps", [-2], {}),
    ("num_train_epochs", [0], {"max_steps": -1}),
    ("adam_epsilon", [0], WITH_ADAM),
    ("max_grad_norm", [-1, NAN, INFINITY], {}),
    ("weight_decay", [-0.1], WITH_ADAM),
    ("top_p", [0, 1.1, None], {}),
    ("top_k", [None], {}),
    ("repetition_penalty", [None, 1e30], {}),
    ("eval_delay", [-1, INFINITY], EVALUATION),
    ("mask_truncated_completions", [1, None, ""], {}),
    ("metric_for_best_model", ["loss", "eval_loss"], EVALUATION),
    ("temperature", [1e-5, 1e5, INFINITY], {}),
    ("num_train_epochs", [NAN], {}),
    ("epsilon", [-1e-9, INFINITY], {}),
    ("delta", [0, -1], {}),
    ("top_entropy_quantile", [1.1], {}),
    ("adam_beta2", [1], {}),  # not with SGD
    ("vespo_k_pos", [-1, NAN], {"loss_type": "vespo"}),
    ("sapo_temperature_pos", [0], {}),  # not with another loss
    ("ref_model_sync_steps", [0], {}),
    ("vllm_server_port", [-1], {}),
    ("vllm_gpu_memory_utilization", [0], {}),
    ("learning_rate", [200], {}),
    ("label_smoothing_factor", [2], {}),
    ("dataloader_prefetch_factor", [1], WORKERS),
    ("num_completions_to_print", [-1], {"log_completions": True}),
    ("save_steps", [-1, 0], {"save_strategy": "no"}),
    ("eval_steps", [-1], {}),
    ("data_seed", [-1], {}),
    ("scale_rewards", [1], {}),
    ("reward_weights", [[True], (1.0,)], {}),
    ("shuffle_dataset", [None, 1], {}),
    ("hub_model_id", [3], {}),
    ("num_iterations", [True], {}),
    ("max_completion_length", [2.0], {}),
]


def cases(table):
    """Every value of the table; all but each row's first in the slow tests alone."""
    return [
        pytest.param(name, value, more, id=f"{name}={value!r}", marks=[pytest.mark.slow] * (place > 0))
        for name, values, more in table
        for place, value in enumerate(values)
    ]


def varied(completions, **kwargs):
    return [float(sum(map(ord, completion[-1]["content"])) % 7) for completion in completions]


def options_of(folder, **options):
    """The options of two quick steps with completions that are sampled."""
    taken = {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "num_generations": 4,
        "per_device_train_batch_size": 16,
        "max_completion_length": 3,
        "max_steps": 2,
        "optim": "sgd",
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }
    return taken | options


def trained_by_grpo_trainer(folder, **options):
    """Train with GRPOTrainer; return whether it took a step, and its losses and weights are finite."""
    args = GRPOConfig(**options_of(folder, **options))
    model = tiny_model()
    if options.get("sync_ref_model"):  # TRL loads the reference by name
        model.save_pretrained(folder / "model")
    trainer = GRPOTrainer(
        model=str(folder / "model") if options.get("sync_ref_model") and args.beta else model,
        reward_funcs=varied,
        args=args,
        train_dataset=chat_dataset(),
        eval_dataset=chat_dataset(),
        processing_class=tiny_tokenizer(),
    )
    trainer.train()
    is_finite = all(parameter.isfinite().all() for parameter in trainer.model.parameters())
    losses = logged(trainer, "loss")
    return trainer.state.global_step > 0 and is_finite and all(map(math.isfinite, losses))


def refusal(folder, **options):
    try:
        SRPOConfig(**options_of(folder, **options))
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("method", ["grpo", "srpo"])
def test_what_grpo_trainer_fails_with_is_refused_by_name_and_what_it_does_is_taken(tmp_path, method):
    for table, is_refused in ((FAILS, True), (WORKS, False)):
        for name, values, more in table:
            for value in values:
                message = refusal(tmp_path, method=method, **(more | {name: value}))
                assert (f"{name}" in message) is is_refused, message
                assert bool(message) is is_refused, message


@pytest.mark.parametrize(("name", "value", "more"), cases(FAILS))
def test_grpo_trainer_fails_with_what_is_refused(tmp_path, name, value, more):
    try:
        is_trained = trained_by_grpo_trainer(tmp_path, **(more | {name: value}))
    except Exception:  # whatever it raises: that is what the rules are there for
        return
    assert not is_trained


@pytest.mark.parametrize(("name", "value", "more"), cases(WORKS))
def test_grpo_trainer_does_what_is_taken(tmp_path, name, value, more):
    asks_for_steps = (name, value) != ("num_train_epochs", 0)
    assert trained_by_grpo_trainer(tmp_path, **(more | {name: value})) is asks_for_steps


@pytest.mark.parametrize("method", ["grpo", "srpo"])
@pytest.mark.parametrize(("name", "value", "more"), cases(WORKS[:NUM_TRAINED]))
def test_srpo_trainer_does_it_too(tmp_path, name, value, more, method):
    options = options_of(tmp_path, method=method, **(more | {name: value}))
    data = {"reward_funcs": varied, "eval_dataset": chat_dataset()}
    trainer = make_trainer(options.pop("output_dir"), rollout_func=None, **data, **options)
    trainer.train()
    asked = {"max_steps": 3, "save_total_limit": 3, "num_train_epochs": 0}  # epochs of one step each
    assert trainer.state.global_step == asked.get(name, 2)
    assert all(parameter.isfinite().all() for parameter in trainer.model.parameters())


@pytest.mark.parametrize("metric", ["loss", "eval_loss"])
def test_a_loss_as_the_best_metric_chooses_trls_evaluation(tmp_path, metric):
    config = SRPOConfig(**options_of(tmp_path, **EVALUATION, metric_for_best_model=metric, routing="srpo"))
    assert not config.samples_evaluation
    assert config.num_generations_eval is None
    assert (config.metric_for_best_model, config.greater_is_better) == (metric, False)
    with pytest.raises(ValueError, match="draws no samples to score"):
        SRPOConfig(**options_of(tmp_path, metric_for_best_model=metric, eval_top_p=0.9))


def test_every_rule_has_a_value_that_grpo_trainer_fails_with(tmp_path):
    of_numbers = {**RANGES, **SAPO, **ADAM, **LOOSE, **VESPO, "top_k": None, "num_generations_eval": None}
    same = {"vespo_k_neg", "vespo_lambda_pos"}  # as the other two
    assert {*of_numbers, *CHOICES} - same <= {name for name, *_ in FAILS}
    given = [
        vars(SRPOConfig(**options_of(tmp_path))) | {"is_routed": False} | more | {name: value}
        for name, values, more in FAILS
        for value in values
    ]
    of_the_machine = {bfloat16_is_there}  # tests/commands/test_trl_files.py
    for rule in set(INHERITED_RULES) - of_the_machine:
        assert any(list(rule_problems([rule], values, inherited_problems(values))) for values in given), rule
