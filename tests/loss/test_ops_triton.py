"""The Triton backend, run by `triton_worker.py` in Triton's interpreter, against the float64 reference."""

import importlib.util
import logging
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

import triton_worker
from entry_shares import clipped_frac
from loss_problems import SPECS, make_problem
from srpo_trl.loss import ops
from srpo_trl.loss.ops import DistillationSpec, Head, fused_plan, token_statistics

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")

CASES = triton_worker.make_cases()
# Relative errors, of gradients that are rounded twice: float16 has three bits more than bfloat16.
AT_SIZE = {torch.float32: 0.01, torch.bfloat16: 0.01, torch.float16: 0.00125}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    path = tmp_path_factory.mktemp("triton") / "results.pt"
    folder = Path(triton_worker.__file__).parent
    path_of_modules = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": path_of_modules}
    command = [sys.executable, str(folder / "triton_worker.py"), str(path)]
    finished = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr[-4000:]
    return torch.load(path)


def in_float64(problem):
    """The same inputs, raised."""

    def raised(tensor):
        return None if tensor is None else tensor.detach().double().requires_grad_(tensor.requires_grad)

    exact = triton_worker.Problem(**vars(problem))
    exact.hidden, exact.teacher_hidden = raised(problem.hidden), raised(problem.teacher_hidden)
    exact.head, exact.teacher_head = (
        head._replace(weight_VD=raised(head.weight_VD), bias_V=raised(head.bias_V))
        for head in (problem.head, problem.teacher_head)
    )
    exact.coefficient, exact.old_logps = raised(problem.coefficient), raised(problem.old_logps)
    return exact


def expected_of(case):
    torch.manual_seed(0)
    return case.run(in_float64(case.problem()), "reference")


def names(*prefixes):
    return [name for name in CASES if name.startswith(prefixes)]


# --- Values and gradients ---


@pytest.mark.parametrize(
    "name",
    [
        n
        for n in CASES
        if n not in names("identical", "wholly clipped", "near", "bfloat16", "float16", "mixed")
    ],
)
def test_triton_is_the_reference(results, name):
    actual, expected = results["cases"][name], expected_of(CASES[name])
    assert actual.keys() == expected.keys()
    for key, value in actual.items():
        assert value.dtype == torch.float32
        error = (value.double() - expected[key]).norm()
        assert error <= 2e-5 * expected[key].norm() + 2e-6, (key, error, expected[key].norm())


@pytest.mark.parametrize("name", names("identical"))
def test_a_teacher_equal_to_the_student_leaves_nothing_to_learn(results, name):
    actual = results["cases"][name]
    assert actual["divergence_N"].abs().max() <= 1e-9
    assert max(value.abs().max() for key, value in actual.items() if "gradient" in key) <= 2e-6


@pytest.mark.parametrize("name", names("clipped"))
def test_clipped_cases_clip(name):
    case = CASES[name]
    torch.manual_seed(0)
    assert 0.3 < clipped_frac(in_float64(case.problem()), case.spec) < 0.6


@pytest.mark.parametrize("name", names("wholly clipped"))
def test_nothing_is_learned_where_everything_is_clipped(results, name):
    actual = results["cases"][name]
    assert actual["divergence_N"].abs().max() < 1e-7
    assert all((value == 0).all() for key, value in actual.items() if "gradient" in key)


@pytest.mark.parametrize("name", names("near"))
def test_near_the_self_teacher_the_divergence_is_exact_and_not_negative(results, name):
    actual, expected = results["cases"][name], expected_of(CASES[name])
    assert 1e-6 < expected["divergence_N"].mean() < 1e-3
    assert actual["divergence_N"].min() >= 0
    error = (actual["divergence_N"] - expected["divergence_N"]).abs()
    assert (error <= 1e-3 * expected["divergence_N"].mean()).all()
    for key in ("gradient 0", "gradient 1"):
        assert (actual[key] - expected[key]).norm() <= 1e-3 * expected[key].norm()


@pytest.mark.parametrize("name", names("bfloat16", "float16", "mixed"))
def test_narrow_inputs_are_not_rounded_further(results, name):
    """Only gradients are: once at the end, and with "mixed" products once before them too."""
    actual, expected = results["cases"][name], expected_of(CASES[name])
    signal = expected["divergence_N"].abs().mean()
    assert 1e-6 < signal < 0.5
    assert (actual["divergence_N"] - expected["divergence_N"]).abs().mean() <= 1e-3 * signal
    torch.testing.assert_close(
        actual["student_logps_N"].double(), expected["student_logps_N"], rtol=1e-5, atol=1e-5
    )
    tolerance = 1e-2 if CASES[name].mixed else 4e-3  # bfloat16 has 8 bits
    for key in ("gradient 0", "gradient 1", "gradient 2"):
        assert actual[key].dtype == CASES[name].dtype
        assert (actual[key].double() - expected[key]).norm() <= tolerance * expected[key].norm()


