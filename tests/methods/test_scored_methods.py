"""The family's methods with scorers against an oracle of loops: advantages, pulls, anchors and weights, from values."""

import math

import pytest
import torch

import family_oracle as oracle
from srpo_trl.methods import METHODS, groups, routers, testing, tokenwise
from srpo_trl.methods.record import OWN_CONTEXT, TEACHER_CONTEXT, Route, is_distilled, is_policy

CLOSE = {"rtol": 1e-6, "atol": 1e-8}


def make(name, **options):
    return METHODS[name].factory(**options)


def tokens_of(method, **options):
    return testing.tokens(scorers=[scorer.name for scorer in method.scorers], **options)


def places(tokens):
    return [tuple(place) for place in tokens.mask_BT.nonzero().tolist()]


def assert_tokens(found_BT, tokens, expected):
    """Equal at every token that counts; `expected` takes a rollout's number and the token's place."""
    for i, t in places(tokens):
        assert float(found_BT[i, t]) == pytest.approx(expected(i, t), rel=1e-6, abs=1e-8), (i, t)


def values(tokens, *scorers):
    """log pi, then each scorer's log-probability, of a token."""
    sides = [tokens.student.logps_BT, *(tokens.scores[name].logps_BT for name in scorers)]
    return lambda i, t: [float(side[i, t]) for side in sides]


# --- Pulls ---


@pytest.mark.parametrize(("step", "beta"), [(0, 0.2), (4, 0.15), (99, 0.1)])
def test_kdrls_pull_is_the_gradient_of_k2(step, beta):
    method = make("kdrl", beta=0.2, final_beta=0.1, decay_steps=8)
    tokens = tokens_of(method, step=step)
    at = values(tokens, "teacher")
    assert_tokens(method.pull(tokens), tokens, lambda i, t: -oracle.kdrl_gradient(*at(i, t), beta))


def test_kdrl_on_failed_rollouts_leaves_correct_ones_alone():
    whole, masked = make("kdrl"), make("kdrl", only_failed=True)
    tokens = tokens_of(whole)
    pull_BT = masked.pull(tokens)
    assert pull_BT[tokens.is_correct_B].eq(0).all()
    assert torch.equal(pull_BT[~tokens.is_correct_B], whole.pull(tokens)[~tokens.is_correct_B])


@pytest.mark.parametrize(("name", "scorer"), [("salsa", "teacher"), ("ema_anchor", "teacher")])
def test_penalties_are_trls_k3(name, scorer):
    method = make(name, beta=0.3)
    tokens = tokens_of(method)
    at = values(tokens, scorer)
    assert_tokens(method.pull(tokens), tokens, lambda i, t: -oracle.k3_gradient(*at(i, t), 0.3))


def test_rapos_pull_is_its_estimators_gradient():
    method = make("rapo", alpha=0.4, power=0.5)
    tokens = tokens_of(method)
    at, correct = values(tokens, "initial"), tokens.is_correct_B.tolist()
    assert_tokens(
        method.pull(tokens),
        tokens,
        lambda i, t: -oracle.rapo_gradient(*at(i, t), 0.5 if correct[i] else 1.0, 0.4),
    )
    same = tokens._replace(
        scores={"initial": tokens.scores["initial"]._replace(logps_BT=tokens.student.logps_BT)}
    )
    assert make("rapo").pull(same).eq(0).all()


@pytest.mark.parametrize("is_jensen_shannon", [False, True])
def test_dph_rls_pull_is_its_generators_gradient(is_jensen_shannon):
    method = make("dph_rl", eta=0.3, jensen_shannon=is_jensen_shannon)
    tokens = tokens_of(method)
    at = values(tokens, "initial")
    assert method.advantages(tokens).eq(0).all()
    assert_tokens(
        method.pull(tokens), tokens, lambda i, t: -oracle.dph_gradient(*at(i, t), 0.3, is_jensen_shannon)
    )


def test_fg_expos_penalty_grows_with_the_accuracy():
    method, graded = make("fg_expo", beta=0.2), testing.graded()
    scored = testing.scored(graded, routers.policy(graded), "initial")
    accuracy = 6 / 11
    expected = 0.2 * (math.tanh(accuracy) + 1) / 2
    rows = method.rows(scored)
    torch.testing.assert_close(
        rows["beta"].double(), torch.full((3, 4), expected, dtype=torch.float64), **CLOSE
    )
    tokens = tokens_of(method, beta=rows["beta"][0].double())
    at = values(tokens, "initial")
    assert_tokens(method.pull(tokens), tokens, lambda i, t: -oracle.k3_gradient(*at(i, t), expected))


