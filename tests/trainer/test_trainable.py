"""Layers frozen and unfrozen while training: the teacher holds, and keeps, everything that has ever trained."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, inject_adapter_in_model
from transformers import TrainerCallback

from harness import LORA, flat_parameters, logged, make_trainer, tiny_model
from srpo_trl.loss.gradient_norms import BranchGradients
from srpo_trl.loss.head import STUDENT_HEAD, lm_head_of
from srpo_trl.teacher.weights import TeacherWeights

RATE = 0.2


class Trains(TrainerCallback):
    """Makes trainable, at the beginning of each step, what `chosen(step, name)` says."""

    def __init__(self, chosen):
        self.chosen = chosen

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(self.chosen(state.global_step, name))


SCHEDULES = {
    "one block at a time": lambda step, name: "layers" not in name or f"layers.{step % 2}." in name,
    "embeddings until later": lambda step, name: "embed" not in name or step < 2,
    "embeddings from later on": lambda step, name: "embed" not in name or step >= 2,
    "blocks first, head last": lambda step, name: ("layers" in name) == (step < 2),
    "all but one step": lambda step, name: "layers.0." in name or step != 1,
}


def head_with_bias(**options):
    """A tiny model with an LM head of its own, whose bias is not zero."""
    torch.manual_seed(1)
    model = tiny_model(tie_word_embeddings=False, **options)
    head = torch.nn.Linear(model.config.hidden_size, model.config.vocab_size)
    head.weight.data.copy_(model.lm_head.weight.data)
    head.bias.data.normal_(0.0, 2.0)
    model.lm_head = head
    return model


def values_of(model):
    return {name: p.detach().double().clone() for name, p in model.named_parameters()}


def teacher_values(trainer):
    """All values that the teacher's pass runs with."""
    with trainer.teacher.weights.swapped_in():
        return values_of(trainer.model)


def follow(trainer, rate, every=1):
    """The teacher by its law, for every parameter of the model, moved beside the trainer's after so many steps."""
    expected = values_of(trainer.model)
    tick = trainer._update  # the teacher itself is made at its first use, with what trains then

    def both():
        for name, student in (
            values_of(trainer.model).items() if trainer.state.global_step % every == 0 else ()
        ):
            expected[name] = (1 - rate) * expected[name] + rate * student
        tick()

    trainer._update = both
    return expected


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_teacher_is_the_average_of_all_parameters_whatever_is_frozen(tmp_path, schedule):
    model = head_with_bias()
    trainer = make_trainer(
        tmp_path,
        model=model,
        callbacks=[Trains(schedule)],
        max_steps=5,
        learning_rate=0.3,
        teacher_update_rate=RATE,
    )
    initial = values_of(model)
    expected = follow(trainer, RATE)
    trainer.train()
    final = values_of(model)
    assert all(not torch.equal(final[name], initial[name]) for name in initial)
    for name, value in teacher_values(trainer).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["base", "live"])
def test_other_teachers_are_the_initial_weights_and_the_student(tmp_path, kind):
    model = head_with_bias()
    trainer = make_trainer(
        tmp_path,
        model=model,
        callbacks=[Trains(SCHEDULES["blocks first, head last"])],
        max_steps=4,
        learning_rate=0.3,
        teacher_model_kind=kind,
    )
    initial = values_of(model)
    trainer.train()
    expected = initial if kind == "base" else values_of(model)
    assert all(torch.equal(value, expected[name]) for name, value in teacher_values(trainer).items())


def requested_heads(trainer):
    """The teacher's head of every micro-batch, as the loss gets it: of the student's where there is none."""
    heads = []
    request = trainer._request

    def keep(routed):
        made = request(routed)
        (teacher,) = made.teachers
        head = lm_head_of(trainer.student) if teacher.head is STUDENT_HEAD else teacher.head
        weight, bias = head.weight_VD, head.bias_V
        heads.append((weight.detach().clone(), bias.detach().clone()))
        return made

    trainer._request = keep
    return heads


PARTS = {"head": ("lm_head",), "weight": ("lm_head.weight",), "bias": ("lm_head.bias",)}


