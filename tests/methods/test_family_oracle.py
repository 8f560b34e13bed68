"""The family's methods against an oracle of loops: routes, weights, divergence, advantages and pull, from values."""

import dataclasses

import pytest
import torch

import family_oracle as oracle
from method_names import FAMILY
from srpo_trl.loss.ops import DistillationSpec, Head, distillation_loss
from srpo_trl.methods import METHODS, groups, routers, schedules, testing, tokenwise
from srpo_trl.methods.routers import scored_routes


def make(name, **options):
    if name in ("srpo_stable", "srpo_both"):
        options = {"entropy_weight_beta": 1.0} | options
    return METHODS[name].factory(**options)


def kinds(graded):
    """Each group as a list of (correct, context, scored)."""
    fields = (graded.is_correct_PG, graded.has_context_PG, graded.is_scored_PG)
    return [list(zip(*(field[p].tolist() for field in fields), strict=True)) for p in range(len(fields[0]))]


@pytest.mark.parametrize("step", [0, 49, 50, 1000])
@pytest.mark.parametrize("name", FAMILY)
def test_routes_are_the_oracles(name, step):
    graded = testing.graded(step)
    expected = [oracle.routes(name, group, step) for group in kinds(graded)]
    assert scored_routes(make(name).route, graded).tolist() == expected


@pytest.mark.parametrize(
    ("name", "powers"), [("paced", (1.0, 1.0)), ("paced", (2.0, 0.5)), ("sc_sdpo", (0.5, 0.5))]
)
def test_rollouts_weigh_by_their_groups_pass_rate(name, powers):
    method = make(name, powers=powers) if name == "paced" else make(name)
    graded = testing.graded()
    rows = method.rows(testing.scored(graded, method.route(graded)))
    expected = [[oracle.pass_rate_weight(group, powers)] * 4 for group in kinds(graded)]
    torch.testing.assert_close(rows["weight"], torch.tensor(expected, dtype=torch.float64))
    assert rows["weight"][1:].eq(0).all()  # nothing is learned from groups without both kinds

    tokens = testing.tokens(weight=rows["weight"][0])
    (raw_BT,) = method.raw_weights(tokens)
    assert raw_BT.shape == tokens.mask_BT.shape
    assert torch.equal(raw_BT, rows["weight"][0].unsqueeze(1).expand(4, 6))
    assert method.mean_one is (name == "sc_sdpo")


DIVERGENCES = {
    "hdpo": {"alpha": 0.5},
    "opsd": {"estimator": "sampled", "alpha": 1.0},
    "opsd_zhao": {"alpha": 0.5, "topk": None},
    "paced": {"alpha": 0.0},
    "distil": {"alpha": 0.0},
    "decoupling": {"alpha": 0.5, "is_linear": True},
    "many_faces": {"alpha": 1.0, "topk": 20, "add_tail": False},
    "skill_sd": {"estimator": "sampled", "alpha": 1.0},
    "pi_distill": {"estimator": "sampled", "alpha": 1.0},
    **{name: {"alpha": 1.0} for name in ("tip", "va_opd", "vopd", "selfci", "vla_opd", "cord")},
    "mad_opd": {"alpha": 0.5},
    **{name: {"alpha": 0.0, "pointwise_clip": 0.05} for name in ("srpo_stable", "trace")},
}


@pytest.mark.parametrize("name", FAMILY)
def test_divergences_are_those_of_the_table(name):
    of_options = DistillationSpec(alpha=0.3, topk=7, temperature=0.6)
    expected = dataclasses.replace(of_options, **DIVERGENCES.get(name, {}))
    assert make(name).divergence_at(0, of_options) == expected


def test_paced_turns_from_forward_to_reverse_kl():
    method = make("paced", reverse_from_step=10)
    assert [method.divergence_at(step, DistillationSpec()).alpha for step in (0, 9, 10, 99)] == [
        0.0,
        0.0,
        1.0,
        1.0,
    ]


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 1.0])
def test_decoupling_is_the_mix_of_the_two_kls(share):
    student, teacher = [0.5, 0.3, 0.2], [0.1, 0.3, 0.6]
    spec = make("decoupling", share=share).divergence_at(0, DistillationSpec(topk=None))
    logits_1V, teacher_1V = (torch.tensor([side], dtype=torch.float64).log() for side in (student, teacher))
    head, ids_1 = Head(torch.eye(3, dtype=torch.float64)), torch.zeros(1, dtype=torch.int64)
    result = distillation_loss(logits_1V, head, teacher_1V, head, ids_1, torch.ones(1), spec=spec)
    assert result.divergence_N.tolist() == pytest.approx([oracle.mix(student, teacher, share)], rel=1e-12)


@pytest.mark.parametrize("name", ["hdpo", "opsd"])
def test_distillation_beside_grpo_has_a_strength(name):
    assert make(name, beta=0.25).strength(7) == 0.25


