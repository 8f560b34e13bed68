"""The pure functions of srpo_trl.loss against literals, the NumPy oracle and TRL's own loss helpers."""

import math

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck
from trl.experimental.sdpo import loss_utils

import oracle
from srpo_trl.loss.divergence import (
    MIN_TAIL_MASS,
    divergence,
    divergence_on_topk,
    forward_kl,
    generalized_jensen_shannon,
    renormalize,
    reverse_kl,
    sampled_token_reverse_kl,
    student_topk,
    topk_and_tail,
)
from srpo_trl.loss.entropy import entropy
from srpo_trl.loss.importance import importance_ratio
from srpo_trl.loss.token_weights import effective_sample_size, mean_one_weights, raw_entropy_weights

ALPHAS = (0.0, 0.3, 0.5, 1.0)
PAIR_FUNCTIONS = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jensen_shannon": lambda student, teacher: generalized_jensen_shannon(student, teacher, 0.3),
    "sampled": lambda student, teacher: sampled_token_reverse_kl(student[:, 0], teacher[:, 0]),
}


def random_logps(shape, seed=0, scale=2.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.log_softmax(scale * torch.randn(shape, generator=generator, dtype=dtype), dim=-1)


def logs(*probabilities, dtype=torch.float64):
    return torch.tensor([probabilities], dtype=dtype).log()


# --- Divergences ---


def test_divergences_of_two_coins_by_hand():
    student, teacher = logs(0.5, 0.5), logs(0.9, 0.1)
    forward = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    reverse = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    # m = (0.75 p + 0.25 q) = (0.6, 0.4)
    teacher_to_mixture = 0.9 * math.log(0.9 / 0.6) + 0.1 * math.log(0.1 / 0.4)
    student_to_mixture = 0.5 * math.log(0.5 / 0.6) + 0.5 * math.log(0.5 / 0.4)
    assert forward_kl(student, teacher).item() == pytest.approx(forward, rel=1e-12)
    assert reverse_kl(student, teacher).item() == pytest.approx(reverse, rel=1e-12)
    assert generalized_jensen_shannon(student, teacher, 0.25).item() == pytest.approx(
        0.25 * teacher_to_mixture + 0.75 * student_to_mixture, rel=1e-12
    )


def test_jensen_shannon_reaches_log_2_on_disjoint_support():
    student, teacher = logs(1.0, 1e-300), logs(1e-300, 1.0)
    assert generalized_jensen_shannon(student, teacher, 0.5).item() == pytest.approx(math.log(2), rel=1e-12)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("topk", [1, 5, 33, 100, None])
@pytest.mark.parametrize("add_tail", [True, False])
def test_divergence_on_topk_is_the_oracles(alpha, topk, add_tail):
    student, teacher = random_logps((7, 33), seed=1), random_logps((7, 33), seed=2)
    actual = divergence_on_topk(student, teacher, alpha, topk, add_tail)
    expected = [
        oracle.divergence(p, q, alpha, topk, add_tail)
        for p, q in zip(student.numpy(), teacher.numpy(), strict=True)
    ]
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("add_tail", [True, False])
def test_divergence_on_topk_is_trls(alpha, add_tail):
    generator = torch.Generator().manual_seed(3)
    # In float64: in float32 TRL's tail, one minus a sum, has fewer digits than ours.
    student_logits = 3 * torch.randn(64, 200, generator=generator, dtype=torch.float64)
    teacher_logits = student_logits + torch.randn(64, 200, generator=generator, dtype=torch.float64)
    expected = loss_utils.compute_topk_self_distillation_loss(
        student_logits,
        teacher_logits,
        distillation_topk=20,
        distillation_alpha=alpha,
        distillation_add_tail=add_tail,
    )
    student, teacher = torch.log_softmax(student_logits, -1), torch.log_softmax(teacher_logits, -1)
    torch.testing.assert_close(
        divergence_on_topk(student, teacher, alpha, 20, add_tail), expected, rtol=1e-5, atol=1e-6
    )
    expected_full = loss_utils.compute_full_logit_self_distillation_loss(
        student_logits, teacher_logits, distillation_alpha=alpha
    )
    torch.testing.assert_close(divergence(student, teacher, alpha), expected_full, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, math.nan])