def test_apo_holds_by_difficulty_and_punishes_long_failures():
    method, graded = make("apo", beta=0.3, base=1.1), testing.graded()
    scored = testing.scored(graded, routers.policy(graded), "initial")
    rows = method.rows(scored)
    for p in range(3):
        lengths, correct = scored.length_PG[p].tolist(), scored.is_correct_PG[p].tolist()
        right = [n for n, c in zip(lengths, correct, strict=True) if c]
        for i, (length, is_correct) in enumerate(zip(lengths, correct, strict=True)):
            expected = 1.0
            if right and not is_correct:
                expected = oracle.length_factor(length, sum(right) / len(right), 1.1)
            assert float(rows["factor"][p, i]) == pytest.approx(expected)
    assert (rows["factor"] > 1).any()

    tokens = tokens_of(method, **{"pass": torch.tensor([0.5, 0.5, 0.0, 1.0]), "factor": torch.arange(4.0)})
    assert torch.equal(method.advantages(tokens), tokens.advantage_B * torch.arange(4.0))
    at = values(tokens, "initial")
    scale = [1 - math.exp(-math.e * 0.5), 1.0, 1.0, 1.0]  # A > 0 and a mixed group: the first alone
    assert_tokens(method.pull(tokens), tokens, lambda i, t: -oracle.k3_gradient(*at(i, t), 0.3 * scale[i]))


def test_dmpos_pull_is_its_groups_gradient():
    method, graded = make("dmpo", strength=1.5, temperature=0.5), testing.graded()
    scored = testing.scored(graded, routers.policy(graded), "student")
    step_PG, tokens_of_a_group = (
        method.rows(scored)["step"],
        float(scored.length_PG[graded.is_scored_PG].sum()) / 3,
    )
    assert step_PG[0].eq(0).all()  # one of its scores is missing
    for p in (1, 2):
        means = scored.means["student"].logp_PG[p].tolist()
        expected = oracle.dmpo_steps(
            graded.score_PG[p].tolist(), means, scored.length_PG[p].tolist(), 1.5, 0.5
        )
        torch.testing.assert_close(
            step_PG[p] / tokens_of_a_group, torch.tensor(expected, dtype=torch.float64), **CLOSE
        )
    assert step_PG[1].abs().max() > 0
    tokens = tokens_of(method)
    tokens = tokens._replace(rows=tokens.rows | {"step": torch.arange(4.0)})
    assert torch.equal(method.pull(tokens), torch.arange(4.0).unsqueeze(1) * tokens.mask_BT)


@pytest.mark.parametrize("is_reversed", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_scope_weighs_by_perplexity(temperature, is_reversed):
    method, graded = (
        make("scope", temperature=temperature, reverse_student_weight=is_reversed),
        testing.graded(),
    )
    scored = testing.scored(graded, routers.policy(graded), "teacher", "student")
    weight_PG = method.rows(scored)["weight"]
    student_sign = -1 if is_reversed else 1
    for p in range(3):
        expected = oracle.scope_weights(
            [student_sign * m for m in scored.means["student"].logp_PG[p].tolist()],
            scored.means["teacher"].logp_PG[p].tolist(),
            graded.is_correct_PG[p].tolist(),
            graded.is_scored_PG[p].tolist(),
            temperature,
        )
        torch.testing.assert_close(weight_PG[p], torch.tensor(expected, dtype=torch.float64), **CLOSE)


def test_scope_pulls_correct_rollouts_up_and_wrong_ones_to_the_teacher():
    method = make("scope")
    tokens = tokens_of(method, weight=torch.tensor([0.5, 2.0, 1.0, 1.5]))
    assert method.advantages(tokens).eq(0).all()
    at, correct, weight = values(tokens, "teacher"), tokens.is_correct_B.tolist(), [0.5, 2.0, 1.0, 1.5]

    def expected(i, t):
        own, teacher = at(i, t)
        return weight[i] if correct[i] else weight[i] * (teacher - own)

    assert_tokens(method.pull(tokens), tokens, expected)


def test_eksft_leaves_out_what_is_both_unsure_and_far():
    method = make("eksft", share=0.4)
    tokens = tokens_of(method)
    student, count = tokens.scores["student"], int(0.4 * len(places(tokens)))

    def top(value_BT):
        return set(sorted(places(tokens), key=lambda place: -float(value_BT[place]))[:count])

    left_out = top(student.entropy_BT) & top(student.divergence_BT)
    assert left_out
    assert method.advantages(tokens).eq(0).all()
    correct = tokens.is_correct_B.tolist()
    assert_tokens(method.pull(tokens), tokens, lambda i, t: float(correct[i] and (i, t) not in left_out))


def partly_rescored(*names):
    """A group of four with scores of which the scorers have left out two, and values that would show."""
    graded = testing.graded()
    scored = testing.scored(graded, routers.policy(graded), *names)
    is_rescored_PG = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0], [0, 1, 1, 1]]).bool() & graded.is_scored_PG
    means = {
        name: m._replace(logp_PG=torch.where(is_rescored_PG, m.logp_PG, 0.0))
        for name, m in scored.means.items()
    }
    wild = {
        name: m._replace(logp_PG=torch.where(is_rescored_PG, m.logp_PG, -50.0))
        for name, m in scored.means.items()
    }
    return (scored._replace(is_rescored_PG=is_rescored_PG, means=made) for made in (means, wild))


