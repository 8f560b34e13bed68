"""Runs the Triton backend in Triton's interpreter and saves what it gives: `python triton_worker.py FILE`.

The interpreter must be chosen before anything imports Triton, so this is a process of its own; the tests
compare its results with the reference. Memory from `empty` is filled with NaN here.
"""

import dataclasses
import sys

import torch

from entry_shares import half_clip
from loss_problems import SPECS, CountLiveBytes, Problem, make_problem
from srpo_trl.loss.ops import DistillationSpec, Head, distillation_loss, projection, token_statistics

ALPHAS = (0.0, 0.3, 1.0)
MODES = {
    "tail": {"topk": 20},
    "renormalized": {"topk": 20, "add_tail": False},
    "full": {"topk": None},
    "topk_of_V": {"topk": 10**6},
}
TIED = ((700, 100), (33_003, 2048))  # vocabulary and top K; the latter's candidates are read in tiles
LOSS_SCALE = 1024.0
NARROW = (torch.float32, torch.bfloat16, torch.float16)
HEADS = (
    {"bias": True},
    {"softcap": 5.0, "scale": 0.7},
    {"bias": True, "softcap": 4.0, "scale": 1.3, "old": False},
)


@dataclasses.dataclass
class Case:
    """One call of `distillation_loss` with gradients."""

    spec: DistillationSpec
    num_tokens: int = 7
    vocab_size: int = 1001
    head: dict = dataclasses.field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    noise: float = 0.3
    chunk_bytes: int = 2**26
    trained: tuple[bool, bool] = (True, True)  # hidden states, head
    mixed: bool = False
    clips_half: bool = False  # at a clip that half of the entries are above

    def __post_init__(self) -> None:
        if self.clips_half:
            torch.manual_seed(0)
            clip = half_clip(self.problem(), self.spec)
            self.spec = dataclasses.replace(self.spec, pointwise_clip=clip)

    def problem(self) -> Problem:
        problem = make_problem(
            self.num_tokens, self.vocab_size, dtype=self.dtype, seed=self.num_tokens, **self.head
        )
        hidden, noise = (
            problem.hidden.detach(),
            torch.randn(self.num_tokens, 6, dtype=torch.float64).to(self.dtype),
        )
        problem.teacher_hidden = hidden + self.noise * noise
        if self.noise < 0.3:  # one head for both sides
            problem.teacher_head = Head(
                *(None if t is None else t.detach() for t in problem.head[:2]), *problem.head[2:]
            )
        if not self.trained[0]:
            problem.hidden = hidden
        if not self.trained[1]:
            problem.head = Head(
                *(None if t is None else t.detach() for t in problem.head[:2]), *problem.head[2:]
            )
        return problem

    def run(self, problem: Problem, backend: str) -> dict[str, torch.Tensor]:
        result = problem.run(self.spec, backend, self.chunk_bytes)
        leaves = [leaf for leaf in problem.leaves() if leaf.requires_grad]
        gradients = torch.autograd.grad(1.7 * result.loss, leaves)
        values = {name: value.detach() for name, value in result._asdict().items()}
        return values | {f"gradient {i}": gradient for i, gradient in enumerate(gradients)}


def _spec(mode: str, alpha: float = 0.5, **options) -> DistillationSpec:
    return DistillationSpec(alpha=alpha, **{**MODES.get(mode, {"estimator": mode}), **options})


