"""Each guard on a run made to fail its way, on healthy runs, and what the actions do."""

import json
import math
from pathlib import Path

import pytest
import torch

from harness import logged, make_trainer
from srpo_trl.runs.guards import GUARDS, GUARDS_FILE, GuardCallback, GuardThresholds, Watch
from srpo_trl.teacher.weights import TeacherWeights

HEALTHY = {
    "loss": 0.01,
    "grad_norm": 0.5,
    "learning_rate": 5e-6,
    "reward": 0.5,
    "entropy": 0.4,
    "completions/mean_length": 200.0,
    "srpo/route/distilled_frac": 0.4,
    "srpo/correct_frac": 0.5,
    "srpo/teacher/distance": 1e-3,
    "srpo/weight/ess_frac": 0.8,
    "eval_avg@16": 0.5,
    "eval_format_rate": 0.99,
}

# What the last logs say instead, and the guard that must speak, alone.
FAILURES = {
    "format falls": ({"eval_format_rate": 0.106}, "format_collapse"),
    "length explodes": ({"completions/mean_length": 601.0}, "length"),
    "length collapses": ({"completions/mean_length": 66.0}, "length"),
    "entropy falls": ({"entropy": 0.03}, "entropy"),
    "entropy explodes": ({"entropy": 1.3}, "entropy"),
    "nothing distilled": ({"srpo/route/distilled_frac": 0.0}, "distilled_share"),
    "all distilled": ({"srpo/route/distilled_frac": 1.0}, "distilled_share"),
    "teacher stands still": ({"srpo/teacher/distance": 0.0}, "teacher_stands_still"),
    "teacher drifts": ({"srpo/teacher/distance": 0.03}, "teacher_drifts"),
    "reward up, score down": ({"reward": 0.8, "eval_avg@16": 0.3}, "reward_without_score"),
    "few tokens count": ({"srpo/weight/ess_frac": 0.05}, "few_tokens_count"),
    "loss is NaN": ({"loss": math.nan}, "non_finite"),
    "steps were skipped": ({"srpo/nonfinite_steps": 2.0}, "non_finite"),
}


def watch_run(changes, num_healthy=20, num_failed=10, action="warn"):
    watch = Watch(action, GuardThresholds())
    findings = []
    for step in range(num_healthy + num_failed):
        findings += watch.observe(HEALTHY | (changes if step >= num_healthy else {}), step)
    return findings


def test_every_guard_has_a_failure_here():
    assert {guard for _, guard in FAILURES.values()} == set(GUARDS)


@pytest.mark.parametrize("failure", FAILURES)
def test_guard_speaks_once_and_alone(failure):
    changes, guard = FAILURES[failure]
    findings = watch_run(changes)
    assert [finding.guard for finding in findings] == [guard]
    assert findings[0].step >= 20


def test_healthy_runs_are_left_alone():
    assert watch_run({}, num_healthy=200, num_failed=0) == []
    noisy = Watch("warn", GuardThresholds())
    generator = torch.Generator().manual_seed(0)
    found = []
    for step in range(200):
        factors = 0.7 + 0.6 * torch.rand(len(HEALTHY), generator=generator)
        logs = dict(zip(HEALTHY, (factors * torch.tensor([*HEALTHY.values()])).tolist(), strict=True))
        found += noisy.observe(logs | {"eval_avg@16": 0.5, "eval_format_rate": 0.99}, step)
    assert found == []


@pytest.mark.parametrize(
    "changes",
    [
        {"srpo/route/distilled_frac": 0.0, "srpo/correct_frac": 0.95},  # nothing left to distil
        {"srpo/route/distilled_frac": 0.0, "srpo/distillation/share": 0.0},  # as scheduled
        {"srpo/teacher/distance": 0.0, "learning_rate": 0.0},
        {"reward": 0.3, "eval_avg@16": 0.3},  # both fall: no exploit
    ],
)
def test_expected_states_are_no_findings(changes):
    assert watch_run(changes) == []


def test_a_guard_speaks_again_after_a_quiet_window():
    watch = Watch("warn", GuardThresholds())
    steps = []
    for step in range(100):
        failed = step in (20, 21, 50)
        steps += [f.step for f in watch.observe(HEALTHY | ({"loss": math.inf} if failed else {}), step)]
    assert steps == [20, 50]


@pytest.mark.parametrize("action", ["lower_distillation", "freeze_teacher", "reset_teacher", "stop"])
def test_an_action_is_taken_only_where_it_is_a_remedy(action):
    for changes, guard in FAILURES.values():
        (finding,) = watch_run(changes, action=action)
        assert finding.action == (action if action in GUARDS[guard].remedies else "warn")
    assert any(action in guard.remedies for guard in GUARDS.values())


# ------------------------------------------------------------------ in a run

ALWAYS = GuardThresholds(window=1, length_growth=1.0 + 1e-9, teacher_growth=0.5)


def guarded(tmp_path, action, **options):
    """A run in which the teacher "drifts" from its second log on."""
    trainer = make_trainer(tmp_path, guard_action="off", **({"max_steps": 5, "learning_rate": 0.1} | options))
    remedies = {
        "lower_distillation": trainer._share.lower,
        "freeze_teacher": lambda: trainer._teacher.freeze(),
        "reset_teacher": lambda: trainer._teacher.reset_to_student(),
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


def test_resynchronised_teacher_is_the_student_after_the_next_tick_only(tmp_path):
    trainer, findings = guarded(tmp_path, "reset_teacher")
    distances = logged(trainer, "srpo/teacher/distance")
    step = findings[0]["step"]  # after whose tick the guard spoke
    assert distances[step - 1] > 0
    assert distances[step] == 0.0
    assert distances[step + 1] > 0


def test_frozen_and_resynchronising_survive_a_checkpoint(tmp_path):
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
    assert trainer._share.factor == 0.5
    assert trainer._teacher.is_frozen
    assert trainer._teacher._resets_to_student


def test_the_page_of_guards_is_complete():
    page = (Path(__file__).resolve().parents[2] / "docs" / "guards.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in page.splitlines()
        if line.startswith("| `")
    ]
    written = {row[0].strip("`"): row for row in rows}
    assert set(written) == set(GUARDS)
    for name, guard in GUARDS.items():
        assert written[name][3] == (", ".join(f"`{remedy}`" for remedy in guard.remedies) or "none")
        assert written[name][2] == guard.advice