@pytest.mark.parametrize("name", ["scope", "uni_opd", "dmpo", "f_dpg"])
def test_rollouts_that_no_scorer_has_scored_have_no_say(name):
    """Such as those beyond the share of distilled rollouts."""
    method = make(name)
    zeros, wild = (method.rows(s) for s in partly_rescored("teacher", "student", "initial"))
    of_PG = next(partly_rescored("student")).is_rescored_PG
    for row, value_PG in zeros.items():
        assert torch.equal(value_PG[of_PG], wild[row][of_PG])


@pytest.mark.parametrize("name", ["gtpo", "dmpo", "trace"])
def test_lengths_of_rollouts_that_do_not_train_have_no_say(name):
    method, graded = make(name), testing.graded()
    scored = testing.scored(graded, routers.policy(graded), "student")
    longer = scored._replace(length_PG=torch.where(graded.is_scored_PG, scored.length_PG, 1000))
    for row, value_PG in method.rows(scored).items():
        known = value_PG[graded.is_scored_PG]
        torch.testing.assert_close(method.rows(longer)[row][graded.is_scored_PG], known)


@pytest.mark.parametrize(
    ("name", "options", "problem"),
    [
        ("scope", {"temperature": 0.0}, "temperature is 0.0; it must be above 0"),
        ("dgpo", {"temperature": -1.0}, "temperature is -1.0; it must be above 0"),
        ("dmpo", {"temperature": 0.0}, "above 0"),
        ("f_dpg", {"temperature": 0.0}, "above 0"),
        ("clip_cov", {"share": -0.5}, "share is -0.5; it must be from 0 to 1"),
        ("kl_cov", {"share": 3.0}, "from 0 to 1"),
        ("eksft", {"share": -0.5}, "from 0 to 1"),
        ("tip", {"kept": 1.5}, "kept is 1.5"),
        ("va_opd", {"top": 2.0}, "top is 2.0"),
        ("decoupling", {"share": 2.0}, "share is 2.0"),
        ("selfci", {"shares": (1.0, 0.0)}, "share 1 is 0.0"),
        ("kdrl", {"decay_steps": 0}, "a schedule over 0 steps"),
        ("trace", {"decay": 0}, "a schedule over 0 steps"),
    ],
)
def test_options_out_of_range_are_refused(name, options, problem):
    with pytest.raises(ValueError, match=problem):
        make(name, **options)


# --- Advantages and the anchor ---


def test_opds_advantage_is_the_gap():
    method = make("opd")
    tokens = tokens_of(method)
    at = values(tokens, "teacher")
    assert_tokens(method.advantages(tokens), tokens, lambda i, t: at(i, t)[1] - at(i, t)[0])


def test_opds_expected_gradient_is_the_reverse_kls():
    """Over a whole vocabulary: sum_v pi_v A_v grad log pi_v = -grad KL(pi || T)."""
    logits_V = torch.randn(
        7, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    ).requires_grad_()
    teacher_V = torch.randn(7, generator=torch.Generator().manual_seed(1), dtype=torch.float64).log_softmax(0)
    logps_V = logits_V.log_softmax(0)
    kl = (logps_V.exp() * (logps_V - teacher_V)).sum()
    (expected,) = torch.autograd.grad(kl, logits_V, retain_graph=True)
    method = make("opd")
    tokens = tokens_of(method)
    tokens = tokens._replace(
        scores={"teacher": tokens.scores["teacher"]._replace(logps_BT=teacher_V)},
        student=tokens.student._replace(logps_BT=logps_V.detach()),
    )
    surrogate = -(logps_V.detach().exp() * method.advantages(tokens) * logps_V).sum()
    torch.testing.assert_close(torch.autograd.grad(surrogate, logits_V)[0], expected)


def test_opd_then_rl_turns_to_the_reward():
    method = make("opd_then_rl", at_step=3)
    before, after = (tokens_of(method, step=step) for step in (2, 3))
    assert torch.equal(method.advantages(before), make("opd").advantages(before))
    assert torch.equal(method.advantages(after), after.advantage_B.unsqueeze(1).expand(4, 6))