def make_cases() -> dict[str, Case]:
    cases = {}
    for i, mode in enumerate(MODES):
        for j, alpha in enumerate(ALPHAS):
            spec = _spec(mode, alpha, temperature=(1.0, 0.6)[j % 2])
            cases[f"{mode} {alpha}"] = Case(spec, head=HEADS[(i + j) % 3])
            cases[f"identical {mode} {alpha}"] = Case(_spec(mode, alpha), noise=0.0, num_tokens=3)
            cases[f"clipped {mode} {alpha}"] = Case(
                _spec(mode, alpha), head=HEADS[(i + j) % 3], clips_half=True
            )
        mix, head = _spec(mode, 0.3, is_linear=True), HEADS[(i + 1) % 3]
        cases[f"mix {mode}"] = Case(mix, head=head)
        cases[f"identical mix {mode}"] = Case(mix, noise=0.0, num_tokens=3)
        cases[f"clipped mix {mode}"] = Case(mix, head=head, clips_half=True)
        wholly = _spec(mode, 0.3, pointwise_clip=1e-30)
        cases[f"wholly clipped {mode}"] = Case(wholly, vocab_size=33, noise=2.0, num_tokens=3)
    cases["sampled"] = Case(_spec("sampled", temperature=0.6), head=HEADS[2])
    cases["sampled narrow"] = Case(_spec("sampled"), vocab_size=5)
    cases["identical sampled"] = Case(_spec("sampled"), noise=0.0, num_tokens=3)
    for mode in ("tail", "full"):
        for num_tokens in (0, 1):
            cases[f"{mode}, {num_tokens} tokens"] = Case(_spec(mode), num_tokens, head=HEADS[0])
    # 33 tokens in ragged chunks of a few; the last one is shorter.
    cases["chunks"] = Case(_spec("tail"), 33, 300, chunk_bytes=40_000, head=HEADS[0])
    cases["chunks of the full vocabulary"] = Case(_spec("full"), 33, 300, chunk_bytes=60_000)
    cases["one token a chunk"] = Case(_spec("tail", topk=3), 4, 33, chunk_bytes=1)
    for vocab_size, topk in ((5, 1), (5, 4), (1001, 1), (1001, 100), (1001, 1000), (4099, 100)):
        cases[f"V={vocab_size} K={topk}"] = Case(_spec("tail", topk=topk), 3, vocab_size)
    # More groups, or more tokens of them, than registers hold: they are chosen from in tiles.
    cases["tiled groups"] = Case(_spec("tail", topk=500), 2, 33_003)
    cases["tiled groups and tokens"] = Case(_spec("tail", topk=2048), 2, 33_003, head=HEADS[2])
    cases["tiled tokens"] = Case(_spec("renormalized", topk=1025), 2, 9001, head=HEADS[0])
    # Several segments to a row, and several tiles of the teacher's products.
    for mode in ("tail", "sampled", "full"):
        cases[f"segments {mode}"] = Case(_spec(mode), 2, 20_011, head=HEADS[1])
    cases["clip off"] = Case(_spec("tail", importance_clip=None), num_tokens=3)
    cases["frozen head"] = Case(_spec("tail"), trained=(True, False), num_tokens=3)
    cases["head alone"] = Case(_spec("tail"), trained=(False, True), num_tokens=3)
    for mode in ("tail", "renormalized", "sampled", "full"):
        narrow = {"noise": 0.05, "vocab_size": 301, "head": {"bias": True, "old": False}}
        cases[f"bfloat16 {mode}"] = Case(_spec(mode, 1.0), dtype=torch.bfloat16, **narrow)
        cases[f"float16 {mode}"] = Case(_spec(mode, 1.0), dtype=torch.float16, **narrow)
        for name, dtype in (("mixed", torch.bfloat16), ("mixed float16", torch.float16)):
            cases[f"{name} {mode}"] = Case(_spec(mode, 1.0), dtype=dtype, mixed=True, **narrow)
    for mode in ("tail", "renormalized", "full"):
        for alpha in ALPHAS:
            spec, head = _spec(mode, alpha), {"old": False}
            cases[f"near {mode} {alpha}"] = Case(spec, 12, 301, noise=0.01, head=head)
            clipped = dataclasses.replace(spec, pointwise_clip=0.1)  # which no entry reaches
            cases[f"near clip {mode} {alpha}"] = Case(clipped, 12, 301, noise=0.01, head=head)
        mix = _spec(mode, 0.3, is_linear=True)
        cases[f"near mix {mode}"] = Case(mix, 12, 301, noise=0.01, head=head)
    return cases


def tail_clamp(backend: str, alpha: float) -> dict[str, torch.Tensor]:
    """All of the student's mass in the top K."""
    logits = torch.tensor([[0.0, -1.0, -2000.0, -2000.0], [50.0, 0.0, -900.0, -3000.0]]).requires_grad_()
    head = Head(torch.eye(4))
    problem = Problem(
        logits,
        head,
        torch.tensor([[0.0, 0.5, 1.0, -1.0]] * 2),
        head,
        torch.tensor([0, 1]),
        torch.ones(2),
        None,
    )
    result = problem.run(DistillationSpec(alpha=alpha, topk=2), backend)
    (gradient,) = torch.autograd.grad(result.loss, logits)
    return {"divergence_N": result.divergence_N, "gradient": gradient}


