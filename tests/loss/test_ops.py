"""The distillation operators: reference against oracle, chunked against reference, gradients, memory, dtypes."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

import oracle
from loss_problems import HIDDEN_SIZE, SPECS, CountLiveBytes, make_problem
from srpo_trl.loss.ops import DistillationSpec, Head, distillation_loss, projection, token_statistics
from srpo_trl.loss.ops.plan import plan_distillation, plan_statistics

BACKENDS = ("reference", "chunked")
ALPHAS = (0.0, 0.3, 0.5, 1.0)
FIELDS = ("divergence_N", "student_logps_N", "student_entropy_N", "topk_mass_N", "importance_ratio_N")


def assert_same(actual, expected, rtol=1e-9, atol=1e-12):
    for name in ("loss", *FIELDS):
        torch.testing.assert_close(
            getattr(actual, name),
            getattr(expected, name),
            rtol=rtol,
            atol=atol,
            msg=lambda m, n=name: f"{n}: {m}",
        )


# --- Values against the oracle ---


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", SPECS)
@pytest.mark.parametrize(("softcap", "scale", "temperature"), [(None, 1.0, 1.0), (4.0, 0.7, 0.6)])
def test_result_is_the_oracles(backend, mode, softcap, scale, temperature):
    problem = make_problem(7, 33, bias=True, softcap=softcap, scale=scale)
    spec = dataclasses.replace(SPECS[mode], temperature=temperature, alpha=0.3)
    result = problem.run(spec, backend, chunk_bytes=4000)
    student, teacher = (
        oracle.log_softmax(
            oracle.head_logits(
                hidden.detach(), head.weight_VD.detach(), head.bias_V.detach(), scale, softcap, temperature
            )
        )
        for hidden, head in (
            (problem.hidden, problem.head),
            (problem.teacher_hidden, problem.teacher_head),
        )
    )
    loss = 0.0
    for n, token in enumerate(problem.token_ids.tolist()):
        ratio = oracle.importance_ratio(student[n, token], problem.old_logps[n].item(), 2.0)
        if mode == "sampled":
            value = student[n, token] - teacher[n, token]
            loss += problem.coefficient[n].item() * ratio * value * student[n, token]
        else:
            value = oracle.divergence(student[n], teacher[n], 0.3, spec.topk, spec.add_tail)
            loss += problem.coefficient[n].item() * ratio * value
        mass = np.sort(np.exp(student[n]))[-5:].sum() if mode in ("tail", "renormalized") else 1.0
        assert result.divergence_N[n].item() == pytest.approx(value, rel=1e-10, abs=1e-13)
        assert result.student_logps_N[n].item() == pytest.approx(student[n, token], rel=1e-12)
        assert result.student_entropy_N[n].item() == pytest.approx(oracle.entropy(student[n]), rel=1e-12)
        assert result.topk_mass_N[n].item() == pytest.approx(mass, rel=1e-12)
        assert result.importance_ratio_N[n].item() == pytest.approx(ratio, rel=1e-12)
    assert result.loss.item() == pytest.approx(loss, rel=1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("num_tokens", [0, 1, 7])
@pytest.mark.parametrize(("softcap", "temperature"), [(None, 1.0), (4.0, 0.6)])
def test_token_statistics_are_the_oracles(backend, num_tokens, softcap, temperature):
    problem = make_problem(num_tokens, 33, bias=True, softcap=softcap, scale=0.7)
    statistics = token_statistics(problem.hidden, problem.head, temperature, backend=backend, chunk_bytes=900)
    actual, log_sum_exp = statistics
    assert not actual.requires_grad
    arrays = (t.detach().numpy() for t in (problem.hidden, *problem.head[:2]))
    logits = oracle.head_logits(*arrays, 0.7, softcap, temperature)
    logps = oracle.log_softmax(logits)
    np.testing.assert_allclose(actual.numpy(), oracle.entropy(logps), rtol=1e-12)
    np.testing.assert_allclose(log_sum_exp.numpy(), (logits - logps)[:, 0], rtol=1e-12)


# --- Gradients ---


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize(("topk", "add_tail"), [(3, True), (3, False), (1, True), (None, True), (20, False)])
def test_gradient_is_the_numerical_one(backend, alpha, topk, add_tail):
    # Old log-probabilities are absent: the ratio has no gradient, but a numerical derivative would see it move.
    problem = make_problem(3, 7, bias=True, softcap=3.0, scale=0.8, old=False)
    spec = DistillationSpec(alpha=alpha, topk=topk, add_tail=add_tail, temperature=0.9)

    def loss(hidden, weight, bias):
        moved = dataclasses.replace(problem, hidden=hidden, head=Head(weight, bias, 0.8, 3.0))
        return moved.run(spec, backend, chunk_bytes=2000).loss

    assert gradcheck(loss, problem.leaves(), fast_mode=False)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_in_the_training_window_is_the_oracles(backend):
    """Importance ratios and the sampled token's first factor stay where they are, as in the oracle's derivative."""
    problem = make_problem(4, 9)
    weight = torch.eye(9, dtype=torch.float64)
    logits = torch.randn(
        4, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(5)
    ).requires_grad_()
    teacher_logits = torch.randn(4, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    for mode, topk in itertools.product(("exact", "sampled"), (3, None)):
        options = oracle.Options(
            num_generations=1,
            method="sdpo",
            distillation_topk=topk,
            distillation_estimator=mode,
            temperature=0.8,
            entropy_weight_beta=0.0,
        )
        rollout = oracle.Rollout(
            logits.detach().numpy(),
            teacher_logits.numpy(),
            problem.token_ids.tolist(),
            [True] * 4,
            0.0,
            old_logps=problem.old_logps.tolist(),
        )
        result = distillation_loss(
            logits,
            Head(weight),
            teacher_logits,
            Head(weight),
            problem.token_ids,
            torch.full((4,), 0.25, dtype=torch.float64),
            problem.old_logps,
            spec=DistillationSpec(topk=topk, estimator=mode, temperature=0.8),
            backend=backend,
        )
        assert result.loss.item() == pytest.approx(oracle.joint_loss([rollout], options), rel=1e-10)
        (gradient,) = torch.autograd.grad(result.loss, logits)
        expected = oracle.numerical_gradient([rollout], 0, options)
        np.testing.assert_allclose(gradient.numpy(), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("num_tokens", [0, 1, 7, 130])
@pytest.mark.parametrize("vocab_size", [5, 33, 1001])
@pytest.mark.parametrize("topk", [1, 5, 2000, None])
def test_chunked_is_the_reference(num_tokens, vocab_size, topk):
    variants = [(alpha, add_tail, "exact") for alpha in ALPHAS for add_tail in (True, False)]
    variants.append((1.0, True, "sampled"))
    for index, (alpha, add_tail, mode) in enumerate(variants):
        bias, softcap, scale = ((True, None, 1.0), (False, 5.0, 0.7), (False, None, 1.3))[index % 3]
        problem = make_problem(
            num_tokens, vocab_size, bias=bias, softcap=softcap, scale=scale, old=index % 2 == 0, seed=index
        )
        spec = DistillationSpec(alpha, topk, add_tail, mode, temperature=(1.0, 0.6)[index % 2])
        expected, expected_gradients = problem.gradients(spec, "reference")
        chunk_bytes = (1, 40 * vocab_size, 400 * vocab_size, 2**28)[index % 4]
        actual, gradients = problem.gradients(spec, "chunked", chunk_bytes)
        assert_same(actual, expected)
        for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
            torch.testing.assert_close(gradient, expected_gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("mode", SPECS)
def test_chunked_is_the_reference_in_float32(mode):
    problem = make_problem(40, 300, bias=True, dtype=torch.float32)
    expected, expected_gradients = problem.gradients(SPECS[mode], "reference")
    actual, gradients = problem.gradients(SPECS[mode], "chunked", 20_000)
    assert all(getattr(actual, name).dtype == torch.float32 for name in ("loss", *FIELDS))
    assert_same(actual, expected, rtol=1e-4, atol=2e-6)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_tokens_give_a_loss_of_0_with_zero_gradients(backend):
    problem = make_problem(0, 33, bias=True)
    result, gradients = problem.gradients(SPECS["tail"], backend)
    assert result.loss.item() == 0.0
    assert result.divergence_N.shape == (0,)
    assert [g.shape for g in gradients] == [leaf.shape for leaf in problem.leaves()]
    assert all((g == 0).all() for g in gradients)


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_the_loss_is_differentiable(backend):
    result = make_problem(3, 9).run(SPECS["tail"], backend)
    assert result.loss.requires_grad
    assert not any(getattr(result, name).requires_grad for name in FIELDS)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", SPECS)
def test_no_gradient_flows_to_teacher_ratio_or_coefficient(backend, mode):
    problem = make_problem(7, 33, bias=True)
    others = [
        problem.teacher_hidden,
        problem.teacher_head.weight_VD,
        problem.teacher_head.bias_V,
        problem.coefficient,
        problem.old_logps,
    ]
    for tensor in others:
        tensor.requires_grad_()
    problem.run(SPECS[mode], backend).loss.backward()
    assert all(tensor.grad is None for tensor in others)
    assert all(leaf.grad.abs().sum() > 0 for leaf in problem.leaves())


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_self_teacher_with_the_same_head_gives_the_student_gradient_alone(backend):
    problem = make_problem(7, 33, bias=True)
    problem.teacher_head = problem.head
    _, gradients = problem.gradients(SPECS["tail"], backend)
    apart = dataclasses.replace(problem, teacher_head=Head(*(t.detach().clone() for t in problem.head[:2])))
    _, expected = apart.gradients(SPECS["tail"], backend)
    for gradient, expected_gradient in zip(gradients, expected, strict=True):
        assert torch.equal(gradient, expected_gradient)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("mode", SPECS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_teacher_equal_to_the_student_leaves_nothing_to_learn(backend, alpha, mode, dtype):
    problem = make_problem(20, 33, bias=True, dtype=dtype)
    problem.teacher_hidden, problem.teacher_head = problem.hidden, problem.head
    problem.coefficient = torch.ones(20, dtype=dtype)
    result, gradients = problem.gradients(dataclasses.replace(SPECS[mode], alpha=alpha), backend, 3000)
    tolerance = 3e-6 if dtype == torch.float32 else 1e-14
    assert result.divergence_N.abs().max() <= tolerance
    assert max(g.abs().max() for g in gradients) <= 20 * tolerance


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", ["tail", "renormalized", "full"])
def test_divergences_are_negative_by_rounding_only(backend, mode):
    problem = make_problem(200, 100, dtype=torch.float32)
    problem.teacher_hidden = problem.hidden.detach() + 1e-4 * torch.randn(200, HIDDEN_SIZE)
    problem.teacher_head = Head(problem.head.weight_VD.detach())
    for alpha in ALPHAS:
        result = problem.run(dataclasses.replace(SPECS[mode], alpha=alpha), backend)
        assert result.divergence_N.min() > -2e-6


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_all_mass_in_the_topk_stays_finite(backend, dtype, alpha):
    weight = torch.eye(4, dtype=dtype)
    logits = torch.tensor([[0.0, -1.0, -2000.0, -2000.0], [50.0, 0.0, -900.0, -3000.0]], dtype=dtype)
    teacher_logits = torch.tensor([[0.0, 0.5, 1.0, -1.0]], dtype=dtype).repeat(2, 1)
    inputs = (Head(weight), teacher_logits, Head(weight), torch.tensor([0, 1]), torch.ones(2, dtype=dtype))
    spec = DistillationSpec(alpha=alpha, topk=2)
    gradients = []
    for name in ("reference", backend):
        student = logits.clone().requires_grad_()
        result = distillation_loss(student, *inputs, spec=spec, backend=name)
        result.loss.backward()
        gradients.append(student.grad)
    assert result.divergence_N.isfinite().all()
    assert gradients[1].isfinite().all()
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("alpha", "is_linear"), [*((alpha, False) for alpha in ALPHAS), (0.3, True)])
def test_tokens_that_both_sides_are_sure_of_have_no_divergence(backend, alpha, is_linear):
    """Logits of 33, tails of 5e-10: one minus a sum leaves noise of either sign, of which 4e-4 nats once remained."""
    generator = torch.Generator().manual_seed(0)
    weight = 0.15 * torch.randn(1001, 256, generator=generator)
    ids = torch.arange(64)
    hidden = torch.randn(64, 256, generator=generator) + weight[ids] * (33 / (0.15**2 * 256))
    teacher_hidden, head = hidden + 1e-3 * torch.randn(64, 256, generator=generator), Head(weight)
    hidden.requires_grad_()
    arguments = (hidden, head, teacher_hidden, head, ids, torch.ones(64), None)
    log_sum_exp = token_statistics(teacher_hidden, head, 1.0).log_sum_exp_N
    spec = DistillationSpec(alpha=alpha, topk=20, is_linear=is_linear)
    result = distillation_loss(*arguments, log_sum_exp, spec=spec, backend=backend)
    assert result.divergence_N.abs().max() < 1e-6
    assert result.divergence_N.mean().abs() < 1e-7
    assert torch.autograd.grad(result.loss, hidden)[0].norm() < 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("level", [0.0, 64.0, -1000.0])
@pytest.mark.parametrize("add_tail", [True, False])
def test_a_level_that_all_logits_share_costs_no_digits(backend, level, add_tail):
    generator = torch.Generator().manual_seed(0)
    # Sixteenths, which float32 has exactly at each level.
    logits = torch.randint(-100, 100, (8, 301), generator=generator) / 16 + level
    teacher, head = logits + torch.randint(-4, 5, (8, 301), generator=generator) / 16, Head(torch.eye(301))
    spec = DistillationSpec(alpha=0.0, topk=20, add_tail=add_tail)
    rows = (torch.zeros(8, dtype=torch.int64), torch.ones(8), None)
    log_sum_exp = token_statistics(teacher, head, 1.0).log_sum_exp_N if add_tail else None
    result = distillation_loss(logits, head, teacher, head, *rows, log_sum_exp, spec=spec, backend=backend)
    wide = Head(torch.eye(301, dtype=torch.float64))
    exact = distillation_loss(logits.double(), wide, teacher.double(), wide, *rows, spec=spec)
    torch.testing.assert_close(result.divergence_N.double(), exact.divergence_N, rtol=0, atol=1e-6)


def tail_logits(masses, seed):
    """Logits of 101 tokens, whose first 10 are the most probable; the others hold the given mass."""
    generator = torch.Generator().manual_seed(seed)
    inside = torch.randn(len(masses), 10, generator=generator, dtype=torch.float64).log_softmax(-1)
    outside = torch.randn(len(masses), 91, generator=generator, dtype=torch.float64).mul(0.1).log_softmax(-1)
    mass = torch.tensor(masses, dtype=torch.float64).unsqueeze(1)
    return torch.cat([inside + torch.log1p(-mass), outside + mass.log()], dim=1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("alpha", "is_linear"), [*((alpha, False) for alpha in ALPHAS), (0.1, True), (0.5, True)]
)
@pytest.mark.parametrize("teacher_mass", [0.5, 0.2, 1e-3, 1e-5, 3e-8, 1e-9])
def test_gradient_of_a_small_tail_is_the_float64_one(backend, alpha, is_linear, teacher_mass):
    """The student's tail holds from 0.5 to 1e-9: each token's own gradient is right, and its divergence.

    One minus the mass inside, as elsewhere, makes forward KL's gradient wrong by 5 to 20 % between 1e-7 and 1e-6.
    """
    masses = [0.5, 1e-2, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9]
    students, teachers = tail_logits(masses, 5), tail_logits([teacher_mass] * len(masses), 6)
    spec = DistillationSpec(alpha=alpha, topk=10, is_linear=is_linear)

    def run(dtype, name, carries=True):
        logits, head = students.to(dtype).requires_grad_(), Head(torch.eye(101, dtype=dtype))
        ids, ones = torch.zeros(len(masses), dtype=torch.int64), torch.ones(len(masses), dtype=dtype)
        teacher = teachers.to(dtype)
        carried = token_statistics(teacher, head, 1.0).log_sum_exp_N if carries else None
        arguments = (logits, head, teacher, head, ids, ones, None, carried)
        result = distillation_loss(*arguments, spec=spec, backend=name)
        return torch.autograd.grad(result.loss, logits)[0].double(), result.divergence_N.double()

    exact, exact_divergence = run(torch.float64, "reference", carries=False)
    gradient, divergence = run(torch.float32, backend)
    relative = (gradient - exact).norm(dim=-1) / exact.norm(dim=-1)
    assert relative.max() < 1e-5, str(relative.tolist())
    assert (divergence - exact_divergence).abs().max() < 5e-6
    # Each part by itself; with a carried log-sum-exp where the tail has digits.
    if teacher_mass in (0.2, 3e-8):
        if teacher_mass == 3e-8:
            gradient, _ = run(torch.float32, "reference", carries=False)
        for part in (slice(0, 10), slice(10, None)):
            relative = (gradient - exact)[:, part].norm(dim=-1) / exact[:, part].norm(dim=-1)
            assert relative.max() < 1e-5, str(relative.tolist())


# --- What is made ---


def test_a_frozen_head_gets_no_gradient_and_costs_no_matrix():
    problem = make_problem(7, 33, bias=True)
    problem.head = Head(*(t.detach() for t in problem.head[:2]))
    problem.run(SPECS["tail"], "chunked").loss.backward()
    assert problem.hidden.grad.abs().sum() > 0
    assert problem.head.weight_VD.grad is None
    with CountLiveBytes() as counter:
        result = problem.run(SPECS["tail"], "chunked", chunk_bytes=1)
    assert counter.largest < problem.head.weight_VD.numel() * 8  # no (V, D) matrix was made
    assert result.loss.requires_grad


def test_only_the_head_may_be_trained():
    problem = make_problem(7, 33, bias=True)
    _, expected = problem.gradients(SPECS["tail"], "chunked")
    problem.hidden = problem.hidden.detach()
    result = problem.run(SPECS["tail"], "chunked")
    gradients = torch.autograd.grad(result.loss * 1.7, problem.leaves()[1:])
    assert all(torch.equal(a, b) for a, b in zip(gradients, expected[1:], strict=True))


def test_without_grad_no_gradient_is_made():
    problem = make_problem(130, 33, bias=True)
    with torch.no_grad(), CountLiveBytes() as counter:
        result = problem.run(SPECS["tail"], "chunked", chunk_bytes=1)
    assert not result.loss.requires_grad
    assert counter.total_of_shape((130, HIDDEN_SIZE)) == 0
    assert counter.total_of_shape((33, HIDDEN_SIZE)) == 0
    assert_same(result, problem.run(SPECS["tail"], "reference"))


def test_backward_twice_gives_the_same_gradient():
    problem = make_problem(7, 33)
    result = problem.run(SPECS["tail"], "chunked")
    first = torch.autograd.grad(3 * result.loss, problem.leaves(), retain_graph=True)
    second = torch.autograd.grad(3 * result.loss, problem.leaves())
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("mode", SPECS)
def test_the_result_does_not_depend_on_the_chunks(mode):
    problem = make_problem(130, 33, bias=True)
    expected, expected_gradients = problem.gradients(SPECS[mode], "chunked", 2**28)
    for chunk_bytes in (1, 5_000, 30_000):
        actual, gradients = problem.gradients(SPECS[mode], "chunked", chunk_bytes)
        assert_same(actual, expected, rtol=1e-12, atol=1e-13)
        for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
            torch.testing.assert_close(gradient, expected_gradient, rtol=1e-11, atol=1e-12)


# --- Memory ---


def test_the_counter_counts():
    with CountLiveBytes() as counter:
        a = torch.zeros(10)
        b = a.exp()
        del a
        b.mul_(2).view(2, 5)
        c = b + 1
        del b, c
    assert (counter.live, counter.peak) == (0, 80)


MEMORY_SPECS = {
    **{f"full {alpha}": DistillationSpec(alpha=alpha, topk=None) for alpha in (0.0, 0.5, 1.0)},
    **{f"full {a}, clipped": DistillationSpec(a, None, pointwise_clip=1e-3) for a in (0.0, 0.5, 1.0)},
    "mix": DistillationSpec(topk=None, is_linear=True),
    "mix, clipped": DistillationSpec(topk=None, is_linear=True, pointwise_clip=1e-3),
    "mix with tail, clipped": DistillationSpec(topk=200, is_linear=True, pointwise_clip=1e-3),
    "tail": DistillationSpec(topk=5),
    "large top K": DistillationSpec(topk=200),
    "renormalized": DistillationSpec(topk=5, add_tail=False),
    "sampled": DistillationSpec(estimator="sampled"),
}


@pytest.mark.parametrize("mode", MEMORY_SPECS)
@pytest.mark.parametrize(("dtype", "softcap"), [(torch.float32, None), (torch.bfloat16, 5.0)])
def test_memory_is_bounded(mode, dtype, softcap):
    spec, vocab_size, itemsize = MEMORY_SPECS[mode], 501, 4
    seen_chunks = set()
    for num_tokens, chunk_bytes in ((1, 1), (1, 10**6), (20, 1), (130, 30_000), (130, 100_000), (130, 10**6)):
        problem = make_problem(num_tokens, vocab_size, bias=True, softcap=softcap, scale=0.7, dtype=dtype)
        sides = (problem.hidden, problem.head, problem.teacher_hidden, problem.teacher_head)
        plan = plan_distillation(*sides, torch.float32, spec, chunk_bytes)
        seen_chunks.add(plan.chunk_tokens)
        # One token at a time is the least: 2 rows of logits and up to 5 temporary ones, or the support's columns.
        least = (7 * vocab_size + 16 * (spec.topk or 0) + 200) * itemsize
        bound = max(chunk_bytes, least)
        gradients = sum(leaf.numel() for leaf in problem.leaves())
        outputs = (6 * num_tokens + 1) * itemsize
        with CountLiveBytes() as counter:
            result = problem.run(spec, "chunked", chunk_bytes)
        assert plan.temporary_bytes <= bound
        assert counter.peak <= plan.temporary_bytes + outputs + gradients * itemsize
        with CountLiveBytes() as counter:
            made = torch.autograd.grad(result.loss, problem.leaves())
        assert counter.peak <= max(chunk_bytes, 4 * vocab_size) + sum(g.nbytes for g in made) + 64
    assert {1, 130} <= seen_chunks
    assert len(seen_chunks) > 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunk_bytes", [1, 30_000, 100_000])
def test_memory_of_the_entropy_is_bounded(dtype, chunk_bytes):
    problem = make_problem(130, 1001, dtype=dtype)
    plan = plan_statistics(problem.hidden, problem.head, torch.float32, chunk_bytes)
    with CountLiveBytes() as counter:
        token_statistics(problem.hidden, problem.head, 0.9, chunk_bytes=chunk_bytes)
    assert plan.temporary_bytes <= max(chunk_bytes, 5 * 1001 * 4)
    assert counter.peak <= plan.temporary_bytes + 2 * 4 * 130


# --- Dtypes ---


def rounded_problem(num_tokens, vocab_size, dtype, weight_dtype):
    """Inputs rounded to `dtype`, the teacher's hidden states a little away from the student's."""
    problem = make_problem(num_tokens, vocab_size, bias=True, old=False)
    noise = torch.randn(num_tokens, HIDDEN_SIZE, generator=torch.Generator().manual_seed(7))
    teacher_hidden = (problem.hidden.detach() + 0.02 * noise).to(dtype)
    head = Head(*(t.detach().to(weight_dtype) for t in problem.head[:2]))
    rounded = dataclasses.replace(
        problem, hidden=problem.hidden.detach().to(dtype), head=head, teacher_hidden=teacher_hidden
    )
    rounded.teacher_head = Head(*(t.clone() for t in head[:2]))
    for leaf in rounded.leaves():
        leaf.requires_grad_()
    return rounded


def in_float64(problem):
    head, teacher_head = (
        Head(*(t.detach().double() for t in side[:2])) for side in (problem.head, problem.teacher_head)
    )
    exact = dataclasses.replace(
        problem,
        hidden=problem.hidden.detach().double(),
        head=head,
        teacher_hidden=problem.teacher_hidden.double(),
        teacher_head=teacher_head,
    )
    for leaf in exact.leaves():
        leaf.requires_grad_()
    return exact


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", SPECS)
@pytest.mark.parametrize(
    ("dtype", "weight_dtype"),
    [
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float16),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.bfloat16),
    ],
)
def test_narrow_inputs_are_not_rounded_further(backend, mode, dtype, weight_dtype):
    """Near the self-teacher the divergence of float64 on the same inputs is met to 1 %, and mostly far better."""
    problem = rounded_problem(50, 300, dtype, weight_dtype)
    spec = dataclasses.replace(SPECS[mode], alpha=1.0)
    exact, exact_gradients = in_float64(problem).gradients(spec, "reference")
    result, gradients = problem.gradients(spec, backend, 40_000)
    assert result.loss.dtype == torch.float32
    assert 1e-6 < exact.divergence_N.abs().mean() < 0.05
    error = (result.divergence_N - exact.divergence_N).abs().mean() / exact.divergence_N.abs().mean()
    assert error < 0.01
    torch.testing.assert_close(result.student_logps_N.double(), exact.student_logps_N, rtol=1e-5, atol=1e-5)
    for gradient, expected, leaf in zip(gradients, exact_gradients, problem.leaves(), strict=True):
        assert gradient.dtype == leaf.dtype
        assert (gradient.double() - expected).norm() < 0.01 * expected.norm()


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_does_not_round_the_product(backend):
    problem = make_problem(7, 33, bias=True, dtype=torch.float32)
    expected = problem.run(SPECS["tail"], backend)
    expected_entropy = token_statistics(problem.hidden, problem.head, 1.0, backend=backend).entropy_N
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = problem.run(SPECS["tail"], backend)
        entropy = token_statistics(problem.hidden, problem.head, 1.0, backend=backend).entropy_N
    assert_same(actual, expected, rtol=0, atol=0)
    assert torch.equal(entropy, expected_entropy)


@pytest.fixture
def mixed(monkeypatch):
    """CPUs have no narrow product in float32: here one stands in for it, in everything around it."""

    def mixed_mm(left, right, *, out, accumulate=False):
        assert left.dtype == right.dtype
        assert left.dtype in (torch.bfloat16, torch.float16)
        product = left.float() @ right.float()
        out.copy_(out + product if accumulate else product)

    def matmul_precision(hidden, weight, dtype):
        return "mixed" if hidden.dtype == weight.dtype != dtype == torch.float32 else "convert"

    monkeypatch.setattr(projection, "_mixed_mm", mixed_mm)
    for module in ("srpo_trl.loss.ops.chunked", "srpo_trl.loss.ops.plan", "srpo_trl.loss.ops.teacher_rows"):
        monkeypatch.setattr(f"{module}.matmul_precision", matmul_precision)


@pytest.mark.parametrize("mode", SPECS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 1e-2), (torch.float16, 2e-3)])
def test_mixed_products_of_cuda_meet_float64_too(mixed, mode, dtype, tolerance):
    """Also where the products' gradient, of coefficients below 1e-7, is smaller than float16 can be."""
    problem = rounded_problem(50, 301, dtype, dtype)
    problem.coefficient = problem.coefficient * 1e-7
    exact, exact_gradients = in_float64(problem).gradients(SPECS[mode], "reference", upstream=1.0)
    result, gradients = problem.gradients(SPECS[mode], "chunked", 40_000, upstream=2.0**24)
    torch.testing.assert_close(result.divergence_N.double(), exact.divergence_N, rtol=0.02, atol=1e-6)
    summed = (
        (problem.coefficient.double() * exact.divergence_N).abs().sum()
    )  # of both signs: they nearly cancel
    torch.testing.assert_close(result.loss.double(), exact.loss, rtol=0, atol=float(1e-4 * summed))
    for gradient, expected in zip(gradients, exact_gradients, strict=True):
        assert (gradient.double() / 2.0**24 - expected).norm() < tolerance * expected.norm()


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e6])
def test_no_coefficient_overflows_the_products_gradient(mixed, scale):
    problem = rounded_problem(50, 301, torch.float16, torch.float16)
    problem.coefficient = problem.coefficient * scale
    _, gradients = problem.gradients(SPECS["full"], "chunked", 40_000, upstream=1 / scale)
    _, exact = in_float64(problem).gradients(SPECS["full"], "reference", upstream=1 / scale)
    for gradient, expected in zip(gradients, exact, strict=True):
        assert (gradient.double() - expected).norm() < 2e-3 * expected.norm()