def test_rlsd_keeps_the_rewards_sign():
    method = make("rlsd", share=0.7, epsilon=0.3)
    tokens = tokens_of(method)
    at, advantage = values(tokens, "teacher"), tokens.advantage_B.tolist()
    found_BT = method.advantages(tokens)
    assert_tokens(found_BT, tokens, lambda i, t: oracle.rlsd_advantage(advantage[i], *at(i, t), 0.7, 0.3))
    assert torch.equal(found_BT.sign(), tokens.advantage_B.sign().unsqueeze(1).expand(4, 6))
    alone = make("rlsd", share=0.0).advantages(tokens)
    torch.testing.assert_close(alone, tokens.advantage_B.unsqueeze(1).expand(4, 6))


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_rlads_ratio_is_the_mixtures(alpha):
    method = make("rlad", alpha=alpha)
    tokens = tokens_of(method)
    at, old = values(tokens, "teacher"), tokens.old_logps_BT
    ratio_BT = (tokens.student.logps_BT - method.anchor(tokens)).exp()
    assert_tokens(
        ratio_BT,
        tokens,
        lambda i, t: oracle.rlad_ratio(at(i, t)[0], float(old[i, t]), at(i, t)[1], alpha),
    )
    on_policy = tokens_of(method, is_on_policy=True)
    expected_BT = alpha * on_policy.student.logps_BT + (1 - alpha) * on_policy.scores["teacher"].logps_BT
    torch.testing.assert_close(method.anchor(on_policy), expected_BT)


def test_rlads_gap_can_be_bounded():
    tokens = tokens_of(make("rlad"), is_on_policy=True)
    anchor_BT = make("rlad", alpha=0.0, largest_gap=0.1).anchor(tokens)
    gap_BT = anchor_BT - tokens.student.logps_BT
    assert gap_BT.abs().max() == pytest.approx(0.1)
    assert torch.equal(gap_BT.sign()[tokens.mask_BT], tokens.gap_BT().sign()[tokens.mask_BT])


@pytest.mark.parametrize("scale", [1.0, 1.25])
def test_g_opd_scales_the_teachers_reward_over_the_reference(scale):
    method = make("g_opd", scale=scale)
    tokens = tokens_of(method)
    at = values(tokens, "teacher", "reference")
    assert_tokens(method.advantages(tokens), tokens, lambda i, t: oracle.g_opd_advantage(*at(i, t), scale))
    if scale == 1.0:
        torch.testing.assert_close(method.advantages(tokens), make("opd").advantages(tokens))


def test_g_opds_reference_is_the_initial_weights_or_a_model():
    weights = [(s.weights, s.model) for s in make("g_opd").scorers]
    assert weights == [("external", ""), ("initial", "")]
    named = make("g_opd", teacher="large", reference="base").scorers
    assert [(s.weights, s.model) for s in named] == [("external", "large"), ("external", "base")]


def test_uni_opd_shifts_until_the_margin_is_there():
    method, graded = make("uni_opd", margin=0.4), testing.graded()
    scored = testing.scored(graded, routers.policy(graded), "teacher", "student")
    shift_PG = method.rows(scored)["shift"]
    gap_PG = scored.means["teacher"].logp_PG - scored.means["student"].logp_PG
    for p in range(3):
        sides = (gap_PG[p].tolist(), graded.is_correct_PG[p].tolist(), graded.is_scored_PG[p].tolist())
        torch.testing.assert_close(
            shift_PG[p], torch.tensor(oracle.margins(*sides, 0.4), dtype=torch.float64), **CLOSE
        )
    assert shift_PG[1:].eq(0).all()
    assert shift_PG[0].abs().max() > 0
    right, wrong = graded.is_correct_PG[0], graded.is_scored_PG[0] & ~graded.is_correct_PG[0]
    shifted = gap_PG[0] + shift_PG[0]
    assert float(shifted[right].mean() - shifted[wrong].mean()) == pytest.approx(0.4)


def test_uni_opds_advantage_leaves_large_gaps_out():
    tokens = tokens_of(make("uni_opd"), shift=torch.tensor([0.5, -0.5, 0.0, 0.25]))
    at, shift = values(tokens, "teacher", "student"), [0.5, -0.5, 0.0, 0.25]
    gap = {place: at(*place)[1] - at(*place)[0] for place in places(tokens)}
    found_BT = make("uni_opd", largest_gap=1.0).advantages(tokens)
    assert_tokens(found_BT, tokens, lambda i, t: 0.0 if abs(gap[i, t]) >= 1.0 else gap[i, t] + shift[i])
    assert 0 < sum(abs(g) >= 1.0 for g in gap.values()) < len(gap)