def small_tails(backend: str, alpha: float, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Gradients of the logits where the student's tail holds from 0.5 to 1e-12 and the teacher's 0.2 or 1e-8."""
    students, teachers = tail_logits([0.5, 1e-3, 1e-6, 1e-7, 1e-9, 1e-12]), tail_logits([0.2, 1e-8] * 3)
    logits, head = students.to(dtype).requires_grad_(), Head(torch.eye(1001, dtype=dtype))
    teacher = teachers.to(dtype)
    problem = Problem(logits, head, teacher, head, torch.zeros(6, dtype=torch.int64), torch.ones(6), None)
    result = problem.run(DistillationSpec(alpha=alpha, topk=20), backend)
    (gradient,) = torch.autograd.grad(result.loss, logits)
    return {"divergence_N": result.divergence_N, "gradient": gradient}


def tail_logits(masses: list[float]) -> torch.Tensor:
    """Logits of 1001 tokens, whose last 20 are the most probable; the others hold the given mass."""
    generator = torch.Generator().manual_seed(5)
    inside = torch.randn(len(masses), 20, generator=generator, dtype=torch.float64).log_softmax(-1)
    outside = torch.randn(len(masses), 981, generator=generator, dtype=torch.float64).mul(0.1).log_softmax(-1)
    mass = torch.tensor(masses, dtype=torch.float64).unsqueeze(1)
    return torch.cat([outside + mass.log(), inside + torch.log1p(-mass)], dim=1)


def tied_problem(vocab_size: int) -> Problem:
    """Equal logits at the threshold of the top K, within and across the groups that it is chosen from."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randint(-2, 3, (6, vocab_size), generator=generator).float()
    logits[0], logits[1] = 0.0, -0.0
    teacher_logits = torch.randn(6, vocab_size, generator=generator)
    # One column of the weight for each row: the products are the logits.
    rows = torch.eye(6)
    return Problem(
        rows,
        Head(logits.T.contiguous()),
        rows,
        Head(teacher_logits.T.contiguous()),
        torch.zeros(6, dtype=torch.int64),
        torch.ones(6),
        None,
    )


def errors_at_size(
    mode: str, dtype: torch.dtype, device: str, size: tuple[int, int, int], chunk_bytes: int
) -> dict[str, float]:
    """Relative errors against the float64 reference, of N scored tokens, D hidden and V vocabulary.

    Inputs are rounded to `dtype` for both. The loss is scaled as a float16 run's, whose gradients would be too small.
    """
    generator = torch.Generator(device).manual_seed(0)

    def randn(*shape):
        return torch.randn(shape, generator=generator, device=device)

    num_tokens, hidden_size, vocab_size = size
    hidden = randn(num_tokens, hidden_size).to(dtype)
    weight = (randn(vocab_size, hidden_size) * 0.1).to(dtype)
    teacher_hidden = (hidden + 0.05 * randn(num_tokens, hidden_size)).to(dtype)
    token_ids = torch.randint(vocab_size, (num_tokens,), generator=generator, device=device)
    coefficient = randn(num_tokens)
    outcomes = []
    for backend, run_dtype in (("reference", torch.float64), ("triton", dtype)):
        leaves = [t.to(run_dtype).requires_grad_() for t in (hidden, weight)]
        result = distillation_loss(
            leaves[0],
            Head(leaves[1]),
            teacher_hidden.to(run_dtype),
            Head(weight.to(run_dtype)),
            token_ids,
            coefficient,
            spec=SPECS[mode],
            backend=backend,
            chunk_bytes=chunk_bytes,
        )
        outcomes.append((result.divergence_N, torch.autograd.grad(LOSS_SCALE * result.loss, leaves)))
    (expected, expected_gradients), (actual, gradients) = outcomes
    errors = {"divergence": float((actual - expected).abs().mean() / expected.abs().mean())}
    for name, gradient, exact in zip(("hidden", "weight"), gradients, expected_gradients, strict=True):
        errors[f"gradient of {name}"] = float((gradient - exact).norm() / exact.norm())
    return errors


def entropy_problems() -> dict[str, tuple[Problem, float, int]]:
    sizes = {"none": (0, 33), "one": (1, 5), "ragged": (7, 1001), "segments": (3, 20_011)}
    return {
        name: (make_problem(*size, bias=True, softcap=4.0, scale=0.7, dtype=torch.float32), 0.6, 30_000)
        for name, size in sizes.items()
    }


def _stand_in_for_cuda() -> None:
    """CPUs have no narrow product in float32: here one stands in for it, in everything around it."""
    from srpo_trl.loss.ops import chunked, fused_plan, fused_steps, teacher_rows

    def mixed_mm(left, right, *, out, accumulate=False):
        product = left.float() @ right.float()
        out.copy_(out + product if accumulate else product)

    def matmul_precision(hidden, weight, dtype):
        return "mixed" if hidden.dtype == weight.dtype != dtype == torch.float32 else "convert"

    projection._mixed_mm = mixed_mm
    for module in (chunked, fused_plan, fused_steps, teacher_rows):
        module.matmul_precision = matmul_precision


def _refusal(spec: DistillationSpec, dtype: torch.dtype, vocab_size: int) -> str:
    try:
        make_problem(2, vocab_size, dtype=dtype).run(spec, "triton")
    except ValueError as error:
        return str(error)
    return ""


def _infinite_logit(value: float) -> list[str]:
    """What loss and entropy say to one logit of that value."""
    problem = make_problem(3, 1001, dtype=torch.float32)
    bias = torch.zeros(1001)
    bias[-1] = value
    problem.head = problem.head._replace(bias_V=bias)
    said = []
    for call in (
        lambda: problem.run(_spec("tail"), "triton"),
        lambda: problem.run(_spec("full"), "triton"),
        lambda: token_statistics(problem.hidden.detach(), problem.head, 1.0, backend="triton"),
    ):
        try:
            call()
        except ValueError as error:
            said.append(str(error))
    return said


def _memory(mode: str, dtype: torch.dtype, **options) -> tuple[int, int, int]:
    """What the sweep held at the most beyond outputs and gradients, its plan, and the bound."""
    from srpo_trl.loss.ops.fused_plan import plan_fused

    chunk_bytes = 200_000
    problem = make_problem(20, 1001, bias=True, dtype=dtype)
    sides = (problem.hidden, problem.head, problem.teacher_hidden, problem.teacher_head)
    plan = plan_fused(*sides, _spec(mode, **options), chunk_bytes)
    carried = {"teacher_log_sum_exp_N": token_statistics(*sides[2:], 1.0).log_sum_exp_N}
    with CountLiveBytes() as counter:
        problem.run(_spec(mode, **options), "triton", chunk_bytes, **carried)
    gradients = problem.hidden.nbytes + 4 * (problem.head.weight_VD.numel() + problem.head.bias_V.numel())
    return counter.peak - gradients - 4 * (6 * 20 + 1), plan.temporary_bytes, chunk_bytes


def main(path: str) -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)  # with it, `empty` gives NaN
    assert torch.empty(3).isnan().all()
    cases = make_cases()
    results: dict = {"cases": {}, "problems": {}}
    for name, case in sorted(cases.items(), key=lambda item: item[1].mixed):
        if case.mixed:
            break
        torch.manual_seed(0)
        results["cases"][name] = case.run(case.problem(), "triton")
    results["small_tails"] = {alpha: small_tails("triton", alpha) for alpha in ALPHAS}
    results["tail_clamp"] = {alpha: tail_clamp("triton", alpha) for alpha in ALPHAS}
    results["tied"] = {
        (vocab_size, topk): tied_problem(vocab_size).run(DistillationSpec(topk=topk), "triton").divergence_N
        for vocab_size, topk in TIED
    }
    with torch.no_grad():
        problem = make_problem(3, 33, bias=True, dtype=torch.float32)
        results["no_grad"] = problem.run(_spec("tail", topk=3), "triton")._asdict()
    results["entropy"] = {
        name: tuple(
            token_statistics(
                problem.hidden, problem.head, temperature, backend="triton", chunk_bytes=chunk_bytes
            )
        )
        for name, (problem, temperature, chunk_bytes) in entropy_problems().items()
    }
    results["infinite"] = {value: _infinite_logit(value) for value in (-torch.inf, torch.inf, torch.nan)}
    results["refusals"] = {
        "float64": _refusal(_spec("tail"), torch.float64, 33),
        "topk": _refusal(_spec("tail", topk=2049), torch.float32, 2100),
    }
    results["memory"] = {
        (mode, dtype): _memory(mode, dtype)
        for mode in ("tail", "full", "sampled")
        for dtype in (torch.float32, torch.bfloat16)
    }
    results["memory"]["summed tails"] = _memory("tail", torch.float32, alpha=1.0)
    _stand_in_for_cuda()
    for name, case in cases.items():
        if case.mixed:
            torch.manual_seed(0)
            results["cases"][name] = case.run(case.problem(), "triton")
    results["at_size"] = {
        (mode, dtype): errors_at_size(mode, dtype, "cpu", (9, 64, 4003), 100_000)
        for mode in SPECS
        for dtype in NARROW
    }
    torch.save(results, path)


if __name__ == "__main__":
    main(sys.argv[1])
