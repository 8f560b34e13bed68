"""Error of loss, divergences and gradients against float64 on the same bfloat16 inputs.

    python -m benchmarks.accuracy [--device cpu]

Shapes: N tokens, D hidden, V vocabulary, K top tokens.
"""

import math
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.common import Options, run
from benchmarks.loss import all_contenders
from benchmarks.peers import FAR, NEAR, QWEN3_VOCABULARY, TOPK, BenchmarkCase, Contender, Size, make_case
from benchmarks.tables import Table

TITLES = {NEAR: "near the self-teacher", FAR: "far from it"}


class Outcome(NamedTuple):
    """Of one loss; each token's divergence where it is given."""

    loss: Tensor
    divergence_N: Tensor | None
    grad_hidden_ND: Tensor
    grad_weight_VD: Tensor


def exact(case: BenchmarkCase, support: str) -> Outcome:
    """The Jensen-Shannon divergence from its formula, in float64, differentiated by autograd."""
    hidden_ND = case.student_hidden_ND.detach().double().requires_grad_()
    weight_VD = case.student_weight_VD.detach().double().requires_grad_()
    student_NV = torch.log_softmax(hidden_ND @ weight_VD.T, dim=-1)
    with torch.no_grad():
        teacher_logits_NV = case.teacher_hidden_ND.double() @ case.teacher_weight_VD.double().T
        teacher_NV = torch.log_softmax(teacher_logits_NV, dim=-1)
    if support == TOPK:
        indices_NK = student_NV.topk(100, dim=-1).indices
        student_NV, teacher_NV = (_top_and_tail(logps, indices_NK) for logps in (student_NV, teacher_NV))
    mixture_NV = torch.logaddexp(student_NV, teacher_NV) - math.log(2)
    divergence_N = 0.5 * (student_NV.exp() * (student_NV - mixture_NV)).sum(-1)
    divergence_N = divergence_N + 0.5 * (teacher_NV.exp() * (teacher_NV - mixture_NV)).sum(-1)
    loss = (case.coefficient_N.double() * divergence_N).sum()
    loss.backward()
    assert hidden_ND.grad is not None
    assert weight_VD.grad is not None
    return Outcome(loss.detach(), divergence_N.detach(), hidden_ND.grad, weight_VD.grad)


def _top_and_tail(logps_NV: Tensor, indices_NK: Tensor) -> Tensor:
    top_NK = logps_NV.gather(-1, indices_NK)
    rest_N1 = 1 - top_NK.exp().sum(-1, keepdim=True)
    return torch.cat([top_NK, rest_N1.log()], dim=-1)


def outcome(contender: Contender, case: BenchmarkCase) -> Outcome:
    """What the contender makes of the case."""
    result = contender.losses(case)
    result.loss.backward()
    grad_hidden_ND, grad_weight_VD = case.student_hidden_ND.grad, case.student_weight_VD.grad
    assert grad_hidden_ND is not None
    assert grad_weight_VD is not None
    case.student_hidden_ND.grad = case.student_weight_VD.grad = None
    return Outcome(result.loss.detach(), result.divergence_N, grad_hidden_ND, grad_weight_VD)


def error_row(contender: Contender, found: Outcome, true: Outcome) -> dict[str, str]:
    """Relative errors as text."""
    assert true.divergence_N is not None
    row = {
        "loss": contender.name,
        "support": contender.support,
        "sum": f"{float((found.loss.double() - true.loss).abs() / true.loss):.1e}",
        "worst token": "not given",
        "smallest divergence": "not given",
        "hidden gradient": f"{_relative(found.grad_hidden_ND, true.grad_hidden_ND):.1e}",
        "head gradient": f"{_relative(found.grad_weight_VD, true.grad_weight_VD):.1e}",
    }
    if found.divergence_N is not None:
        errors_N = (found.divergence_N.double() - true.divergence_N).abs()
        row["worst token"] = f"{float(errors_N.max() / true.divergence_N.mean()):.1e}"
        row["smallest divergence"] = f"{float(found.divergence_N.min()):.1e}"
    return row


def _relative(found: Tensor, true: Tensor) -> float:
    return float((found.double() - true).norm() / true.norm())


def tables(options: Options) -> Iterator[Table]:
    """One table near the self-teacher, one far from it."""
    device, quick = options.device, options.quick
    numbers = (256, 2560, QWEN3_VOCABULARY) if device.type == "cuda" else (256, 256, 32_000)
    size = Size(*((32, 32, 1000) if quick else numbers), torch.bfloat16)
    for distance, title in TITLES.items():
        case = make_case(size, device, distance)
        rows = []
        for support in (TOPK, "full vocabulary"):
            true = exact(case, support)
            assert true.divergence_N is not None
            mean = float(true.divergence_N.mean())
            smallest = float(true.divergence_N.min())
            for contender in all_contenders(device):
                if contender.support == support:
                    rows.append(error_row(contender, outcome(contender, case), true))
        yield Table(
            f"Error against float64, {title}: {size}",
            rows,
            f"Mean divergence {mean:.2e}, smallest {smallest:.2e} nats. Sum: of the loss. Worst token: largest "
            "error over the mean divergence. Gradients: relative norm of the error; rounding them to bfloat16 "
            "alone makes about 1.7e-03.",
        )


def main(argv: Sequence[str] | None = None) -> int:
    return run("Error against float64.", (tables,), argv)


if __name__ == "__main__":
    sys.exit(main())
