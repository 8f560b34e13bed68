"""Inputs of the distillation operators, shared by their tests."""

import dataclasses
import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from srpo_trl.loss.ops import DistillationSpec, Head, distillation_loss

HIDDEN_SIZE = 6


SPECS = {
    "tail": DistillationSpec(topk=5),
    "renormalized": DistillationSpec(topk=5, add_tail=False),
    "full": DistillationSpec(topk=None),
    "sampled": DistillationSpec(estimator="sampled"),
}


@dataclasses.dataclass
class Problem:
    """Inputs of one call; the teacher is near the student, as a self-teacher is."""

    hidden: torch.Tensor
    head: Head
    teacher_hidden: torch.Tensor
    teacher_head: Head
    token_ids: torch.Tensor
    coefficient: torch.Tensor
    old_logps: torch.Tensor | None

    def leaves(self):
        """The student's tensors, which receive gradients."""
        return [t for t in (self.hidden, self.head.weight_VD, self.head.bias_V) if t is not None]

    def run(self, spec, backend, chunk_bytes=256 * 2**20, **options):
        return distillation_loss(
            self.hidden,
            self.head,
            self.teacher_hidden,
            self.teacher_head,
            self.token_ids,
            self.coefficient,
            self.old_logps,
            spec=spec,
            backend=backend,
            chunk_bytes=chunk_bytes,
            **options,
        )

    def gradients(self, spec, backend, chunk_bytes=256 * 2**20, upstream=1.7, **options):
        """The result, and the gradients of `leaves` under a random-looking upstream gradient."""
        result = self.run(spec, backend, chunk_bytes, **options)
        return result, torch.autograd.grad(result.loss * upstream, self.leaves())


def make_problem(
    num_tokens, vocab_size, *, bias=False, softcap=None, scale=1.0, old=True, dtype=torch.float64, seed=0
):
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    hidden, weight = randn(num_tokens, HIDDEN_SIZE), randn(vocab_size, HIDDEN_SIZE)
    bias_V = randn(vocab_size) if bias else None
    coefficient = randn(num_tokens)
    coefficient[::3] = 0.0
    problem = Problem(
        hidden=hidden,
        head=Head(weight, bias_V, scale, softcap),
        teacher_hidden=hidden + 0.3 * randn(num_tokens, HIDDEN_SIZE),
        teacher_head=Head(weight + 0.1 * randn(vocab_size, HIDDEN_SIZE), bias_V, scale, softcap),
        token_ids=torch.randint(vocab_size, (num_tokens,), generator=generator),
        coefficient=coefficient,
        old_logps=-5 * torch.rand(num_tokens, generator=generator, dtype=torch.float64).to(dtype)
        if old
        else None,
    )
    problem.teacher_hidden = problem.teacher_hidden.detach()
    problem.teacher_head = problem.teacher_head._replace(bias_V=None if bias_V is None else bias_V.clone())
    for leaf in problem.leaves():
        leaf.requires_grad_()
    return problem


class CountLiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that operators make while it is on: now, at most, and by shape."""

    def __init__(self):
        super().__init__()
        self.live = self.peak = self.largest = 0
        self.shapes: dict[tuple[int, ...], int] = {}
        self.known = weakref.WeakSet()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        outputs = function(*args, **(kwargs or {}))
        given = {t.untyped_storage() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        for output in tree_leaves(outputs):
            if isinstance(output, torch.Tensor):
                storage = output.untyped_storage()
                if storage not in given and storage not in self.known:
                    self.add(storage, tuple(output.shape))
        return outputs

    def add(self, storage, shape):
        num_bytes = storage.nbytes()
        self.known.add(storage)
        weakref.finalize(storage, self.remove, num_bytes)
        self.live += num_bytes
        self.peak = max(self.peak, self.live)
        self.largest = max(self.largest, num_bytes)
        self.shapes[shape] = self.shapes.get(shape, 0) + 1

    def remove(self, num_bytes):
        self.live -= num_bytes

    def total_of_shape(self, shape):
        return self.shapes.get(shape, 0)
