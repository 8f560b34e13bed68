"""The trainer's loss and gradient against the oracle: plain NumPy on logits of plain forward passes."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, TrainerCallback

import oracle
from harness import (
    NUM_GENERATIONS,
    flat_parameters,
    logged,
    make_trainer,
    tiny_model,
)
from objective_cases import (
    OPTIONS,
    TOKENIZER,
    build,
    completion_ids,
    logits_of,
    prompt_ids,
    rows,
    spy_on_demonstrations,
)


def with_frozen(rollouts, frozen):
    return [replace(r, frozen_student_logits=f.student_logits) for r, f in zip(rollouts, frozen, strict=True)]


def slope(model, direction, shown, teacher, options, old=None, step=3e-4):
    """Derivative of the oracle's loss along a direction in parameter space, by central differences.

    The architecture normalizes in float32 whatever its dtype, so a small step would measure rounding.
    """
    here = build(model, teacher, shown, old)
    losses = []
    for sign in (1, -1):
        moved = copy.deepcopy(model)
        offset = 0
        with torch.no_grad():
            for parameter in moved.parameters():
                part = direction[offset : offset + parameter.numel()].view_as(parameter)
                parameter.add_(part, alpha=sign * step)
                offset += parameter.numel()
        losses.append(oracle.joint_loss(with_frozen(build(moved, teacher, shown, old), here), options))
    return (losses[0] - losses[1]) / (2 * step)


def train(tmp_path, **options):
    trainer = make_trainer(
        tmp_path,
        model=tiny_model(dtype=torch.float64),
        per_device_train_batch_size=4,
        gradient_accumulation_steps=4,
        **options,
    )
    shown = spy_on_demonstrations(trainer)
    before = copy.deepcopy(trainer.model)
    before.__dict__.pop("forward", None)
    trainer.train()
    return trainer, shown, before


VARIANTS = {
    "srpo": {},
    "srpo without weights": {"entropy_weight_beta": 0.0},
    "srpo with sharp weights": {"entropy_weight_beta": 4.0},
    "grpo as a route": {"success_reward_threshold": -1.0},
    "sdpo": {"method": "sdpo", "entropy_weight_beta": 1.0},
    "sdpo without weights": {"method": "sdpo"},
    "sdpo on failed only": {"method": "sdpo_failed", "entropy_weight_beta": 1.0},
    "sdpo on correct only": {"method": "sdpo_correct", "entropy_weight_beta": 1.0},
    "advantage mix": {"method": "advantage_mix", "entropy_weight_beta": 1.0},
    "advantage mix of 0.3": {"method": "advantage_mix", "advantage_mix_lambda": 0.3},
    "srpo on sdpo's routes": {"routing": "sdpo"},
    "forward KL": {"distillation_alpha": 0.0},
    "reverse KL": {"distillation_alpha": 1.0},
    "renormalized top K": {"distillation_add_tail": False},
    "full vocabulary": {"distillation_topk": None},
    "sampled token": {"distillation_estimator": "sampled", "distillation_alpha": 1.0},
    "clipped entries": {"distillation_pointwise_clip": 0.002, "distillation_alpha": 1.0},
    "temperature": {"temperature": 1.7},
}


def oracle_options(options):
    if "routing" in options:
        options = {"method": options["routing"]}
    elif "method" in options:
        options = {"entropy_weight_beta": 0.0} | options
    return oracle.Options(**({"num_generations": NUM_GENERATIONS, "distillation_topk": 5} | options))


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_loss_and_gradient_equal_the_oracles(tmp_path, options):
    trainer, shown, before = train(tmp_path, **options)
    rollouts = build(before, before, shown)
    expected = oracle.joint_objective(rollouts, oracle_options(options))
    assert logged(trainer, "loss")[0] == pytest.approx(expected.loss, rel=1e-4, abs=2e-6)
    total = expected.num_routed_tokens
    assert logged(trainer, "srpo/loss/distilled")[0] == pytest.approx(
        expected.distillation_sum / total, rel=1e-4, abs=1e-7
    )

    gradient = flat_parameters(before) - flat_parameters(trainer.model)  # plain descent at rate 1
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        direction = torch.randn(len(gradient), generator=generator, dtype=torch.float64)
        direction = direction / direction.norm() + gradient / gradient.norm()  # never all but orthogonal
        expected_slope = slope(before, direction, shown, before, oracle_options(options))
        assert float(gradient @ direction) == pytest.approx(expected_slope, rel=1e-3)


def head_with_bias():
    """Not tied, with a bias that matters: it trains, so the teacher has one of its own."""
    model = tiny_model(dtype=torch.float64, tie_word_embeddings=False)
    head = torch.nn.Linear(model.config.hidden_size, model.config.vocab_size, dtype=torch.float64)
    with torch.no_grad():
        head.weight.copy_(model.lm_head.weight)
        head.bias.copy_(torch.linspace(-3.0, 3.0, len(head.bias)))
    model.lm_head = head
    return model


def other_architecture(kind, **options):
    """A random model of two layers whose logits are not the product of hidden states and head alone."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"vocab_size": len(TOKENIZER), "pad_token_id": TOKENIZER.pad_token_id, "eos_token_id": None}
    config = AutoConfig.for_model(kind, num_key_value_heads=1, **sizes, **ids, bos_token_id=None, **options)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float64)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(20.0)
    return model


