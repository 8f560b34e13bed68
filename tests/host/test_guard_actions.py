"""What the guards' actions do in a run."""

import json

import torch

from harness import logged, make_trainer
from srpo_trl.host.callbacks import GuardCallback
from srpo_trl.runs.guards import GuardThresholds
from srpo_trl.runs.log import GUARDS_FILE
from srpo_trl.teacher.weights import TeacherWeights

ALWAYS = GuardThresholds(window=1, length_growth=1.0 + 1e-9, teacher_growth=0.5)


def guarded(tmp_path, action, **options):
    """A run in which the teacher "drifts" from its second log on."""
    trainer = make_trainer(tmp_path, guard_action="off", **({"max_steps": 5, "learning_rate": 0.1} | options))
    remedies = {
        "lower_distillation": trainer._router.fraction.lower,
        "freeze_teacher": lambda: trainer.teacher.weights.freeze(),
        "reset_teacher": lambda: trainer.teacher.weights.reset_to_student(),
    }
    trainer.add_callback(GuardCallback(action, remedies, ALWAYS))
    trainer.train()
    findings = [json.loads(line) for line in (tmp_path / GUARDS_FILE).read_text().splitlines()]
    return trainer, [f for f in findings if f["guard"] == "teacher_drifts"]


def test_default_is_to_warn(tmp_path, caplog):
    trainer = make_trainer(tmp_path, max_steps=1)
    (callback,) = [c for c in trainer.callback_handler.callbacks if isinstance(c, GuardCallback)]
    assert callback._action == trainer.args.guard_action == "warn"
    off = make_trainer(tmp_path, guard_action="off")
    assert not [c for c in off.callback_handler.callbacks if isinstance(c, GuardCallback)]


def test_a_diverging_run_is_warned_of_and_its_weights_are_those_without_guards(tmp_path, caplog):
    trainer, findings = guarded(tmp_path / "a", "warn")
    assert findings[0]["action"] == "warn"
    assert "guard teacher_drifts at step" in caplog.text
    plain = make_trainer(tmp_path / "b", guard_action="off", max_steps=5, learning_rate=0.1)
    plain.train()
    for parameter, other in zip(trainer.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(parameter, other, rtol=1e-4, atol=1e-6)


def test_stop_saves_and_stops(tmp_path):
    trainer, findings = guarded(tmp_path, "stop", max_steps=50, save_strategy="steps", save_steps=1000)
    assert findings[0]["action"] == "stop"
    assert trainer.state.global_step == findings[0]["step"] < 50
    assert (tmp_path / f"checkpoint-{findings[0]['step']}").is_dir()


def test_lower_distillation_halves_the_share(tmp_path):
    trainer, findings = guarded(tmp_path, "lower_distillation")
    shares = logged(trainer, "srpo/distillation/share")
    assert shares[: findings[0]["step"]] == [1.0] * findings[0]["step"]
    assert shares[findings[0]["step"]] == 0.5


def test_a_frozen_teacher_keeps_its_values():
    model = torch.nn.Linear(2, 2)
    teacher = TeacherWeights(model, "ema", 0.05)
    teacher.freeze()
    before = model.weight.clone()
    with torch.no_grad():
        model.weight.add_(1.0)
    teacher.update()
    assert torch.equal(teacher.state_dict()["weight"], before)


def test_reset_teacher_is_the_student_after_the_next_update_only(tmp_path):
    trainer, findings = guarded(tmp_path, "reset_teacher")
    distances = logged(trainer, "srpo/teacher/distance")
    step = findings[0]["step"]  # after whose tick the guard spoke
    assert distances[step - 1] > 0
    assert distances[step] == 0.0
    assert distances[step + 1] > 0


def test_frozen_and_reset_survive_a_checkpoint(tmp_path):
    model = torch.nn.Linear(2, 2)
    teacher = TeacherWeights(model, "ema", 0.05)
    teacher.freeze()
    teacher.reset_to_student()
    teacher.save(tmp_path)
    restored = TeacherWeights(model, "ema", 0.05)
    restored.load(tmp_path)
    assert restored.is_frozen
    with torch.no_grad():
        model.weight.add_(1.0)
    restored.update()
    assert torch.equal(restored.state_dict()["weight"], model.weight)
    with torch.no_grad():
        model.weight.add_(1.0)
    restored.update()
    assert not torch.equal(restored.state_dict()["weight"], model.weight)


def test_findings_before_a_resume_are_not_repeated(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 1, "max_steps": 4}
    _, findings = guarded(tmp_path, "warn", **options)
    num_before = len(findings)
    resumed = make_trainer(tmp_path, guard_action="off", **(options | {"max_steps": 5, "learning_rate": 0.1}))
    resumed.add_callback(GuardCallback("warn", {}, ALWAYS))
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    lines = (tmp_path / GUARDS_FILE).read_text().splitlines()
    assert sum("teacher_drifts" in line for line in lines) == num_before


def test_the_trainers_own_remedies_reach_share_and_teacher(tmp_path):
    trainer = make_trainer(tmp_path)
    (callback,) = [c for c in trainer.callback_handler.callbacks if isinstance(c, GuardCallback)]
    for remedy in callback._remedies.values():
        remedy()
    assert trainer._router.fraction.factor == 0.5
    assert trainer.teacher.weights.is_frozen
    assert trainer.teacher.weights._resets_to_student