@pytest.mark.parametrize("alpha", triton_worker.ALPHAS)
def test_all_mass_in_the_topk_stays_finite(results, alpha):
    actual, expected = results["tail_clamp"][alpha], triton_worker.tail_clamp("reference", alpha)
    assert all(value.isfinite().all() for value in actual.values())
    torch.testing.assert_close(actual["gradient"], expected["gradient"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(actual["divergence_N"], expected["divergence_N"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("alpha", triton_worker.ALPHAS)
def test_a_small_tail_has_the_float64_gradient(results, alpha):
    actual, exact = (
        results["small_tails"][alpha],
        triton_worker.small_tails("reference", alpha, torch.float64),
    )
    atol = {"gradient": 1e-7, "divergence_N": 5e-7}  # the teacher's tail is one minus a sum
    for name, value in actual.items():
        torch.testing.assert_close(
            value.double(), exact[name], rtol=1e-4, atol=atol[name], msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize(("vocab_size", "topk"), triton_worker.TIED)
def test_equal_logits_at_the_threshold_go_to_the_lowest_ids(results, vocab_size, topk):
    problem = triton_worker.tied_problem(vocab_size)
    student, teacher = (
        torch.log_softmax(head.weight_VD.T.double(), -1) for head in (problem.head, problem.teacher_head)
    )
    ids = student.sort(dim=-1, descending=True, stable=True).indices[:, :topk]
    # The chosen tokens first, in a vocabulary of their own order, give the reference no choice.
    others = torch.ones_like(student).scatter_(-1, ids, 0).nonzero()[:, 1].view(6, -1)
    order = torch.cat([ids, others], -1)
    kept = [side.gather(-1, order) for side in (student, teacher)]
    kept[0][:, :topk] += 1e-9
    expected = ops.reference.divergence_on_topk(*kept, 0.5, topk, True)
    assert torch.unique(student.sort(-1).values[:, -topk]).numel() < 6
    torch.testing.assert_close(results["tied"][vocab_size, topk].double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", triton_worker.NARROW)
@pytest.mark.parametrize("mode", SPECS)
def test_what_runs_on_a_gpu_holds_in_the_interpreter(results, mode, dtype):
    errors = results["at_size"][mode, dtype]
    assert max(errors.values()) <= AT_SIZE[dtype], errors


def test_without_grad_the_values_are_the_same(results):
    problem = make_problem(3, 33, bias=True, dtype=torch.float32)
    expected = problem.run(DistillationSpec(topk=3), "reference")._asdict()
    assert not results["no_grad"]["loss"].requires_grad
    for key, value in results["no_grad"].items():
        torch.testing.assert_close(value, expected[key].detach(), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("name", triton_worker.entropy_problems())
def test_token_statistics_are_the_references(results, name):
    problem, temperature, _ = triton_worker.entropy_problems()[name]
    exact = in_float64(problem)
    expected = token_statistics(exact.hidden, exact.head, temperature, backend="reference")
    for actual, value in zip(results["entropy"][name], expected, strict=True):
        torch.testing.assert_close(actual.double(), value, rtol=1e-5, atol=2e-6)


def test_memory_is_bounded(results):
    for case, (held, planned, bound) in results["memory"].items():
        assert held <= planned <= bound, case


@pytest.mark.parametrize("mode", SPECS)
@pytest.mark.parametrize("chunk_bytes", [2**28, 2**29])
def test_the_plan_at_full_size_fills_the_bound_with_whole_tiles(mode, chunk_bytes):
    num_tokens, hidden_size, vocab_size = 8192, 1024, 151_936
    hidden = torch.empty(num_tokens, hidden_size, device="meta")
    head = Head(torch.empty(vocab_size, hidden_size, device="meta"))
    plan = fused_plan.plan_fused(hidden, head, hidden, head, SPECS[mode], chunk_bytes)
    assert plan.temporary_bytes <= chunk_bytes
    assert plan.chunk_tokens >= (0.38 if mode == "full" else 0.6) * chunk_bytes / (4 * vocab_size)
    assert plan.chunk_tokens % 64 == 0
    assert plan.teacher_columns == (vocab_size if mode == "full" else 0)


@pytest.mark.parametrize("vocab_size", [5, 8192, 8193, 151_936])
def test_the_statistics_are_made_in_tiles_of_whole_segments(vocab_size):
    hidden, head = torch.empty(900, 64, device="meta"), Head(torch.empty(vocab_size, 64, device="meta"))
    plan = fused_plan.plan_fused_statistics(hidden, head, 2**29)
    assert plan.temporary_bytes <= 2**29
    covered = [columns.stop - columns.start for columns in fused_plan.tiles(vocab_size, plan.teacher_columns)]
    assert sum(covered) == vocab_size
    assert max(covered) <= plan.teacher_stride
    assert plan.teacher_columns % plan.segment == 0 or len(covered) == 1


# --- Which backend ---


def test_triton_refuses_what_it_cannot_compute(results):
    assert re.search("float64 is asked for. Use 'chunked'", results["refusals"]["float64"])
    assert re.search("at most 2048, and 2049 is asked for. Use 'chunked'", results["refusals"]["topk"])


@pytest.mark.parametrize("value", [-torch.inf, torch.inf, torch.nan])
def test_infinite_logits_are_refused(results, value):
    key = next(k for k in results["infinite"] if k == value or (k != k and value != value))
    said = results["infinite"][key]
    assert [text.split("'")[0] for text in said] == ["the student", "the student", "the teacher"]


def test_triton_on_a_cpu_is_refused_with_the_remedy(monkeypatch):
    from srpo_trl.loss.ops import fused

    monkeypatch.setattr(fused, "interpreted", lambda: False)
    with pytest.raises(
        ValueError, match=r"backend is 'triton', but the tensors are on cpu.*TRITON_INTERPRET=1"
    ):
        make_problem(2, 5, dtype=torch.float32).run(SPECS["tail"], "triton")


def test_triton_that_is_not_installed_is_refused_with_the_remedy(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="Triton is not installed"):
        make_problem(2, 5, dtype=torch.float32).run(SPECS["tail"], "triton")


def test_auto_says_once_what_it_chose(caplog):
    ops._announce.cache_clear()
    problem = make_problem(2, 5, dtype=torch.float32)
    with caplog.at_level(logging.INFO, logger="srpo_trl.loss.ops"):
        for _ in range(2):
            problem.run(SPECS["tail"], "auto")
    assert [record.message for record in caplog.records] == [
        "backend 'auto' of the distillation loss is 'chunked': the tensors are on cpu."
    ]


@pytest.mark.parametrize(
    ("dtype", "topk", "chosen"),
    [(torch.float32, 100, "triton"), (torch.float64, 100, "chunked"), (torch.float32, 5000, "chunked")],
)
def test_auto_on_a_gpu_takes_triton_where_it_can(monkeypatch, dtype, topk, chosen):
    monkeypatch.setattr(ops, "_disagreement_of_triton", lambda device: None)
    assert ops._resolve("auto", torch.device("cuda"), dtype, topk) == chosen


def test_auto_does_without_kernels_that_fail_their_self_test(monkeypatch):
    monkeypatch.setattr(ops, "_disagreement_of_triton", lambda device: "its kernels are off by 0.5")
    assert ops._resolve("auto", torch.device("cuda"), torch.float32, 100) == "chunked"


SELF_TEST = """
    import torch
    torch.set_num_threads(1)
    from srpo_trl.loss.ops import fused, self_test
    cpu = torch.device("cpu")
    self_test.VOCABULARY, self_test.NUM_TOKENS = 1001, 7
    assert self_test.disagreement(cpu) is None, self_test.disagreement(cpu)
    sweep = fused._sweep
    def off(*arguments):
        made = sweep(*arguments)
        made.grad_hidden_ND[3, 5] += 0.1 * made.grad_hidden_ND.abs().max()
        return made
    fused._sweep = off
    assert "off by 1.0e-01" in self_test.disagreement(cpu), self_test.disagreement(cpu)
    def fails(*arguments):
        raise RuntimeError("no such instruction")
    fused._sweep = fails
    assert "no such instruction" in self_test.disagreement(cpu)
"""


def test_the_self_test_sees_one_wrong_gradient_and_a_failure():
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-c", textwrap.dedent(SELF_TEST)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


# --- On a GPU ---


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; run by `make gpu`")
@pytest.mark.parametrize("dtype", triton_worker.NARROW)
@pytest.mark.parametrize("mode", SPECS)
def test_on_a_gpu_triton_is_the_reference(mode, dtype):
    errors = triton_worker.errors_at_size(mode, dtype, "cuda", (300, 256, 33_003), 40 * 2**20)
    assert max(errors.values()) <= AT_SIZE[dtype], errors
