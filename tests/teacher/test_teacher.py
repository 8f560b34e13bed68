"""Whose weights the teacher has: the EMA law, independence of the student, exact exchange, exact storage."""

import pytest
import torch
from peft import get_peft_model

from harness import LORA, flat_parameters, logged, make_trainer, tiny_model
from srpo_trl.teacher.weights import TeacherWeights


def values(teacher):
    return torch.cat([v.double().reshape(-1) for v in teacher.state_dict().values()])


@torch.no_grad()
def move(model, amount):
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(amount)


def logits(model):
    with torch.no_grad():
        return model(torch.arange(6).unsqueeze(0)).logits


def test_a_moved_student_does_not_move_the_teacher():
    model = tiny_model()
    teacher = TeacherWeights(model, "ema", 0.05)
    initial = logits(model)
    move(model, 0.3)
    assert not torch.allclose(logits(model), initial)
    with teacher.swapped_in():
        assert torch.equal(logits(model), initial)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_student_is_restored_to_the_bit(dtype):
    model = tiny_model().to(dtype)
    teacher = TeacherWeights(model, "ema", 0.05)
    move(model, 0.1)
    student, stored = flat_parameters(model), values(teacher)

    def fail_in_the_middle():
        with teacher.swapped_in():
            assert not torch.equal(flat_parameters(model), student)
            raise KeyError

    with pytest.raises(KeyError):
        fail_in_the_middle()
    assert torch.equal(flat_parameters(model), student)
    assert torch.equal(values(teacher), stored)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ema_follows_one_minus_point_95_to_the_n(dtype):
    """Toward a fixed student 1 % away, the gap after n ticks is 0.95**n of the first: also for bfloat16 models."""
    model = tiny_model().to(dtype)
    teacher = TeacherWeights(model, "ema", 0.05)
    initial = values(teacher)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)
    target = flat_parameters(model)
    for n in range(1, 201):
        teacher.update()
        if n in (1, 10, 200):
            moved = float((values(teacher) - initial).norm() / (target - initial).norm())
            assert moved == pytest.approx(1 - 0.95**n, abs=2e-4)


def test_ema_direction_is_toward_the_student_at_the_rate_given():
    model = tiny_model()
    teacher = TeacherWeights(model, "ema", 0.25)
    before = values(teacher)
    move(model, 1.0)
    teacher.update()
    torch.testing.assert_close(values(teacher), 0.75 * before + 0.25 * flat_parameters(model))


@pytest.mark.parametrize("rate", [0.2, 1.0])
@pytest.mark.parametrize("interval", [1, 2, 3, 10])
@pytest.mark.parametrize("sizes", [(1,) * 11, (1, 3, 2, 5), (7, 1, 4), (0, 2, 0, 1)], ids=str)
def test_the_teacher_moves_at_every_so_many_rollout_batches(rate, interval, sizes):
    """So many rollout batches end with each optimizer step, against a loop over them."""
    model = tiny_model()
    teacher = TeacherWeights(model, "ema", rate, interval)
    expected, num_batches = values(teacher), 0
    for number, size in enumerate(sizes):
        move(model, 0.1 * (number + 1))
        teacher.update(size)
        for _ in range(size):
            num_batches += 1
            if num_batches % interval == 0:
                expected = (1 - rate) * expected + rate * flat_parameters(model)
        torch.testing.assert_close(values(teacher), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_distance_is_exact_to_six_digits(dtype):
    """Of parameters that are a multiple of the pieces of the sum, and of others."""
    model = tiny_model(hidden_size=96).to(dtype)
    teacher = TeacherWeights(model, "ema", 0.5)
    move(model, 0.1)
    distance, norm = teacher.update()
    student = flat_parameters(model).double()
    assert norm.dtype == torch.float64
    assert norm.item() == pytest.approx(student.square().sum().item(), rel=1e-6)
    assert distance.item() == pytest.approx((values(teacher) - student).square().sum().item(), rel=1e-5)


def test_frozen_teacher_never_moves_and_live_teacher_stores_nothing():
    model = tiny_model()
    base, live = TeacherWeights(model, "base", 0.05), TeacherWeights(model, "live", 0.05)
    before = values(base)
    move(model, 1.0)
    base.update()
    live.update()
    assert torch.equal(values(base), before)
    assert live.state_dict() == {}
    student = logits(model)
    with live.swapped_in():
        assert torch.equal(logits(model), student)


def test_lora_teacher_stores_the_adapter_alone_and_starts_as_its_copy():
    model = get_peft_model(tiny_model(), LORA)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)  # an adapter that was trained before
    teacher = TeacherWeights(model, "ema", 0.05)
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    assert set(teacher.state_dict()) == trainable
    assert all("lora" in name for name in trainable)
    before = logits(model)
    move(model, 0.5)
    with teacher.swapped_in():
        assert torch.equal(logits(model), before)