def test_lift_is_a_power_of_two_that_brings_the_largest_coefficient_to_256():
    coefficients = torch.tensor([1e-3, -3e-5, 0.0])
    for scale, temperature, clip in ((1.0, 1.0, None), (0.5, 2.0, 2.0), (30.0, 0.6, 8.0)):
        lift = float(projection.gradient_lift(coefficients, scale, temperature, clip))
        assert math.log2(lift).is_integer()
        assert 128 <= lift * 1e-3 * scale / temperature * (clip or 1.0) < 256
    assert float(projection.gradient_lift(torch.zeros(0), 1.0, 1.0, None)) > 0


# --- Refusals ---


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("teacher_hidden", torch.zeros(6, HIDDEN_SIZE), "both must hold the same tokens"),
        ("teacher_head", Head(torch.zeros(34, HIDDEN_SIZE)), "vocabulary has 33 tokens and the teacher's 34"),
        ("teacher_hidden", torch.zeros(7, HIDDEN_SIZE + 1), "the teacher's hidden states have the shape"),
        ("hidden", torch.zeros(1, 7, HIDDEN_SIZE), "the student's hidden states have the shape"),
        (
            "head",
            Head(torch.zeros(33, HIDDEN_SIZE), torch.zeros(32)),
            "the student head's bias has the shape",
        ),
        ("token_ids", torch.zeros(6, dtype=torch.long), "token_ids_N has the shape"),
        ("token_ids", torch.zeros(7), "int64 token ids are required"),
        ("coefficient", torch.zeros(7, 1), "coefficient_N has the shape"),
        ("old_logps", torch.zeros(8), "old_logps_N has the shape"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(field, value, message):
    problem = dataclasses.replace(make_problem(7, 33, dtype=torch.float32), **{field: value})
    with pytest.raises(ValueError, match=message):
        problem.run(SPECS["tail"], "chunked")


def head_with_logit(problem, value):
    """The student's head with its last token's logit at `value`, whatever the hidden state."""
    vocab_size = problem.head.weight_VD.shape[0]
    bias = torch.zeros(vocab_size, dtype=problem.hidden.dtype)
    bias[-1] = value
    return problem.head._replace(bias_V=bias.requires_grad_())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [-torch.inf, torch.inf, torch.nan])
