"""Problems for the distillation operator, and what the float64 reference makes of them.

Shapes: N tokens, D hidden, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from srpo_trl.loss.ops import Backend, DistillationResult, DistillationSpec, Head, distillation_loss

_REFERENCE_ELEMENTS = 2**27  # of one (tokens, V) matrix of the reference: 1 GiB in float64
_DEVIATION = 3.0  # of the logits: an entropy of a few nats at V = 20,000


@dataclass(frozen=True)
class Problem:
    """One call of the operator.

    Attributes:
        name: unique.
        spec: what is computed.
        dtype: of hidden states and heads.
        sizes: N, D and V.
        bias, softcap, scale: of both heads; the bias as whether there is one.
        tied: the teacher's head is the student's own tensor.
        frozen_head: the student's head receives no gradient, as under LoRA.
        offset: of all logits alike, which changes no probability; of D, one dimension carries it.
    """

    name: str
    spec: DistillationSpec
    dtype: torch.dtype
    sizes: tuple[int, int, int]
    bias: bool = False
    softcap: float | None = None
    scale: float = 1.0
    tied: bool = False
    frozen_head: bool = False
    offset: float = 0.0


class Inputs(NamedTuple):
    """Of one call; `leaves` are what receives gradients."""

    hidden_ND: Tensor
    head: Head
    teacher_hidden_ND: Tensor
    teacher_head: Head
    token_ids_N: Tensor
    coefficient_N: Tensor
    old_logps_N: Tensor

    @property
    def leaves(self) -> list[Tensor]:
        tensors = (self.hidden_ND, self.head.weight_VD, self.head.bias_V)
        return [t for t in tensors if t is not None and t.requires_grad]


class Outcome(NamedTuple):
    """Values of every token and gradients of every leaf."""

    result: DistillationResult
    gradients: tuple[Tensor, ...]


def make_inputs(problem: Problem, device: torch.device) -> Inputs:
    """Return the problem's random inputs; the teacher is near the student, as a self-teacher is."""
    num_tokens, hidden_size, vocab_size = problem.sizes
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    deviation = _DEVIATION / hidden_size**0.5
    hidden_ND, weight_VD = normal(num_tokens, hidden_size), normal(vocab_size, hidden_size) * deviation
    noise_ND = 0.1 * normal(num_tokens, hidden_size)
    if problem.offset:
        hidden_ND[:, 0], weight_VD[:, 0], noise_ND[:, 0] = problem.offset / 256, 256.0, 0.0
    bias_V = normal(vocab_size).to(problem.dtype) if problem.bias else None
    weight = weight_VD.to(problem.dtype).requires_grad_(not problem.frozen_head)
    head = Head(weight, None if bias_V is None else bias_V.requires_grad_(not problem.frozen_head))
    head = head._replace(logit_scale=problem.scale, softcap=problem.softcap)
    teacher_VD = weight if problem.tied else (weight_VD * 1.02).to(problem.dtype)
    teacher_head = head._replace(weight_VD=teacher_VD, bias_V=None if bias_V is None else bias_V.detach())
    coefficient_N = torch.rand(num_tokens, generator=generator, device=device)
    coefficient_N[1::3] = 0.0
    return Inputs(
        hidden_ND.to(problem.dtype).requires_grad_(),
        head,
        (hidden_ND + noise_ND).to(problem.dtype),
        teacher_head,
        torch.randint(vocab_size, (num_tokens,), generator=generator, device=device),
        coefficient_N,
        -8 - 4 * torch.rand(num_tokens, generator=generator, device=device),
    )


def outcome(inputs: Inputs, spec: DistillationSpec, backend: Backend, **options: Any) -> Outcome:
    """Return what a backend makes of the inputs."""
    result = distillation_loss(*inputs, spec=spec, backend=backend, **options)
    gradients = torch.autograd.grad(result.loss, inputs.leaves)
    return Outcome(DistillationResult(*(value.detach() for value in result)), gradients)


def exact(inputs: Inputs, spec: DistillationSpec) -> Outcome:
    """Return what the reference makes of the same inputs in float64, some tokens at a time."""
    wide = raised(inputs)
    num_tokens, vocab_size = inputs.hidden_ND.shape[0], inputs.head.weight_VD.shape[0]
    step = max(1, _REFERENCE_ELEMENTS // vocab_size)
    pieces: list[DistillationResult] = []
    for start in range(0, max(1, num_tokens), step):
        rows = slice(start, start + step)
        tokens = {
            name: getattr(wide, name)[rows]
            for name in ("hidden_ND", "teacher_hidden_ND", "token_ids_N", "coefficient_N", "old_logps_N")
        }
        result = distillation_loss(*wide._replace(**tokens), spec=spec, backend="reference")
        result.loss.backward()
        pieces.append(DistillationResult(*(value.detach() for value in result)))
    loss = torch.stack([piece.loss for piece in pieces]).sum()
    values = [torch.cat(columns) for columns in zip(*(piece[1:] for piece in pieces), strict=True)]
    gradients = []
    for leaf in wide.leaves:
        assert leaf.grad is not None
        gradients.append(leaf.grad)
    return Outcome(DistillationResult(loss, *values), tuple(gradients))


def raised(inputs: Inputs) -> Inputs:
    """Return the same inputs in float64."""

    def wide(tensor: Tensor) -> Tensor:
        return tensor.detach().double().requires_grad_(tensor.requires_grad)

    heads = [
        head._replace(
            weight_VD=wide(head.weight_VD), bias_V=None if head.bias_V is None else wide(head.bias_V)
        )
        for head in (inputs.head, inputs.teacher_head)
    ]
    return Inputs(
        wide(inputs.hidden_ND),
        heads[0],
        wide(inputs.teacher_hidden_ND),
        heads[1],
        inputs.token_ids_N,
        inputs.coefficient_N.double(),
        inputs.old_logps_N.double(),
    )


def relative_error(found: Tensor, true: Tensor) -> float:
    """Return the norm of the error over the true value's; the norm itself where that is 0."""
    if found.numel() == 0:
        return 0.0
    error, norm = (found.double() - true).norm(), true.norm()
    return float(error / norm if norm > 0 else error)


def repeated(make: Callable[[], Outcome]) -> bool:
    """Return whether two calls give the same bits."""
    first, second = make(), make()
    pairs = zip((*first.result, *first.gradients), (*second.result, *second.gradients), strict=True)
    return all(torch.equal(left, right) for left, right in pairs)