def test_clip_cov_drops_the_advantage_of_drawn_tokens():
    tokens = testing.tokens()
    cov = oracle.covariances(
        tokens.advantage_B.tolist(), tokens.student.logps_BT.tolist(), tokens.mask_BT.tolist()
    )
    within = {place for place, value in cov.items() if 0.05 < value < 5.0}
    assert 2 < len(within) < len(cov)
    method = make("clip_cov", share=0.15, lowest=0.05)
    advantage_BT = method.advantages(tokens)
    dropped = {tuple(place) for place in (advantage_BT == 0).nonzero().tolist()}
    assert len(dropped) == int(0.15 * len(cov)) == 2
    assert dropped < within
    kept_BT = advantage_BT != 0
    assert torch.equal(advantage_BT[kept_BT], tokens.advantage_B.unsqueeze(1).expand(4, 6)[kept_BT])


def test_clip_covs_draw_is_its_rollouts_and_steps():
    method = make("clip_cov", share=0.15, lowest=-10.0, highest=10.0)
    first = method.advantages(testing.tokens())
    assert torch.equal(first, method.advantages(testing.tokens()))
    others = [testing.tokens(step=1), testing.tokens()._replace(rollout_B=torch.arange(4) + 4)]
    assert any(not torch.equal(first, method.advantages(tokens)) for tokens in others)


def test_a_share_of_0_is_grpo():
    tokens = testing.tokens()
    expected = tokens.advantage_B.unsqueeze(1).expand(4, 6)
    assert torch.equal(make("clip_cov", share=0.0).advantages(tokens), expected)
    assert make("kl_cov", share=0.0).pull(tokens).eq(0).all()


def test_kl_cov_holds_the_tokens_back_that_move_with_their_advantage():
    tokens = testing.tokens()
    pull_BT = make("kl_cov", share=0.3, coefficient=0.7).pull(tokens)
    sides = (tokens.advantage_B, tokens.student.logps_BT, tokens.old_logps_BT, tokens.mask_BT)
    expected = oracle.kl_cov(*(side.tolist() for side in sides), 0.3, 0.7)
    assert {tuple(place): float(pull_BT[tuple(place)]) for place in pull_BT.nonzero().tolist()} == expected
    assert min(expected.values()) < 0 < max(expected.values())


def test_kl_covs_gradient_is_that_of_the_absolute_log_ratio():
    tokens = testing.tokens()
    pull_BT = make("kl_cov", share=0.5).pull(tokens)
    logps_BT = tokens.student.logps_BT.clone().requires_grad_()
    penalty = ((logps_BT - tokens.old_logps_BT).abs() * (pull_BT != 0)).sum()
    torch.testing.assert_close(torch.autograd.grad(penalty, logps_BT)[0], -pull_BT)


def test_kl_cov_does_nothing_in_the_first_update():
    assert make("kl_cov", share=0.5).pull(testing.tokens(is_on_policy=True)).eq(0).all()


def test_the_control_pushes_every_failed_rollout_alike():
    tokens = testing.tokens()
    advantages = make("negative_control", advantage=-0.1).advantages(tokens)
    assert advantages.tolist() == [0.75, -0.1, -0.1, -0.25]


# --- What they share ---


def test_schedules():
    assert [schedules.constant(3.0)(step) for step in (0, 10**6)] == [3.0, 3.0]
    assert [schedules.switch("a", "b", 2)(step) for step in range(4)] == ["a", "a", "b", "b"]
    assert schedules.switch("a", "b", None)(10**6) == "a"
    assert [schedules.linear(1.0, 0.0, hold=2, steps=4)(step) for step in (0, 2, 3, 4, 6, 9)] == [
        1.0,
        1.0,
        0.75,
        0.5,
        0.0,
        0.0,
    ]
    assert schedules.linear(1.0, 0.0, steps=None)(10**6) == 1.0


def test_shares_of_groups():
    graded = testing.graded()
    assert groups.share(graded.is_correct_PG, graded.is_scored_PG).flatten().tolist() == [2 / 3, 0.0, 1.0]
    nothing = torch.zeros(1, 4, dtype=torch.bool)
    assert groups.share(nothing, nothing).tolist() == [[0.0]]
    assert groups.has_failed(graded).flatten().tolist() == [False, True, False]
    assert groups.has_failed(graded._replace(is_scored_PG=nothing)).flatten().tolist() == [False] * 3


def test_a_router_by_step():
    router = routers.by_step(routers.policy, routers.distilled, 5)
    assert torch.equal(router(testing.graded(4)), routers.policy(testing.graded()))
    assert torch.equal(router(testing.graded(5)), routers.distilled(testing.graded()))


def test_the_largest_are_taken_in_order_and_within_the_mask():
    value_BT = torch.tensor([[3.0, 1.0, 3.0], [9.0, 3.0, 0.0]])
    mask_BT = torch.tensor([[True, True, True], [False, True, True]])
    assert tokenwise.largest(value_BT, mask_BT, 2).tolist() == [[True, False, True], [False, False, False]]
    assert tokenwise.largest(value_BT, mask_BT, 99).tolist() == mask_BT.tolist()
    assert not tokenwise.largest(value_BT, mask_BT, 0).any()