@pytest.mark.parametrize("mode", SPECS)
def test_infinite_logits_are_refused(backend, value, mode):
    problem = make_problem(3, 33, dtype=torch.float32)
    head = head_with_logit(problem, value)
    with pytest.raises(ValueError, match="the teacher's logits hold an infinite value or NaN"):
        token_statistics(problem.hidden.detach(), head, 1.0, backend=backend)
    problem.head = head
    with pytest.raises(ValueError, match="the student's logits hold an infinite value or NaN"):
        problem.run(SPECS[mode], backend)
    # A trainer must not wait for the answer: there the loss itself says it, and every gradient.
    result, gradients = problem.gradients(SPECS[mode], backend, refuse_nonfinite=False)
    assert all(value.isnan().all() for value in (result.loss, *gradients))
    hidden = problem.hidden.detach()
    assert (
        token_statistics(hidden, head, 1.0, backend=backend, refuse_nonfinite=False).entropy_N.isnan().all()
    )


def test_unknown_backend_and_temperature_are_refused():
    problem = make_problem(2, 5)
    with pytest.raises(ValueError, match="backend is 'fast'"):
        problem.run(SPECS["tail"], "fast")
    with pytest.raises(ValueError, match="temperature is 0"):
        token_statistics(problem.hidden, problem.head, 0.0)


