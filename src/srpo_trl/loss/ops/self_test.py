"""Do the Triton kernels compute on this device what the reference computes? Asked once, before "auto" trusts them.

A compiler, driver or device that the kernels were never run on may miscompile them; wrong gradients would not show
until a run has failed. A small problem shows them at once.
"""

import torch
import triton

from srpo_trl.loss.ops import fused, reference
from srpo_trl.loss.ops.interface import DistillationSpec, Head

NUM_TOKENS, HIDDEN, VOCABULARY = 33, 64, 20_011
SPECS = (
    DistillationSpec(),
    DistillationSpec(topk=None),
    DistillationSpec(topk=20, add_tail=False),
    DistillationSpec(topk=20, is_linear=True, pointwise_clip=0.05),
)
TOLERANCE = 2e-3  # bfloat16 gradients, relative to the largest
CHUNK_BYTES = 16 * 2**20  # several chunks

_FAILURES = (RuntimeError, ValueError, triton.compiler.errors.CompilationError)


def disagreement(device: torch.device) -> str | None:
    """Return what differs from the reference, or what failed, on the given device; None where nothing does."""
    for spec in SPECS:
        try:
            worst = _largest_error(spec, device)
        except _FAILURES as error:
            return f"its kernels do not run on {device}: {type(error).__name__}: {error}"
        if not worst <= TOLERANCE:
            return (
                f"its kernels are off by {worst:.1e} on {device} with top K {spec.topk}; please report this"
            )
    return None


def _largest_error(spec: DistillationSpec, device: torch.device) -> float:
    """Return the largest error of loss, statistics and gradients, each relative to its largest entry."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    student, teacher = normal(NUM_TOKENS, HIDDEN), normal(NUM_TOKENS, HIDDEN)
    weight = normal(VOCABULARY, HIDDEN) / 4
    token_ids = torch.randint(VOCABULARY, (NUM_TOKENS,), generator=generator).to(device)
    coefficients, old_logps = torch.rand(NUM_TOKENS, generator=generator).to(device), normal(NUM_TOKENS) - 9
    found = []
    log_sum_exp = fused.token_statistics(teacher, Head(weight), spec.temperature, CHUNK_BYTES).log_sum_exp_N
    runs = ((fused.distillation_loss, log_sum_exp, (CHUNK_BYTES,)), (reference.distillation_loss, None, ()))
    for run, carried, extra in runs:
        hidden, head = student.clone().requires_grad_(), weight.clone().requires_grad_()
        with torch.enable_grad():
            result = run(
                *(hidden, Head(head), teacher, Head(weight), token_ids, coefficients, old_logps, carried),
                spec,
                *extra,
            )
            gradients = torch.autograd.grad(result.loss, (hidden, head))
        found.append([*(field.detach() for field in result), *gradients])
    errors = [(ours - exact).abs().max() / exact.abs().max() for ours, exact in zip(*found, strict=True)]
    return float(torch.stack(errors).max())
