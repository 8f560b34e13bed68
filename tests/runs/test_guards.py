"""Each guard on logs made to fail its way, and on healthy ones."""

import math
from pathlib import Path

import pytest
import torch

from srpo_trl.runs.guards import GUARDS, GuardThresholds, Watch

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
        {"srpo/route/distilled_frac": 0.0, "srpo/correct_frac": 0.95},  # nothing left to distill
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
