"""Losses, gradients, logits and teachers that are not finite: the step is skipped, counted and saved; the run stops."""

import math

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from transformers import TrainerCallback

from harness import LORA, flat_parameters, logged, make_trainer, tiny_model
from srpo_trl.host.finite_steps import NonFiniteStepsError
from srpo_trl.host.nonfinite_report import NUM_SAVED_STEPS, StepRecord, step_report
from srpo_trl.methods.record import Route
from srpo_trl.rollout.batch import TEACHER_ENTROPY

ADAMW = {
    "optim": "adamw_torch",
    "learning_rate": 1e-3,
    "weight_decay": 0.1,
    "max_grad_norm": 1.0,
    "max_steps": 3,
}
SPLIT = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}


def spoil_loss(trainer, value, steps, micro_batch=0):
    """Add `value` to the loss of one micro-batch of some optimizer steps, counted from 0."""
    original, seen = trainer._compute_loss, []

    def compute(model, inputs):
        step = trainer.state.global_step
        seen.append(step)
        is_spoiled = step in steps and seen.count(step) == micro_batch + 1
        return original(model, inputs) + (value if is_spoiled else 0.0)

    trainer._compute_loss = compute
    return trainer


def spoil_gradient(trainer, value, steps, name="model.layers.0.self_attn.q_proj.weight"):
    """Put `value` into one element of a parameter's gradient; the loss stays finite."""

    def spoil(gradient):
        if trainer.state.global_step in steps:
            gradient = gradient.clone()
            gradient.view(-1)[0] = value
        return gradient

    dict(trainer.model.named_parameters())[name].register_hook(spoil)
    return trainer


class States(TrainerCallback):
    """Weights, optimizer state and teacher before the run's first step and after every step."""

    def __init__(self):
        self.states = []

    def keep(self, trainer):
        optimizer = trainer.optimizer.optimizer.state_dict()["state"]
        moments = [v.double().reshape(-1) for s in optimizer.values() for v in s.values()]
        teacher = [v.double().reshape(-1) for v in trainer.teacher.weights.state_dict().values()]
        self.states.append(
            (flat_parameters(trainer.model), moments, teacher, trainer.teacher.weights.num_updates)
        )

    @staticmethod
    def of(trainer):
        kept = States()
        trainer.add_callback(kept)
        kept.on_step_end = lambda *args, **kwargs: kept.keep(trainer)
        return kept


def same(one, other):
    return [
        torch.equal(one[0], other[0]),
        len(one[1]) == len(other[1]) and all(map(torch.equal, one[1], other[1])),
        all(map(torch.equal, one[2], other[2])),
        one[3] == other[3],
    ]


FAULTS = {
    "loss NaN": lambda trainer: spoil_loss(trainer, math.nan, {1}),
    "loss infinite": lambda trainer: spoil_loss(trainer, math.inf, {1}),  # its gradient alone is finite
    "loss of the last micro-batch": lambda trainer: spoil_loss(trainer, -math.inf, {1}, micro_batch=3),
    "gradient NaN": lambda trainer: spoil_gradient(trainer, math.nan, {1}),
    "gradient infinite": lambda trainer: spoil_gradient(trainer, math.inf, {1}),
}


@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 0.0}, {"method": "advantage_mix"}], ids=str)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_step_that_is_not_finite_leaves_everything_but_the_counters(tmp_path, fault, options):
    trainer = FAULTS[fault](make_trainer(tmp_path, **(ADAMW | SPLIT | options)))
    kept = States.of(trainer)
    trainer.train()
    first, skipped, third = kept.states
    assert same(skipped, first) == [True] * 4
    assert same(third, skipped) == [False] * 4
    assert torch.isfinite(third[0]).all()
    assert trainer.state.global_step == 3
    assert trainer._step == 12  # micro-batches
    assert logged(trainer, "srpo/nonfinite_steps")[:3] == [0.0, 1.0, 0.0]
    ours = [value for entry in trainer.state.log_history for name, value in entry.items() if "srpo/" in name]
    assert all(map(math.isfinite, ours))
    assert [path.name for path in (tmp_path / "nonfinite").iterdir()] == ["step-2-rank-0.pt"]


@pytest.mark.parametrize("options", [{"loss_type": "grpo"}, {"loss_type": "dapo", **SPLIT}], ids=str)
def test_grpo_routing_skips_too_where_it_is_asked_to(tmp_path, options):
    trainer = make_trainer(tmp_path, method="grpo", max_nonfinite_steps=3, **(ADAMW | options))
    before = []
    original = trainer._compute_loss

    def compute(model, inputs):
        before.append(flat_parameters(trainer.model))
        return original(model, inputs)

    trainer._compute_loss = compute
    spoil_loss(trainer, math.inf, {1})
    trainer.train()
    num = len(before) // 3
    assert torch.equal(before[num], before[2 * num])
    assert not torch.equal(before[0], before[num])
    assert not torch.equal(before[2 * num], flat_parameters(trainer.model))