@pytest.mark.parametrize("kind", ["ema", "base", "live"])
@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
def test_head_unfrozen_while_rollouts_are_in_use_leaves_their_teacher_alone(tmp_path, parts, kind):
    """Three steps of one rollout batch; the head trains from the second on."""

    def chosen(step, name):
        return "lm_head" not in name or (step >= 1 and any(part in name for part in parts))

    model = head_with_bias()
    trainer = make_trainer(
        tmp_path,
        model=model,
        callbacks=[Trains(chosen)],
        max_steps=3,
        num_iterations=3,
        learning_rate=1.0,
        teacher_model_kind=kind,
    )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(chosen(0, name))
    trainer.create_optimizer()
    trainer.optimizer.add_param_group(
        {"params": [p for n, p in model.named_parameters() if "lm_head" in n], "lr": 1.0}
    )
    heads = requested_heads(trainer)
    weight, bias = model.lm_head.weight.detach().clone(), model.lm_head.bias.detach().clone()
    trainer.train()
    moved = {
        n
        for n, p in model.lm_head.named_parameters()
        if not torch.equal(p, {"weight": weight, "bias": bias}[n])
    }
    assert moved == {part.removeprefix("lm_head.") for part in parts} or moved == {"weight", "bias"}
    assert len(heads) == 3
    assert all(torch.equal(w, weight) and torch.equal(b, bias) for w, b in heads)


def test_a_bias_unfrozen_later_leaves_the_live_teachers_head_alone(tmp_path):
    """The head's weight trains from the start, its bias from the second step of the rollout batch on."""
    model = head_with_bias()
    trainer = make_trainer(
        tmp_path,
        model=model,
        callbacks=[Trains(lambda step, name: name != "lm_head.bias" or step >= 1)],
        max_steps=3,
        num_iterations=3,
        learning_rate=1.0,
        teacher_model_kind="live",
    )
    heads = requested_heads(trainer)
    weight, bias = model.lm_head.weight.detach().clone(), model.lm_head.bias.detach().clone()
    trainer.train()
    assert not torch.equal(model.lm_head.bias, bias)
    assert all(torch.equal(w, weight) and torch.equal(b, bias) for w, b in heads)


@pytest.mark.parametrize("kind", ["ema", "base", "live"])
def test_head_that_trained_and_is_frozen_is_still_the_teachers_own(tmp_path, kind):
    model = head_with_bias()
    trainer = make_trainer(
        tmp_path,
        model=model,
        callbacks=[Trains(lambda step, name: "lm_head" not in name or step < 1)],
        max_steps=3,
        learning_rate=1.0,
        teacher_update_rate=RATE,
        teacher_model_kind=kind,
    )
    initial = model.lm_head.weight.detach().clone(), model.lm_head.bias.detach().clone()
    heads = requested_heads(trainer)
    trainer.train()
    trained = model.lm_head.weight.detach(), model.lm_head.bias.detach()
    assert all(not torch.equal(t, i) for t, i in zip(trained, initial, strict=True))
    for step, head in enumerate(heads):
        share = {"ema": 1 - (1 - RATE) ** step, "base": 0.0, "live": float(step > 0)}[kind]
        for value, first, last in zip(head, initial, trained, strict=True):
            torch.testing.assert_close(value, (1 - share) * first + share * last, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["ema", "base", "live"])
def test_a_head_that_is_computed_is_the_teachers(tmp_path, kind):
    """Its weight is a product of two parameters, and no parameter itself."""
    model = tiny_model(tie_word_embeddings=False)
    torch.nn.utils.parametrizations.weight_norm(model.lm_head)
    trainer = make_trainer(
        tmp_path,
        model=model,
        max_steps=4,
        num_iterations=2,
        learning_rate=1.0,
        teacher_update_rate=RATE,
        teacher_model_kind=kind,
    )
    expected = follow(trainer, {"ema": RATE, "base": 0.0, "live": 1.0}[kind], every=2)
    heads, wanted = [], []
    request = trainer._request

    def keep(routed):
        made = request(routed)
        heads.append(made.teachers[0].head.weight_VD.double())
        norm, direction = (expected[f"lm_head.parametrizations.weight.original{i}"] for i in (0, 1))
        wanted.append(norm * direction / direction.norm(dim=1, keepdim=True))
        return made

    trainer._request = keep
    trainer.train()
    assert not torch.equal(heads[0], heads[2]) or kind == "base"
    for head, right in zip(heads, wanted, strict=True):
        torch.testing.assert_close(head, right, rtol=1e-5, atol=1e-5)