def test_alpha_outside_its_range_is_refused(alpha):
    logps = random_logps((2, 3))
    with pytest.raises(ValueError, match=r"0 < alpha < 1"):
        divergence(logps, logps, alpha)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_jensen_shannon_refuses_its_ends(alpha):
    logps = random_logps((2, 3))
    with pytest.raises(ValueError, match=r"forward_kl for 0"):
        generalized_jensen_shannon(logps, logps, alpha)


# Not "sampled": its gradient is not the derivative of its value, and is checked by hand below.
@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jensen_shannon"])
def test_gradient_is_the_numerical_one(name):
    teacher = random_logps((3, 5), seed=4)
    student = random_logps((3, 5), seed=5).requires_grad_()
    assert gradcheck(lambda logps: PAIR_FUNCTIONS[name](logps, teacher), (student,))


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize(("topk", "add_tail"), [(3, True), (3, False), (None, True), (9, False)])
def test_topk_gradient_is_the_numerical_one(alpha, topk, add_tail):
    logits = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    teacher = random_logps((3, 6), seed=7)

    def loss(values):
        return divergence_on_topk(torch.log_softmax(values, -1), teacher, alpha, topk, add_tail)

    assert gradcheck(loss, (logits.requires_grad_(),))


def test_sampled_token_gradient_is_the_log_ratio():
    student = torch.tensor([-1.0, -0.2, -3.0], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([-0.5, -0.4, -3.0], dtype=torch.float64)
    loss = sampled_token_reverse_kl(student, teacher)
    np.testing.assert_allclose(loss.detach().numpy(), [0.5, -0.04, 0.0], atol=1e-15)
    loss.sum().backward()
    np.testing.assert_allclose(student.grad.numpy(), [-0.5, 0.2, 0.0], atol=1e-15)


def test_sampled_token_gradient_is_that_of_reverse_kl_in_expectation():
    logits = torch.randn(
        1, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(8)
    ).requires_grad_()
    teacher = random_logps((1, 5), seed=9)
    student = torch.log_softmax(logits, -1)
    surrogate = sampled_token_reverse_kl(student[0], teacher[0])
    (expected,) = torch.autograd.grad(reverse_kl(student, teacher).sum(), logits, retain_graph=True)
    (actual,) = torch.autograd.grad((student[0].exp().detach() * surrogate).sum(), logits)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


def test_sampled_token_is_trls_bit_for_bit():
    student_logits = torch.randn(4, 9, generator=torch.Generator().manual_seed(10))
    teacher_logits = torch.randn(4, 9, generator=torch.Generator().manual_seed(11))
    token_ids = torch.tensor([0, 3, 8, 3])
    expected = loss_utils.compute_sampled_token_self_distillation_loss(
        student_logits, teacher_logits, token_ids, distillation_alpha=1.0
    )
    student, teacher = (
        loss_utils.selective_log_softmax(logits, token_ids) for logits in (student_logits, teacher_logits)
    )
    assert torch.equal(sampled_token_reverse_kl(student, teacher), expected)


@pytest.mark.parametrize("name", PAIR_FUNCTIONS)
def test_no_gradient_flows_to_the_teacher(name):
    student = random_logps((3, 5), seed=12).requires_grad_()
    teacher = random_logps((3, 5), seed=13).requires_grad_()
    PAIR_FUNCTIONS[name](student, teacher).sum().backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0


@pytest.mark.parametrize("name", PAIR_FUNCTIONS)
def test_different_shapes_are_refused(name):
    function = PAIR_FUNCTIONS[name]
    with pytest.raises(ValueError, match=r"both must be the same"):
        function(random_logps((3, 5)), random_logps((2, 5)))


@pytest.mark.parametrize("name", PAIR_FUNCTIONS)
def test_rounded_log_probabilities_are_refused(name):
    logps = random_logps((3, 5))
    with pytest.raises(ValueError, match=r"float32 or float64 is required"):
        PAIR_FUNCTIONS[name](logps.bfloat16(), logps.bfloat16())


# --- Supports ---


def test_support_is_the_students_not_the_teachers():
    student, teacher = logs(0.5, 0.3, 0.15, 0.05), logs(0.05, 0.15, 0.3, 0.5)
    assert student_topk(student, 2).tolist() == [[0, 1]]
    expected = 0.05 * math.log(0.05 / 0.5) + 0.15 * math.log(0.15 / 0.3) + 0.8 * math.log(0.8 / 0.2)
    assert divergence_on_topk(student, teacher, 0.0, 2, True).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("topk", [4, 5, 100])
def test_topk_from_the_vocabulary_on_is_the_full_vocabulary(topk):
    student, teacher = logs(0.1, 0.2, 0.3, 0.4), logs(0.4, 0.3, 0.2, 0.1)
    for add_tail in (True, False):
        full = divergence_on_topk(student, teacher, 0.5, None, add_tail)
        assert torch.equal(divergence_on_topk(student, teacher, 0.5, topk, add_tail), full)


@pytest.mark.parametrize("topk", [0, -1])
def test_empty_support_is_refused(topk):
    logps = random_logps((2, 3))
    with pytest.raises(ValueError, match=r"at least 1 token"):
        divergence_on_topk(logps, logps, 0.5, topk, True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tail_bucket_closes_the_distribution(dtype):
    logps = random_logps((20, 50), seed=14, dtype=dtype)
    closed = topk_and_tail(logps, student_topk(logps, 8))
    top = logps.sort(-1, descending=True).values[:, :8]
    assert torch.equal(closed[:, :8], top)
    tail = 1 - top.double().exp().sum(-1)
    torch.testing.assert_close(closed[:, 8].exp().double(), tail, rtol=1e-5, atol=1e-7)


def test_tail_bucket_is_trls():
    logps = random_logps((50, 30), seed=15)
    indices = student_topk(logps, 8)
    expected = loss_utils.add_tail_bucket(logps.gather(-1, indices))
    torch.testing.assert_close(topk_and_tail(logps, indices), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("mass", [0.5, 1e-2, 1e-4, 1e-6, 1e-7, 1e-8, 1e-9, 1e-12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_small_tail_has_all_its_digits(mass, dtype):
    """Three tokens hold 1 - mass, six others mass / 6 each; TRL's form, one minus a sum, is wrong below 1e-6."""
    logps = torch.log(torch.tensor([[(1 - mass) / 3] * 3 + [mass / 6] * 6], dtype=torch.float64)).to(dtype)
    tail = topk_and_tail(logps, torch.tensor([[0, 1, 2]]))[0, 3]
    assert tail.exp().item() == pytest.approx(mass, rel=1e-5 if dtype == torch.float32 else 1e-13)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("mass", [0.5, 1e-3, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9])
def test_gradient_of_a_small_tail_is_the_float64_one(alpha, mass):
    generator = torch.Generator().manual_seed(16)
    outside = torch.randn(5, 200, generator=generator, dtype=torch.float64).log_softmax(-1) + math.log(mass)
    inside = torch.randn(5, 10, generator=generator, dtype=torch.float64).log_softmax(-1) + math.log1p(-mass)
    teacher = random_logps((5, 210), seed=17)
    indices = torch.arange(10).expand(5, 10)

    def gradient(dtype):
        values = torch.cat([inside, outside], dim=-1).to(dtype).requires_grad_()
        student = topk_and_tail(torch.log_softmax(values, -1), indices)
        divergence(student, topk_and_tail(teacher.to(dtype), indices), alpha).sum().backward()
        return values.grad.double()

    exact = gradient(torch.float64)
    error = gradient(torch.float32) - exact
    assert error.norm() < 1e-5 * exact.norm()
    assert error[:, 10:].norm() < 1e-5 * exact[:, 10:].norm()


def test_a_tail_below_its_bound_is_a_constant():
    logits = torch.tensor([[0.0, 0.0, -50.0, -60.0]], requires_grad=True)
    tail = topk_and_tail(torch.log_softmax(logits, -1), torch.tensor([[0, 1]]))[0, 2]
    tail.backward()
    assert tail.item() == pytest.approx(math.log(MIN_TAIL_MASS))
    assert torch.equal(logits.grad, torch.zeros(1, 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_all_mass_in_the_topk_stays_finite(dtype, alpha):
    logits = torch.tensor([[0.0, -1.0, -2000.0, -2000.0], [50.0, 0.0, -2000.0, -3000.0]], dtype=dtype)
    teacher = torch.log_softmax(torch.tensor([[0.0, 0.5, 1.0, -1.0]], dtype=dtype).expand(2, 4), -1)
    logits.requires_grad_()
    loss = divergence_on_topk(torch.log_softmax(logits, -1), teacher, alpha, 2, add_tail=True)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert logits.grad.isfinite().all()
    assert logits.grad[0, :2].abs().min() > 0


def test_renormalized_sums_to_one_and_keeps_the_ratios():
    closed = renormalize(logs(0.2, 0.1, 0.1))
    np.testing.assert_allclose(closed.exp().numpy(), [[0.5, 0.25, 0.25]], rtol=1e-12)


# --- Entropy ---


def test_entropy_of_known_distributions():
    np.testing.assert_allclose(entropy(logs(0.25, 0.25, 0.25, 0.25)).numpy(), [math.log(4)], rtol=1e-12)
    half = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    np.testing.assert_allclose(entropy(logs(0.9, 0.1)).numpy(), [half], rtol=1e-12)


def test_entropy_is_the_oracles_and_its_gradient_the_numerical_one():
    logps = random_logps((4, 6), seed=16)
    np.testing.assert_allclose(entropy(logps).numpy(), oracle.entropy(logps.numpy()), rtol=1e-12)
    assert gradcheck(entropy, (logps.requires_grad_(),))


# --- Entropy weights ---


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0, 5.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_entropy_weights_have_the_mean_1(beta, dtype):
    teacher_entropy = 8 * torch.rand(1000, generator=torch.Generator().manual_seed(17), dtype=dtype)
    raw = raw_entropy_weights(teacher_entropy, beta)
    weights = mean_one_weights(raw, raw.mean(), dtype)
    assert weights.dtype == dtype
    assert weights.double().mean().item() == pytest.approx(1.0, abs=1e-6 if dtype == torch.float32 else 1e-12)
    np.testing.assert_allclose(
        weights.numpy(), oracle.entropy_weights(teacher_entropy.numpy(), beta), rtol=1e-6
    )


def test_beta_0_weighs_exactly_1():
    raw = raw_entropy_weights(torch.tensor([0.0, 1.5, 1e4]), 0.0)
    assert torch.equal(raw, torch.ones(3, dtype=torch.float64))
    assert torch.equal(mean_one_weights(raw, raw.mean(), torch.float32), torch.ones(3))


def test_raw_weights_by_hand_in_float64_without_gradient():
    teacher_entropy = torch.tensor([0.0, 1.0, 2.0], requires_grad=True)
    raw = raw_entropy_weights(teacher_entropy, 0.5)
    assert raw.dtype == torch.float64
    assert not raw.requires_grad
    np.testing.assert_allclose(raw.numpy(), [1.0, math.exp(-0.5), math.exp(-1.0)], rtol=1e-15)
    weights = mean_one_weights(raw, torch.tensor(0.5, dtype=torch.float64), torch.bfloat16)
    assert weights.dtype == torch.float32
    np.testing.assert_allclose(weights.numpy(), 2 * raw.numpy(), rtol=1e-6)


def test_negative_beta_is_refused():
    with pytest.raises(ValueError, match=r"beta is -1"):
        raw_entropy_weights(torch.zeros(2), -1)


def test_effective_sample_size():
    weights = torch.tensor([0.5, 1.0, 2.5, 0.1])
    actual = effective_sample_size(weights.sum(), weights.square().sum())
    assert actual.item() == pytest.approx(oracle.effective_sample_size(weights.tolist()), rel=1e-6)
    assert effective_sample_size(5.0, 5.0).item() == 5.0
    assert effective_sample_size(torch.tensor(0.0), torch.tensor(0.0)).item() == 0.0


# --- Importance ratio ---


@pytest.mark.parametrize("clip", [0.5, 2.0, 1e12, None])
def test_importance_ratio_is_the_oracles(clip):
    student = torch.tensor([-1.0, -1.0, -1.0, -0.1, -60.0], dtype=torch.float64)
    old = torch.tensor([-1.0, -0.5, -1.5, -50.0, -0.1], dtype=torch.float64)
    expected = [
        oracle.importance_ratio(s, o, clip) for s, o in zip(student.tolist(), old.tolist(), strict=True)
    ]
    np.testing.assert_allclose(importance_ratio(student, old, clip).numpy(), expected, rtol=1e-12)


def test_importance_ratio_is_trls_bit_for_bit():
    student = -3 * torch.rand(100, generator=torch.Generator().manual_seed(18))
    old = -3 * torch.rand(100, generator=torch.Generator().manual_seed(19))
    loss = torch.rand(100, generator=torch.Generator().manual_seed(20))
    expected = loss_utils.apply_importance_sampling_clipping(loss, student, old, 2.0)
    assert torch.equal(loss * importance_ratio(student, old, 2.0), expected)


@pytest.mark.parametrize("clip", [2.0, None])
def test_importance_ratio_is_detached_and_float32(clip):
    student = torch.full((3,), -1.0, dtype=torch.bfloat16, requires_grad=True)
    ratio = importance_ratio(student, torch.full((3,), -1.25, requires_grad=True), clip)
    assert not ratio.requires_grad
    assert ratio.dtype == torch.float32
    assert ratio[0].item() == pytest.approx(1.0 if clip is None else math.exp(0.25))


def test_importance_ratio_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"clip is 0"):
        importance_ratio(torch.zeros(2), torch.zeros(2), 0.0)
    with pytest.raises(ValueError, match=r"both must be the same"):
        importance_ratio(torch.zeros(2), torch.zeros(1), 2.0)


# --- The oracle's joint objective, by hand ---


def test_oracle_joint_objective_has_one_denominator_over_the_window():
    """One correct rollout of two tokens, one failed of one token, by hand; on-policy, so every ratio is 1."""
    uniform = np.zeros((2, 2))
    teacher = np.log([[0.9, 0.1], [0.5, 0.5]])
    rollouts = [
        oracle.Rollout(uniform, None, [0, 1], [True, True], reward=1.0),
        oracle.Rollout(uniform, teacher, [0, 1], [True, False], reward=0.0),
    ]
    options = oracle.Options(num_generations=2, distillation_alpha=0.0)
    forward = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    objective = oracle.joint_objective(rollouts, options)
    assert objective.routes == [(1.0, 0.0), (0.0, 1.0)]
    assert objective.num_routed_tokens == 3
    assert objective.policy_sum == pytest.approx(-2 * 0.5)
    assert objective.distillation_sum == pytest.approx(forward)  # the weight of Omega's only token is 1
    assert objective.loss == pytest.approx((forward - 1.0) / 3)
    gradient = oracle.numerical_gradient(rollouts, 1, options)
    np.testing.assert_allclose(gradient, [[(0.5 - 0.9) / 3, (0.5 - 0.1) / 3], [0, 0]], atol=1e-9)