def test_erpds_advantage_is_what_the_first_stage_changed():
    method = make("erpd", largest=0.5)
    tokens = tokens_of(method)
    at = values(tokens, "teacher", "initial")
    assert_tokens(
        method.advantages(tokens), tokens, lambda i, t: max(-0.5, min(0.5, at(i, t)[1] - at(i, t)[2]))
    )


@pytest.mark.parametrize("divergence", ["reverse", "forward", "jensen_shannon"])
def test_f_dpgs_advantages_are_the_divergences_slopes(divergence):
    method, graded = make("f_dpg", temperature=0.7, divergence=divergence), testing.graded()
    scored = testing.scored(graded, routers.policy(graded), "student", "initial")
    scored = scored._replace(length_PG=torch.tensor([[1, 2, 1, 2]] * 3))
    found_PG = method.rows(scored)["A"]
    for p in range(3):
        chosen = graded.is_scored_PG[p]
        policy, initial = (
            (scored.means[name].logp_PG[p] * scored.length_PG[p])[chosen] for name in ("student", "initial")
        )
        target = initial + graded.score_PG[p][chosen] / 0.7
        expected = oracle.f_dpg_advantages(policy.tolist(), target.tolist(), divergence)
        torch.testing.assert_close(
            found_PG[p][chosen], torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-7
        )


def test_vopd_takes_the_exact_divergence_as_its_baseline():
    method = make("vopd")
    tokens = tokens_of(method)
    at, advantage = values(tokens, "teacher"), tokens.advantage_B.tolist()
    baseline_BT = tokens.student.divergence_BT

    def expected(i, t):
        own, teacher = at(i, t)
        return advantage[i] - ((own - teacher) - float(baseline_BT[i, t]))

    assert_tokens(method.advantages(tokens), tokens, expected)
    assert all(weight_BT.eq(0).all() for weight_BT in method.raw_weights(tokens))
    assert not method.mean_one


def test_vopds_advantage_has_mean_0_at_no_reward():
    """Over a whole vocabulary: sum_v pi_v (d_v + KL) = 0, which leaves the expected gradient as it is."""
    logps_V, teacher_V = torch.randn(2, 9, generator=torch.Generator().manual_seed(0)).double().log_softmax(1)
    kl = (logps_V.exp() * (logps_V - teacher_V)).sum()
    assert float((logps_V.exp() * (teacher_V - logps_V + kl)).sum()) == pytest.approx(0.0, abs=1e-12)


# --- Weights ---


@pytest.mark.parametrize("kept", [1.0, 0.5, 0.2])
def test_tip_keeps_what_is_unsure_or_far(kept):
    method = make("tip", kept=kept)
    tokens = tokens_of(method)
    (weight_BT,) = method.raw_weights(tokens)
    student = tokens.scores["student"]
    for i, mask in enumerate(tokens.mask_BT):
        sides = (student.entropy_BT[i][mask].tolist(), student.divergence_BT[i][mask].tolist())
        expected = oracle.tip_kept(*sides, kept)
        assert set(weight_BT[i].nonzero().flatten().tolist()) == expected
    assert weight_BT.unique().tolist() in ([0.0, 1.0], [1.0])
    assert method.mean_one


def test_va_opd_weighs_top_tokens_and_rollouts_by_gain():
    method = make("va_opd", share=0.6, top=0.4)
    tokens = tokens_of(method, weight=torch.tensor([0.5, 2.0, 1.0, 0.5], dtype=torch.float64))
    (weight_BT,) = method.raw_weights(tokens)
    gain_BT = tokens.scores["teacher"].logps_BT - tokens.scores["plain"].logps_BT
    divergence_BT = torch.rand(4, 6, generator=torch.Generator().manual_seed(3)).double()
    for i, mask in enumerate(tokens.mask_BT):
        expected = oracle.va_opd_loss(divergence_BT[i][mask].tolist(), gain_BT[i][mask].tolist(), 0.4, 0.6)
        found = (weight_BT[i] * divergence_BT[i])[mask].sum() / mask.sum()
        assert float(found) == pytest.approx(float(tokens.rows["weight"][i]) * expected)


def test_va_opds_rollouts_have_mean_1_and_more_where_the_gain_is():
    method, graded = make("va_opd"), testing.graded()
    scored = testing.scored(graded, routers.distilled(graded), "teacher", "plain")
    weight_PG = method.rows(scored)["weight"]
    gain_PG = scored.means["teacher"].logp_PG - scored.means["plain"].logp_PG
    for p in range(3):
        chosen = graded.has_context_PG[p]
        assert float(weight_PG[p][chosen].mean()) == pytest.approx(1.0)
        assert weight_PG[p][chosen].argsort().tolist() == gain_PG[p][chosen].argsort().tolist()
        assert weight_PG[p][~chosen].eq(0).all()
    # By hand: softmax of z-scores.
    gain = gain_PG[1][graded.has_context_PG[1]]
    z = (gain - gain.mean()) / gain.std(correction=0)
    torch.testing.assert_close(weight_PG[1][graded.has_context_PG[1]], z.softmax(0) * len(z), **CLOSE)