def test_value_of_a_parameter_is_the_teachers_and_of_a_frozen_one_the_students():
    model = tiny_model()
    frozen = model.model.norm.weight.requires_grad_(False)
    teacher = TeacherWeights(model, "ema", 0.05)
    head = model.get_output_embeddings().weight  # tied to the embeddings
    before = head.detach().clone()
    move(model, 1.0)
    assert torch.equal(teacher.value_of(head), before)
    assert teacher.value_of(frozen).data_ptr() == frozen.data_ptr()
    assert not teacher.value_of(head).requires_grad


@pytest.mark.parametrize(
    ("options", "num_updates"),
    [
        ({"max_steps": 3}, 3),
        ({"max_steps": 4, "num_iterations": 2}, 2),
        ({"max_steps": 4, "per_device_train_batch_size": 8, "steps_per_generation": 2}, 2),
        (
            {
                "max_steps": 2,
                "per_device_train_batch_size": 4,
                "gradient_accumulation_steps": 4,
                "steps_per_generation": 1,
            },
            8,
        ),
        (
            {
                "max_steps": 3,
                "per_device_train_batch_size": 8,
                "num_iterations": 3,
                "gradient_accumulation_steps": 2,
            },
            1,
        ),
    ],
    ids=[
        "every step",
        "iterations",
        "steps of a batch",
        "batches of a step",
        "iterations of an accumulated step",
    ],
)
def test_trainer_updates_the_teacher_once_per_rollout_batch_after_its_last_step(
    tmp_path, options, num_updates
):
    trainer = make_trainer(tmp_path, learning_rate=0.1, **options)
    initial = values(trainer.teacher.weights)
    trainer.train()
    assert trainer.teacher.weights.num_updates == num_updates
    assert not torch.equal(values(trainer.teacher.weights), initial)
    assert logged(trainer, "srpo/teacher/distance")[-1] > 0


def test_trainer_teacher_moves_by_the_ema_law_of_its_students(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=3, learning_rate=0.1, teacher_update_rate=0.2)
    expected = values(trainer.teacher.weights)
    original = trainer.teacher.weights.update

    def update(num_updates):
        nonlocal expected
        assert num_updates == 1
        expected = 0.8 * expected + 0.2 * flat_parameters(trainer.model)
        return original()

    trainer.teacher.weights.update = update
    trainer.train()
    torch.testing.assert_close(values(trainer.teacher.weights), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", ["ema", "base", "live"])
def test_every_kind_trains(tmp_path, kind):
    trainer = make_trainer(
        tmp_path,
        teacher_model_kind=kind,
        max_steps=4,
        learning_rate=0.1,
        per_device_train_batch_size=8,
        steps_per_generation=2,
    )
    trainer.train()
    assert logged(trainer, "srpo/distillation/divergence")[-1] > 0


def test_live_teacher_keeps_the_head_of_its_rollouts(tmp_path):
    """Two optimizer steps per rollout batch: the second must not project old hidden states with a new head."""
    trainer = make_trainer(
        tmp_path,
        teacher_model_kind="live",
        max_steps=2,
        learning_rate=1.0,
        per_device_train_batch_size=8,
        steps_per_generation=2,
    )
    heads = []
    original = trainer._request

    def request(routed):
        made = original(routed)
        heads.append(made.teachers[0].head.weight_VD.clone())
        return made

    trainer._request = request
    initial = trainer.student.get_output_embeddings().weight.detach().clone()
    trainer.train()
    assert len(heads) == 2
    assert torch.equal(heads[0], initial)
    assert torch.equal(heads[1], initial)