def test_a_frozen_parameter_still_draws_the_average():
    model = torch.nn.Linear(2, 2)
    teacher = TeacherWeights(model, "ema", 0.5)
    first = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.add_(1.0)
    model.weight.requires_grad_(False)
    for gap in (0.5, 0.25):
        distance = teacher.update()
        torch.testing.assert_close(teacher.state_dict()["weight"], first + 1.0 - gap)
        assert float(distance.squared_distance) == pytest.approx(4 * gap**2)


@pytest.mark.parametrize("kind", ["ema", "base"])
def test_what_becomes_trainable_starts_as_it_is_and_only_once(kind):
    model = torch.nn.Linear(2, 2)
    model.weight.requires_grad_(False)
    teacher = TeacherWeights(model, kind, 0.5)
    assert list(teacher.state_dict()) == ["bias"]
    assert not teacher.hold_trainable()
    first = model.weight.detach().clone()
    model.weight.requires_grad_(True)
    assert teacher.hold_trainable()
    with torch.no_grad():
        model.weight.add_(1.0)
    assert not teacher.hold_trainable()
    assert torch.equal(teacher.state_dict()["weight"], first)
    with teacher.swapped_in():
        assert torch.equal(model.weight, first)


def test_a_teacher_of_a_model_that_is_frozen_as_a_whole_has_no_distance():
    teacher = TeacherWeights(torch.nn.Linear(2, 2).requires_grad_(False), "ema", 0.5)
    assert float(teacher.update().squared_distance) == 0.0


@pytest.mark.parametrize("kind", ["ema", "base", "live"])
def test_a_resumed_run_goes_on_with_another_set_frozen(tmp_path, kind):
    """What a step trained that was just saved is not what a new trainer, or the next step, trains."""
    options = {
        "max_steps": 4,
        "learning_rate": 0.3,
        "teacher_model_kind": kind,
        "num_iterations": 2,
        "callbacks": [Trains(SCHEDULES["one block at a time"])],
    }
    whole = make_trainer(tmp_path / "whole", model=head_with_bias(), **options)
    whole.train()
    saves = options | {"save_strategy": "steps", "save_steps": 1}
    for stop in (1, 2, 3):
        folder = tmp_path / str(stop)
        make_trainer(folder, model=head_with_bias(), **(saves | {"max_steps": stop})).train()
        resumed = make_trainer(folder, model=head_with_bias(), **saves)
        resumed.train(resume_from_checkpoint=str(folder / f"checkpoint-{stop}"))
        assert torch.equal(flat_parameters(resumed.model), flat_parameters(whole.model))
        resumed_teacher, teacher = teacher_values(resumed), teacher_values(whole)
        assert all(torch.equal(resumed_teacher[name], value) for name, value in teacher.items())