HEADS = {
    "tied": lambda: tiny_model(dtype=torch.float64),
    "bias": head_with_bias,
    "soft cap": lambda: other_architecture("gemma3_text", head_dim=16, final_logit_softcapping=2.0),
    "scale": lambda: other_architecture("cohere", logit_scale=0.25),
    "divisor": lambda: other_architecture("granite", logits_scaling=3.0),
}
LATER = {
    **{head: (head, {}) for head in HEADS},
    "bias, initial weights": ("bias", {"teacher_model_kind": "base"}),
    "bias, live": ("bias", {"teacher_model_kind": "live"}),
    "tied, initial weights": ("tied", {"teacher_model_kind": "base"}),
    "tied, live": ("tied", {"teacher_model_kind": "live"}),
    "states on the host": ("bias", {"teacher_states_on_cpu": True}),
    **{
        f"bias, {name}": ("bias", VARIANTS[name])
        for name in ("forward KL", "reverse KL", "renormalized top K", "full vocabulary", "sampled token")
    },
    "bias, temperature": ("bias", {"temperature": 1.7, "entropy_weight_beta": 2.0}),
    "soft cap, temperature": ("soft cap", {"temperature": 1.7, "distillation_topk": None}),
    "scale, temperature": ("scale", {"temperature": 0.6, "entropy_weight_beta": 2.0}),
}
OF_THE_TRAINER = {"teacher_model_kind", "teacher_states_on_cpu"}