@pytest.mark.parametrize(
    ("shares", "expected"), [((1.0, 1.0), (0.5, 0.5)), ((0.2, 0.3), (0.2, 0.3)), ((3.0, 1.0), (0.75, 0.25))]
)
def test_selfci_shares_the_loss_between_its_prompts(shares, expected):
    method = make("selfci", shares=shares)
    tokens = tokens_of(method)
    weights = method.raw_weights(tokens)
    for weight_BT, share in zip(weights, expected, strict=True):
        torch.testing.assert_close(weight_BT, share * tokens.mask_BT.double(), rtol=1e-6, atol=0)
    assert [scorer.context for scorer in method.scorers] == ["utility", "privacy"]
    assert method.contexts == ("utility", "privacy")
    assert not method.mean_one


def test_mad_opds_teachers_have_equal_shares():
    method = make("mad_opd", models=("a", "b", "c"))
    tokens = tokens_of(method)
    weights = method.raw_weights(tokens)
    assert len(weights) == 3
    for weight_BT in weights:
        torch.testing.assert_close(weight_BT, tokens.mask_BT.double() / 3, **CLOSE)
    assert [scorer.model for scorer in method.scorers] == ["a", "b", "c"]


def test_the_optimum_of_two_reverse_kls_is_the_product_of_experts():
    logps_bV = torch.randn(2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).log_softmax(
        1
    )
    weights = torch.tensor([0.75, 0.25], dtype=torch.float64)
    optimum_V = (weights @ logps_bV).log_softmax(0).requires_grad_()
    pi_V = optimum_V.log_softmax(0)
    loss = sum(w * (pi_V.exp() * (pi_V - q_V)).sum() for w, q_V in zip(weights, logps_bV, strict=True))
    assert torch.autograd.grad(loss, optimum_V)[0].abs().max() < 1e-12


# --- Tokens that rollouts share, distances, stored and later tokens ---


@pytest.mark.parametrize("seed", range(5))
def test_gtpo_protects_what_good_and_bad_rollouts_share(seed):
    method, graded = make("gtpo", weight=4.0, entropy_cost=0.2, largest_entropy=1.2), testing.graded()
    scored = testing.scored(graded, routers.policy(graded), "student", seed=seed)
    ids_PGT = scored.token_ids() % 2 + (scored.token_ids() < 0) * -2  # of two kinds: much is shared
    scored = scored._replace(token_ids=lambda: ids_PGT)
    rows, entropy_PG = method.rows(scored), scored.means["student"].entropy_PG
    mean_length, num_shared = float(scored.length_PG[graded.is_scored_PG].double().mean()), 0
    for p in range(3):
        completions = [[token for token in row if token >= 0] for row in ids_PGT[p].tolist()]
        scores, known = graded.score_PG[p].tolist(), graded.is_scored_PG[p].tolist()
        mean = sum(s for s, k in zip(scores, known, strict=True) if k) / sum(known)
        signs = [(s > mean) - (s < mean) if k else 0 for s, k in zip(scores, known, strict=True)]
        num_shared += sum(map(len, oracle.protected(completions, signs)))
        mask_BT = ids_PGT[p] >= 0
        tokens = testing.tokens(scorers=["student"], factor=rows["factor"][p], entropy=rows["entropy"][p])
        tokens = tokens._replace(mask_BT=mask_BT)
        found_BT = method.advantages(tokens)
        for i in (i for i in range(4) if known[i]):
            expected = oracle.gtpo_advantages(
                float(tokens.advantage_B[i]),
                float(entropy_PG[p, i]),
                completions,
                signs,
                i,
                4.0,
                0.2,
                1.2,
                mean_length,
            )
            assert found_BT[i][mask_BT[i]].tolist() == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert num_shared > 4


def test_conflicts_by_hand():
    ids = [[[5, 6, 7, 8], [5, 6, 9, -1], [1, 7, 8, -1], [5, 2, -1, -1]]]
    found = groups.conflicts(torch.tensor(ids), torch.tensor([[1.0, -1.0, -1.0, 0.0]]))
    assert found.tolist() == [
        [
            [True, True, True, True],  # 5 6 with the second, 7 8 with the third
            [True, True, False, False],
            [False, True, True, False],
            [True, False, False, False],
        ]
    ]