def test_lora_adapters_are_left_alone(tmp_path):
    trainer = spoil_loss(make_trainer(tmp_path, peft_config=LORA, **ADAMW), math.nan, {1})
    kept = States.of(trainer)
    trainer.train()
    assert same(kept.states[1], kept.states[0]) == [True] * 4
    assert same(kept.states[2], kept.states[1])[0] is False


def test_a_rollout_batch_whose_last_step_is_skipped_does_not_move_the_teacher(tmp_path):
    trainer = make_trainer(tmp_path, **(ADAMW | {"num_iterations": 2, "max_steps": 4}))
    kept = States.of(spoil_loss(trainer, math.nan, {1}))
    trainer.train()
    assert [state[3] for state in kept.states] == [0, 0, 0, 1]
    assert all(map(torch.equal, kept.states[0][2], kept.states[2][2]))


# ------------------------------------------------------------------ stopping


def test_the_run_stops_after_so_many_in_a_row(tmp_path):
    options = ADAMW | SPLIT | {"max_steps": 6, "max_nonfinite_steps": 2}
    trainer = make_trainer(tmp_path, save_strategy="steps", save_steps=1, **options)
    kept = States.of(spoil_loss(trainer, math.nan, {1, 3, 4}, micro_batch=2))
    with pytest.raises(NonFiniteStepsError) as error:
        trainer.train()
    text = str(error.value)
    assert text.startswith("Optimizer step 5: the loss or the gradient is not finite")
    assert "for the second time in a row; max_nonfinite_steps=2." in text
    assert "- loss: in micro-batches 2 of 4" in text
    path = tmp_path / "nonfinite" / "step-5-rank-0.pt"
    assert f"Saved: {path};" in text
    assert path.is_file()
    assert "What to try: a lower learning_rate" in text
    assert trainer.state.global_step == 4
    assert torch.equal(flat_parameters(trainer.model), kept.states[2][0])
    resumed = make_trainer(tmp_path, save_strategy="steps", save_steps=1, **options)
    resumed.train(resume_from_checkpoint=True)  # from step 4, itself a skipped one
    assert resumed.state.global_step == 6
    assert torch.isfinite(flat_parameters(resumed.model)).all()


@pytest.mark.parametrize("max_grad_norm", [0.0, 1.0])
def test_the_report_names_the_branch_or_the_parameter(tmp_path, max_grad_norm):
    options = ADAMW | {"max_nonfinite_steps": 2, "max_grad_norm": max_grad_norm}
    name = "model.layers.0.self_attn.q_proj.weight"
    with pytest.raises(NonFiniteStepsError, match="every loss is finite; the gradient is not") as error:
        spoil_gradient(make_trainer(tmp_path, **options), math.nan, {0, 1}, name).train()
    assert f"gradient: from {name} back, 1 of " in str(error.value)

    trainer = make_trainer(tmp_path, max_nonfinite_steps=1)
    original = trainer._request

    def request(routed):
        made = original(routed)
        made.teachers[0].coefficient_N[0] = math.inf
        return made

    trainer._request = request
    with pytest.raises(NonFiniteStepsError, match="distilled loss: in micro-batches 0 of 1") as error:
        trainer.train()
    assert "policy loss" not in str(error.value)


def test_the_saved_batch_is_the_one_that_was_trained_on(tmp_path):
    trainer = make_trainer(tmp_path, **(ADAMW | SPLIT))
    batches = []
    original = trainer._compute_loss

    def compute(model, inputs):
        if trainer.state.global_step == 1:
            batches.append(inputs)
        return original(model, inputs)

    trainer._compute_loss = compute
    spoil_loss(trainer, math.nan, {1}, micro_batch=1).train()
    saved = torch.load(tmp_path / "nonfinite" / "step-2-rank-0.pt", weights_only=True)
    assert (saved["step"], math.isnan(saved["grad_norm"])) == (2, True)
    assert [bool(loss["loss"].isnan()) for loss in saved["losses"]] == [False, True, False, False]
    assert all(loss[branch].isfinite() for loss in saved["losses"] for branch in ("policy", "distilled"))
    assert len(saved["micro_batches"]) == len(batches) == 4
    for found, given in zip(saved["micro_batches"], batches, strict=True):
        assert {"completion_ids", "completion_mask", "advantages", "srpo_route"} <= set(found)
        assert all(torch.equal(found[key], given[key]) for key in found)
        assert not any("hidden" in key for key in found)


def test_only_the_newest_batches_are_kept(tmp_path):
    num_steps = NUM_SAVED_STEPS + 6
    options = {"max_steps": num_steps, "max_nonfinite_steps": num_steps + 1, "logging_steps": num_steps}
    trainer = spoil_loss(make_trainer(tmp_path, **options), math.nan, set(range(num_steps)))
    trainer.train()
    steps = range(num_steps - NUM_SAVED_STEPS + 1, num_steps + 1)
    files = {path.name for path in (tmp_path / "nonfinite").iterdir()}
    assert files == {f"step-{step}-rank-0.pt" for step in steps}
    assert logged(trainer, "srpo/nonfinite_steps")[0] == num_steps