def saved(folder, frozen, **changes):
    """A teacher's file of a layer whose weight has trained, and maybe its bias; the student's values of then."""
    model = torch.nn.Linear(2, 2)
    getattr(model, frozen).requires_grad_(False)
    teacher = TeacherWeights(model, "ema", 0.5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(1.0)
    teacher.update()
    teacher.save(folder)
    return model, teacher


def test_a_file_and_a_model_may_differ_in_what_is_frozen(tmp_path):
    student, teacher = saved(tmp_path, "bias")
    model = torch.nn.Linear(2, 2)
    model.load_state_dict(student.state_dict())
    model.weight.requires_grad_(False)  # and the bias is trainable
    restored = TeacherWeights(model, "ema", 0.5)
    restored.load(tmp_path)
    assert torch.equal(restored.state_dict()["weight"], teacher.state_dict()["weight"])
    assert torch.equal(restored.state_dict()["bias"], student.bias)


@pytest.mark.parametrize("model", [torch.nn.Linear(3, 2), torch.nn.Sequential(torch.nn.Linear(2, 2))])
def test_a_file_of_another_model_is_refused(tmp_path, model):
    saved(tmp_path, "bias")
    with pytest.raises(ValueError, match=r"differ in 1 trained parameters, \['weight'\] first"):
        TeacherWeights(model, "ema", 0.5).load(tmp_path)


@pytest.mark.parametrize("kind", ["ema", "base"])
def test_a_parameter_that_is_gone_or_resized_is_named(kind):
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    teacher = TeacherWeights(model, kind, 0.5)
    model[1].weight = torch.nn.Parameter(torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"1.weight had the shape \(2, 2\) .* has \(3, 2\) now"):
        teacher.update()
    del model[1]
    with pytest.raises(
        ValueError, match=r"2 parameters .* are gone from the model, \['1.weight', '1.bias'\]"
    ):
        teacher.update()


def test_a_parameter_that_is_replaced_is_followed_by_its_name():
    model = torch.nn.Linear(2, 2)
    teacher = TeacherWeights(model, "ema", 0.5)
    first = model.weight.detach().clone()
    model.weight = torch.nn.Parameter(first + 1.0)
    teacher.update()
    torch.testing.assert_close(teacher.state_dict()["weight"], first + 0.5)
    with teacher.swapped_in():
        torch.testing.assert_close(model.weight.detach(), first + 0.5)


class AddsAdapter(TrainerCallback):
    """Adds an adapter to the model before the given step, and its weights to the optimizer."""

    def __init__(self, event, step, adapter):
        self.event, self.step, self.adapter = event, step, adapter

    def add(self, event, state, model, optimizer):
        if (event, state.global_step) != (self.event, self.step):
            return
        before = {id(p) for p in model.parameters()}
        if isinstance(model, PeftModel):
            model.add_adapter("second", self.adapter)
            model.set_adapter("second")
        else:
            inject_adapter_in_model(self.adapter, model)
        optimizer.param_groups[0]["params"] += [p for p in model.parameters() if id(p) not in before]

    def on_train_begin(self, args, state, control, model=None, optimizer=None, **kwargs):
        self.add("train", state, model, optimizer)

    def on_step_begin(self, args, state, control, model=None, optimizer=None, **kwargs):
        self.add("step", state, model, optimizer)


def test_an_adapter_added_when_training_begins_is_the_teachers(tmp_path):
    model = tiny_model()
    trainer = make_trainer(tmp_path, model=model, callbacks=[AddsAdapter("train", 0, LORA)], max_steps=3)
    trainer.train()
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert set(trainer.teacher.weights.state_dict()) == trained
    assert all(p.abs().max() > 0 for n, p in model.named_parameters() if "lora_B" in n)


def test_an_adapter_added_while_training_is_taken_up_and_the_first_is_kept(tmp_path):
    model = get_peft_model(tiny_model(), LORA)
    second = LoraConfig(r=2, target_modules=["k_proj"])
    trainer = make_trainer(
        tmp_path,
        model=model,
        callbacks=[AddsAdapter("step", 2, second)],
        max_steps=4,
        learning_rate=0.3,
        teacher_update_rate=RATE,
    )
    trainer.train()
    held = trainer.teacher.weights.state_dict()
    assert {name.split(".")[-2] for name in held} == {"default", "second"}
    assert all(held[n].abs().max() > 0 for n in held if "lora_B" in n)


def test_an_adapter_of_the_head_added_while_training_is_refused(tmp_path):
    model = get_peft_model(tiny_model(tie_word_embeddings=False), LORA)
    late = AddsAdapter("step", 1, LoraConfig(r=2, target_modules=["lm_head"]))
    trainer = make_trainer(tmp_path, model=model, callbacks=[late], max_steps=2)
    with pytest.raises(ValueError, match="wraps the LM head"):
        trainer.train()


def test_gradient_shares_follow_what_is_trainable(tmp_path):
    """Two micro-batches a step, of which other layers than in the first step are trained."""
    options = {
        "model": head_with_bias(),
        "gradient_share_steps": 1,
        "max_steps": 2,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 2,
        "steps_per_generation": 2,
    }
    trainer = make_trainer(tmp_path, callbacks=[Trains(SCHEDULES["one block at a time"])], **options)
    trainer.train()
    assert len(logged(trainer, "srpo/gradient/policy_norm")) == 2


def test_branch_gradients_are_of_the_parameters_trainable_when_a_loss_is_added():
    model = torch.nn.Linear(2, 1)
    gradients = BranchGradients(model)
    inputs = torch.tensor([[3.0, 4.0]])
    gradients.add(policy=model(inputs).sum())
    model.bias.requires_grad_(False)
    gradients.add(policy=model(inputs).sum())
    norms = gradients.norms(lambda gradient: gradient)
    assert float(norms["policy"]) == pytest.approx((6**2 + 8**2 + 1) ** 0.5)
    gradients.add(policy=model(inputs).sum())
    assert float(gradients.norms(lambda gradient: gradient)["policy"]) == pytest.approx(5.0)