def test_dgpo_spreads_the_advantage_over_a_rollout():
    method = make("dgpo", temperature=0.3, kappa=1.5)
    tokens = tokens_of(method)
    advantage_BT, student = method.advantages(tokens), tokens.scores["student"]
    for i, mask in enumerate(tokens.mask_BT):
        factors = oracle.dgpo_factors(
            student.entropy_BT[i][mask].tolist(), student.divergence_BT[i][mask].tolist(), 0.3, 1.5
        )
        assert sum(factors) / len(factors) == pytest.approx(1.0)
        expected = [float(tokens.advantage_B[i]) * factor for factor in factors]
        assert advantage_BT[i][mask].tolist() == pytest.approx(expected)
    even_BT = make("dgpo", temperature=1e9).advantages(tokens)
    torch.testing.assert_close(even_BT, tokens.advantage_B.unsqueeze(1) * tokens.mask_BT)
    assert [(s.against, s.distance) for s in method.scorers] == [(None, "kl"), ("initial", "hellinger")]


def test_lightning_is_opd_with_stored_log_probabilities():
    method, opd = make("lightning"), make("opd")
    tokens = tokens_of(opd)
    assert torch.equal(method.advantages(tokens), opd.advantages(tokens))
    assert [scorer.weights for scorer in method.scorers] == ["cached"]


def test_distils_credit_is_the_later_disagreement():
    method = make("distil", credit=0.3)
    tokens = tokens_of(method)
    cross_BT = tokens.student.divergence_BT + tokens.scores["teacher"].entropy_BT
    assert_tokens(
        method.advantages(tokens),
        tokens,
        lambda i, t: (
            -0.3 * sum(float(cross_BT[i, later]) for later in range(t + 1, int(tokens.mask_BT[i].sum())))
        ),
    )
    graded = testing.graded()
    assert torch.equal(method.route(graded), torch.where(graded.has_context_PG, Route.BOTH, Route.SKIPPED))
    assert make("distil").advantages is None


@pytest.mark.parametrize("step", [0, 10, 25, 40, 99])
def test_trace_moves_spans_from_the_teacher_to_the_reward(step):
    method, share = make("trace", weight=0.4), torch.tensor([0.5, 2.0, 1.0, 1.5])
    spans_BT = torch.rand(4, 6, generator=torch.Generator().manual_seed(1)) < 0.5
    tokens = tokens_of(method, step=step, share=share, spans=spans_BT)
    advantage, correct = tokens.advantage_B.tolist(), tokens.is_correct_B.tolist()
    assert_tokens(
        method.advantages(tokens),
        tokens,
        lambda i, t: oracle.trace_advantage(advantage[i], bool(spans_BT[i, t]), step, 0.4, 10, 30),
    )
    (weight_BT,) = method.raw_weights(tokens)
    assert_tokens(weight_BT, tokens, lambda i, t: float(share[i]) * correct[i] * float(spans_BT[i, t]))
    assert method.strength(step) == pytest.approx(0.4 * min(1.0, max(0.0, (40 - step) / 30)))
    assert method.spans
    nothing = tokens._replace(rows=tokens.rows | {"spans": torch.zeros(4, 6, dtype=torch.bool)})
    torch.testing.assert_close(  # GRPO
        method.advantages(nothing), tokens.advantage_B.unsqueeze(1).expand(4, 6)
    )


def test_rollouts_of_equal_say():
    scored = testing.scored(testing.graded(), routers.policy(testing.graded()))
    of_PG = scored.is_scored_PG
    total = (groups.equal_shares(scored) * scored.length_PG)[of_PG].sum() / scored.length_PG[of_PG].sum()
    assert float(total) == pytest.approx(1.0)
    by_rollout = groups.equal_shares(scored) * scored.length_PG
    torch.testing.assert_close(by_rollout, by_rollout[0, 0].expand(3, 4))


@pytest.mark.parametrize("step", [0, 4, 5, 10])
def test_tcod_distils_more_and_more_turns(step):
    method = make("tcod", interval=5)
    mask_BT = torch.tensor(
        [[1, 1, 0, 1, 0, 1], [0, 1, 1, 1, 1, 1], [1, 0, 0, 1, 1, 0], [1, 1, 1, 1, 1, 1]]
    ).bool()
    turn = [[1, 1, 0, 2, 0, 3], [0, 1, 1, 1, 1, 1], [1, 0, 0, 2, 2, 0], [1] * 6]
    tokens = tokens_of(method, step=step)._replace(mask_BT=mask_BT)
    at = values(tokens, "teacher")
    assert_tokens(
        method.advantages(tokens),
        tokens,
        lambda i, t: at(i, t)[1] - at(i, t)[0] if turn[i][t] <= 1 + step // 5 else 0.0,
    )


