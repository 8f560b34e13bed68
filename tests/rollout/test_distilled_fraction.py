"""The share of rollouts that may be distilled: its schedule, its draw, and what a run does with it."""

import pytest
import torch

from harness import ROLLOUTS, logged, make_trainer, relative_error, replay, tiny_tokenizer, update
from srpo_trl.rollout.distilled_fraction import DistilledFraction, sample_fraction, scheduled_share


@pytest.mark.parametrize(
    ("step", "expected"), [(0, 1.0), (10, 1.0), (11, 0.95), (20, 0.5), (30, 0.0), (1000, 0.0)]
)
def test_share_holds_then_falls_linearly(step, expected):
    assert scheduled_share(step, hold_steps=10, decay_steps=20) == pytest.approx(expected)


def test_without_decay_the_share_stays_1():
    assert scheduled_share(10**6, hold_steps=0, decay_steps=None) == 1.0


def test_draw_is_seeded_and_has_the_shares_size():
    drawn = sample_fraction(20_000, 0.3, seed=1, step=2)
    assert drawn.float().mean().item() == pytest.approx(0.3, abs=0.015)
    assert torch.equal(drawn, sample_fraction(20_000, 0.3, seed=1, step=2))
    assert not torch.equal(drawn, sample_fraction(20_000, 0.3, seed=1, step=3))
    assert not sample_fraction(100, 0.0, seed=1, step=2).any()
    assert sample_fraction(100, 1.0, seed=1, step=2).all()


def test_accuracy_once_reached_ends_distillation_for_good():
    share = DistilledFraction(0, None, until_accuracy=0.5)
    share.observe(0.4)
    assert share.at(0) == 1.0
    for _ in range(20):
        share.observe(0.6)
    assert share.accuracy == pytest.approx(0.6 - 0.2 * 0.9**20)
    assert share.at(1) == 0.0
    for _ in range(50):
        share.observe(0.0)
    assert share.at(2) == 0.0


def test_state_holds_what_options_do_not_say():
    share = DistilledFraction(5, 10, until_accuracy=0.9)
    share.observe(0.25)
    share.lower()
    restored = DistilledFraction(5, 10, until_accuracy=0.9)
    restored.restore(share.state())
    assert restored == share
    assert restored.at(0) == 0.5


def test_a_share_of_0_is_grpo(tmp_path):
    over = {"distilled_frac_until_accuracy": 1e-6, "max_steps": 2}
    trainer = make_trainer(tmp_path / "over", **over)
    trainer.train()
    assert logged(trainer, "srpo/distillation/share") == [1.0, 0.0]
    assert logged(trainer, "srpo/route/distilled_frac")[0] > 0.0
    assert logged(trainer, "srpo/route/distilled_frac")[1] == 0.0

    nothing = make_trainer(tmp_path / "nothing", distilled_frac_decay_steps=1)
    nothing._router.fraction.factor = 0.0
    no_teacher = make_trainer(tmp_path / "no_teacher", teacher_context=["feedback"])
    assert relative_error(update(nothing), update(no_teacher)) < 1e-5


def test_schedule_lowers_the_routed_share_step_by_step(tmp_path):
    trainer = make_trainer(tmp_path, distilled_frac_hold_steps=1, distilled_frac_decay_steps=2, max_steps=4)
    trainer.train()
    assert logged(trainer, "srpo/distillation/share") == [1.0, 1.0, 0.5, 0.0]


def test_options_out_of_range_are_named_together(tmp_path):
    with pytest.raises(ValueError, match="5 problem") as error:
        make_trainer(
            tmp_path,
            distilled_frac_hold_steps=-1,
            distilled_frac_decay_steps=0,
            distilled_frac_until_accuracy=0.0,
            earlier_answers_kept=0,
            guard_action="shout",
        )
    for name in ("hold_steps", "decay_steps", "until_accuracy", "earlier_answers_kept", "guard_action"):
        assert name in str(error.value)
    with pytest.raises(ValueError, match="does nothing without distilled_frac_decay_steps"):
        make_trainer(tmp_path, distilled_frac_hold_steps=3)


def test_share_survives_a_resume(tmp_path):
    options = {"distilled_frac_decay_steps": 8, "save_strategy": "steps", "save_steps": 1}
    trainer = make_trainer(tmp_path, **options)
    trainer._router.fraction.lower()
    trainer.train()
    resumed = make_trainer(tmp_path, **options, max_steps=2, rollout_func=replay(tiny_tokenizer(), ROLLOUTS))
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert logged(resumed, "srpo/distillation/share")[-1] == pytest.approx(0.5 * 7 / 8)