@pytest.mark.parametrize(("head", "options"), LATER.values(), ids=LATER)
def test_a_later_step_equals_the_oracles_with_the_teacher_by_its_law(tmp_path, head, options):
    """The second step: teacher and student have parted, in every parameter that trains."""
    trainer = make_trainer(
        tmp_path,
        model=HEADS[head](),
        per_device_train_batch_size=4,
        gradient_accumulation_steps=4,
        max_steps=2,
        teacher_update_rate=0.3,
        **options,
    )
    shown = spy_on_demonstrations(trainer)
    students = []
    trainer.add_callback(Snapshots(students))
    trainer.train()

    first, middle, last = students
    share = {"ema": 0.3, "base": 0.0, "live": 1.0}[options.get("teacher_model_kind", "ema")]
    teacher = copy.deepcopy(first)
    with torch.no_grad():
        for value, student in zip(teacher.parameters(), middle.parameters(), strict=True):
            value.lerp_(student, share)
    of_the_loss = oracle_options({k: v for k, v in options.items() if k not in OF_THE_TRAINER})
    expected = oracle.joint_objective(build(middle, teacher, shown), of_the_loss)
    assert expected.distillation_sum != 0
    assert logged(trainer, "srpo/loss/distilled")[1] == pytest.approx(
        expected.distillation_sum / expected.num_routed_tokens, rel=1e-4, abs=1e-7
    )
    assert logged(trainer, "loss")[1] == pytest.approx(expected.loss, rel=1e-4, abs=2e-6)
    gradient = flat_parameters(middle) - flat_parameters(last)
    direction = torch.randn(len(gradient), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    direction = direction / direction.norm() + gradient / gradient.norm()
    # Small, so that no token enters or leaves the top K within the step.
    expected_slope = slope(middle, direction, shown, teacher, of_the_loss, step=3e-5)
    assert float(gradient @ direction) == pytest.approx(expected_slope, rel=1e-3)


class Snapshots(TrainerCallback):
    """Copies of the model before the first step and after each."""

    def __init__(self, students):
        self.students = students

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.students.append(copy.deepcopy(model))

    on_step_end = on_train_begin


@pytest.mark.parametrize("importance_clip", [2.0, 1.05, None])
def test_second_iteration_uses_the_old_policy_and_clips(tmp_path, importance_clip):
    """Two updates on one rollout batch, far enough apart that the importance ratio and the policy clip act."""
    options = {"num_iterations": 2, "learning_rate": 3.0, "distillation_is_clip": importance_clip}
    of_the_loss = oracle_options({"distillation_is_clip": importance_clip})
    one, shown, before = train(tmp_path / "one", max_steps=1, **options)
    middle = copy.deepcopy(one.model)
    middle.__dict__.pop("forward", None)
    two, _, _ = train(tmp_path / "two", max_steps=2, **options)
    expected = oracle.joint_objective(build(middle, before, shown, old=before), of_the_loss)
    assert logged(two, "loss")[1] == pytest.approx(expected.loss, rel=1e-4)
    ratio = logged(two, "srpo/distillation/importance_ratio")[1]
    assert (ratio == 1.0) == (importance_clip is None)
    assert importance_clip is None or ratio != pytest.approx(1.0, abs=0.01)
    gradient = (flat_parameters(middle) - flat_parameters(two.model)) / 3.0
    direction = gradient / gradient.norm()
    expected_slope = slope(middle, direction, shown, before, of_the_loss, old=before)
    assert float(gradient @ direction) == pytest.approx(expected_slope, rel=1e-3)


def test_route_metrics_equal_the_oracles(tmp_path):
    trainer, shown, before = train(tmp_path)
    expected = oracle.joint_objective(build(before, before, shown), OPTIONS)
    policy = np.mean([w == (1.0, 0.0) for w in expected.routes])
    distilled = np.mean([w == (0.0, 1.0) for w in expected.routes])
    assert logged(trainer, "srpo/route/policy_frac")[0] == pytest.approx(policy)
    assert logged(trainer, "srpo/route/distilled_frac")[0] == pytest.approx(distilled)
    assert logged(trainer, "srpo/route/skipped_frac")[0] == pytest.approx(1 / 16)
    assert logged(trainer, "srpo/weight/raw_mean")[0] == pytest.approx(
        expected.mean_unnormalized_weight, rel=1e-5
    )


def test_samplers_importance_ratio_multiplies_both_branches(tmp_path):
    """As under vLLM: the sampler's log-probabilities are off, and TRL's ratio, truncated at 2, corrects for it."""
    trainer = make_trainer(
        tmp_path,
        model=tiny_model(dtype=torch.float64),
        per_device_train_batch_size=4,
        gradient_accumulation_steps=4,
    )
    before = copy.deepcopy(trainer.model)
    before.__dict__.pop("forward", None)
    replayed = trainer.rollout_func
    generator = np.random.default_rng(0)
    noise, ratios = {}, {}
    for row in rows():
        ids = completion_ids(row[1])
        noise[row] = generator.normal(0, 0.8, len(ids))
        ratios[row] = np.minimum(np.exp(noise[row]), 2.0)

    def sampled(prompts, trainer):
        output = replayed(prompts, trainer)
        output["logprobs"] = []
        for row in rows():
            ids = completion_ids(row[1])
            logps = oracle.log_softmax(logits_of(before, prompt_ids(row[0]), ids))
            output["logprobs"].append([logps[t, token] - noise[row][t] for t, token in enumerate(ids)])
        return output

    trainer.rollout_func = sampled
    trainer.use_vllm = True
    trainer.vllm_generation = SimpleNamespace(sync_weights=lambda: None)
    trainer._last_loaded_step = -1
    shown = spy_on_demonstrations(trainer)
    trainer.train()
    rollouts = [
        replace(rollout, sampler_ratio=ratios[row])
        for row, rollout in zip(rows(), build(before, before, shown), strict=True)
    ]
    expected = oracle.joint_objective(rollouts, OPTIONS)
    total = expected.num_routed_tokens
    assert max(ratios[row].max() for row in rows()) == 2.0
    assert logged(trainer, "srpo/loss/policy")[0] == pytest.approx(expected.policy_sum / total, rel=1e-4)
    assert logged(trainer, "srpo/loss/distilled")[0] == pytest.approx(
        expected.distillation_sum / total, rel=1e-4
    )