def test_cord_weighs_by_divergence_and_place():
    method = make("cord", power=2.0, decay=0.9)
    tokens = tokens_of(method)
    (weight_BT,) = method.raw_weights(tokens)
    kl_BT = tokens.scores["student"].divergence_BT
    assert_tokens(weight_BT, tokens, lambda i, t: float(kl_BT[i, t]) ** 2 * 0.9**t)
    assert method.mean_one
    assert method.scorers[1].against == "teacher"


def test_halves_and_ablations():
    graded, tokens = testing.graded(), testing.tokens()
    assert torch.equal(make("pi_distill").route(graded), make("opsd").route(graded))
    assert make("pi_distill", beta=0.25).strength(3) == make("opsd", beta=0.25).strength(3) == 0.25
    unweighted = make("srpo_unweighted")
    assert torch.equal(unweighted.route(graded), make("srpo", entropy_weight_beta=1.0).route(graded))
    assert torch.equal(unweighted.raw_weights(tokens)[0], torch.ones(4, 6, dtype=torch.float64))


def test_srpo_stable_is_srpo_with_another_divergence():
    stable, srpo = make("srpo_stable", entropy_weight_beta=1.5), make("srpo", entropy_weight_beta=1.5)
    tokens, graded = tokens_of(srpo), testing.graded()
    assert torch.equal(stable.raw_weights(tokens)[0], srpo.raw_weights(tokens)[0])
    assert torch.equal(stable.route(graded), srpo.route(graded))
    assert stable.strength(3) == srpo.strength(3)


def test_srpo_both_keeps_the_advantages_of_what_it_distils():
    both, srpo = (
        make("srpo_both", entropy_weight_beta=1.5, distilled=0.5),
        make("srpo", entropy_weight_beta=1.5),
    )
    tokens, graded = tokens_of(srpo), testing.graded()
    of_srpo, of_both = srpo.route(graded), both.route(graded)
    assert torch.equal(is_distilled(of_both), is_distilled(of_srpo))
    assert is_policy(of_both).all()
    assert both.advantages is None  # TRL's own
    assert torch.equal(both.raw_weights(tokens)[0], srpo.raw_weights(tokens)[0])
    assert both.strength(3) == 0.5


# --- What reads what ---


def test_contexts_of_scorers():
    assert make("srpo", entropy_weight_beta=1.0).contexts == (TEACHER_CONTEXT,)
    assert make("skill_sd", column="hint").contexts == ("hint",)
    assert make("kdrl").contexts == make("ema_anchor").contexts == ()
    assert make("kdrl", self_teacher=True).contexts == (TEACHER_CONTEXT,)
    assert all(s.context == OWN_CONTEXT for s in make("scope").scorers)


def test_what_methods_share():
    mask_BT = torch.tensor([[True, True, True, False], [True, False, False, False], [False] * 4])
    value_BT = torch.tensor([[1.0, 3.0, 2.0, 9.0], [5.0, 1.0, 1.0, 1.0], [1.0] * 4])
    assert tokenwise.min_max(value_BT, mask_BT).tolist() == [[0.0, 1.0, 0.5, 0.0], [0.0] * 4, [0.0] * 4]
    assert tokenwise.top_frac(value_BT, mask_BT, 0.7).tolist() == [
        [False, True, True, False],
        [False] * 4,
        [False] * 4,
    ]
    ties_BT = torch.ones(1, 4)
    assert tokenwise.top_frac(ties_BT, ties_BT.bool(), 0.5).tolist() == [[True, True, False, False]]
    of_PG = torch.tensor([[True, True, False], [False, False, False]])
    value_PG = torch.tensor([[0.0, math.log(3.0), 7.0], [1.0, 2.0, 3.0]], dtype=torch.float64)
    torch.testing.assert_close(
        groups.softmax_within(value_PG, of_PG),
        torch.tensor([[0.5, 1.5, 0.0], [0.0] * 3], dtype=torch.float64),
    )
    assert groups.mean(value_PG, of_PG).flatten().tolist() == pytest.approx([math.log(3.0) / 2, 0.0])
    assert groups.log_mean_exp(value_PG, of_PG).flatten().tolist() == pytest.approx(
        [math.log(2.0), -math.inf]
    )
    graded = testing.graded()
    right_PG, wrong_PG = groups.outcomes(testing.scored(graded, routers.policy(graded)))
    assert right_PG.tolist() == graded.is_correct_PG.tolist()
    assert wrong_PG.tolist() == (graded.is_scored_PG & ~graded.is_correct_PG).tolist()