def test_a_folder_that_cannot_be_written_hides_nothing(tmp_path, caplog):
    (tmp_path / "nonfinite").write_text("a file")
    trainer = spoil_loss(make_trainer(tmp_path, max_steps=2, max_nonfinite_steps=2), math.nan, {0, 1})
    with pytest.raises(NonFiniteStepsError, match="Optimizer step 2") as error:
        trainer.train()
    assert "Saved" not in str(error.value)
    assert "The batch of step 1 could not be saved" in caplog.text


# ------------------------------------------------------------------ where values come from


@pytest.mark.parametrize("method", ["srpo", "sdpo", "advantage_mix"])
@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_a_teacher_that_has_diverged_trains_nothing_and_is_named(tmp_path, method, beta):
    trainer = make_trainer(tmp_path, method=method, entropy_weight_beta=beta, max_nonfinite_steps=2, **SPLIT)
    trainer.teacher.weights._values["model.norm.weight"].fill_(math.nan)
    before, rows = flat_parameters(trainer.model), []
    original = trainer._compute_loss

    def compute(model, inputs):
        rows.append((inputs["srpo_route"] >= Route.DISTILLED).nonzero().flatten().tolist())
        return original(model, inputs)

    trainer._compute_loss = compute
    trainer.args.max_steps = 3
    with pytest.raises(NonFiniteStepsError, match="the teacher's logits are not finite") as error:
        trainer.train()
    assert torch.equal(flat_parameters(trainer.model), before)
    last_step = rows[4:]
    assert sum(map(len, last_step)) > 0
    for number, distilled in enumerate(last_step):
        named = f"{TEACHER_ENTROPY}: in rows {', '.join(map(str, distilled))} of micro-batch {number}"
        assert (named in str(error.value)) == bool(distilled)


@pytest.mark.parametrize("method", ["srpo", "grpo"])
def test_a_student_whose_logits_are_not_finite_trains_nothing(tmp_path, method):
    model = tiny_model(tie_word_embeddings=False)
    with torch.no_grad():
        model.lm_head.weight[7] = -math.inf
    trainer = make_trainer(tmp_path, model=model, method=method, max_steps=3, max_nonfinite_steps=2)
    before = flat_parameters(trainer.model)
    with pytest.raises(NonFiniteStepsError, match="Optimizer step 2: the loss or the gradient is not finite"):
        trainer.train()
    assert torch.equal(flat_parameters(trainer.model), before)


def scaled(trainer, scale):
    """Let the trainer scale its loss as it does for float16, which transformers refuses on a CPU."""
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, backoff_factor=0.5)
    trainer.accelerator.scaler = scaler
    trainer.accelerator.unscale_gradients = lambda: scaler.unscale_(trainer.optimizer.optimizer)
    return trainer


def test_loss_scaling_may_search_its_scale_but_not_for_ever(tmp_path):
    """Steps that overflow by their scale are the scaler's; without a scale to lose, or with a NaN loss, they count."""
    options = ADAMW | {"max_steps": 6, "max_nonfinite_steps": 1}
    trainer = make_trainer(tmp_path, **options)
    spoil_gradient(trainer, math.inf, {0, 1})
    kept = States.of(scaled(trainer, 64.0))
    before = flat_parameters(trainer.model)
    trainer.train()
    assert [torch.equal(state[0], before) for state in kept.states] == [True, True, *[False] * 4]
    assert [state[3] for state in kept.states] == [0, 0, 1, 2, 3, 4]  # nor does the teacher move
    assert not any(logged(trainer, "srpo/nonfinite_steps"))
    assert not (tmp_path / "nonfinite").exists()

    trainer = spoil_gradient(make_trainer(tmp_path, **options), math.nan, set(range(6)))
    with pytest.raises(NonFiniteStepsError, match="Optimizer step 4"):  # scales 4, 2, 1, and then below
        scaled(trainer, 4.0).train()
    with pytest.raises(NonFiniteStepsError, match="- loss: in micro-batches 0"):
        scaled(spoil_loss(make_trainer(tmp_path, **options), math.nan, {0}), 64.0).train()


def test_a_step_that_deepspeed_took_all_the_same_stops_the_run(tmp_path, monkeypatch):
    """It does with check_grad_overflow=False in bfloat16."""
    trainer = make_trainer(tmp_path)
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.DEEPSPEED)
    with pytest.raises(NonFiniteStepsError, match="DeepSpeed took this step: the weights are lost"):
        trainer.finite_steps.decide(-1.0, 1)
    monkeypatch.setattr(Accelerator, "optimizer_step_was_skipped", True)
    trainer.finite_steps.decide(-1.0, 2)


def test_every_process_hears_of_the_others():
    given = {"step": 3, "rank": 1, "grad_norm": -1.0, "num_in_a_row": 1, "max_in_a_row": 3, "path": None}
    given["advice"] = {}
    text = step_report(StepRecord(), num_losses_of_rank=[2, 0, 0, 1], was_taken=False, **given)
    assert "- loss on processes 0, 3, which report their own" in text
    assert "every loss is finite" not in text
    assert "every loss is finite" in step_report(
        StepRecord(), num_losses_of_rank=[0] * 4, was_taken=False, **given
    )