@pytest.mark.parametrize(
    "options",
    [
        {"alpha": -0.1},
        {"alpha": 1.1},
        {"topk": 0},
        {"estimator": "token"},
        {"temperature": 0.0},
        {"importance_clip": 0.0},
        {"pointwise_clip": 0.0},
        {"pointwise_clip": math.nan},
        {"pointwise_clip": 0.1, "estimator": "sampled"},
    ],
)
def test_a_spec_outside_its_ranges_is_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        DistillationSpec(**options)


def test_the_importance_ratio_is_exactly_1_where_it_is_off():
    problem = make_problem(7, 33)
    for backend in BACKENDS:
        clip_off = problem.run(DistillationSpec(topk=5, importance_clip=None), backend)
        no_old = dataclasses.replace(problem, old_logps=None).run(DistillationSpec(topk=5), backend)
        assert (clip_off.importance_ratio_N == 1).all()
        assert_same(clip_off, no_old, rtol=0, atol=0)


# --- Autocast ---


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_on_a_gpu_rounds_the_factors_and_not_on_a_cpu(monkeypatch, dtype):
    from srpo_trl.loss.ops import _round_as_autocast

    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device_type: True)
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda device_type: dtype)
    for device, expected in (("meta", dtype), ("cpu", torch.float32)):
        hidden, weight = torch.zeros(2, 3, device=device), torch.zeros(4, 3, device=device)
        rounded, head = _round_as_autocast(hidden, Head(weight))
        assert (rounded.dtype, head.weight_VD.dtype) == (expected, expected)
