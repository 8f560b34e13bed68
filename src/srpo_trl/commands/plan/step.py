"""The passes of a step, run on fake tensors: what sampling, teacher and student would hold.

Every pass is the model's own code (attention, masks, cache, autocast, checkpointing), so each architecture that
transformers can run on fake tensors is counted as it is; kernels' own workspaces alone are not seen. The losses are
not run, since those of a GPU are Triton kernels: `losses` has them.

Legend: B rows, P prompt length, T completion length, L = P + T, D hidden.
"""

import functools
import warnings
import weakref
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from transformers import DynamicCache

from srpo_trl.commands.plan.model import (
    build_without_memory,
    replace_by_fake,
    shape_of,
    student_of,
    uses_flash_attention,
)
from srpo_trl.commands.plan.run import RunSpec
from srpo_trl.teacher.packing import TeacherRow, plan_passes, row_layout
from srpo_trl.teacher.scoring import forward_rows, use_of


class Held(NamedTuple):
    """Bytes held at one moment: all of them, and the part that is copies of weights in another dtype (autocast's)."""

    total: int
    weight_copies: int


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensor memory that is made, and not yet freed, while it is active.

    Args:
        existing: tensors that were there before, and stay; they do not count.
    """

    def __init__(self, existing: Iterable[Tensor]) -> None:
        super().__init__()
        self._existing = {tensor.untyped_storage()._cdata for tensor in existing}
        self._alive: dict[int, weakref.ref[Any]] = {}
        self.now = self._peak = Held(0, 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator, and count the memory of what it returns."""
        result = func(*args, **(kwargs or {}))
        is_copy = func is torch.ops.aten._to_copy.default
        copies_weight = is_copy and args[0].untyped_storage()._cdata in self._existing
        tree_map_only(Tensor, lambda tensor: self._count(tensor, copies_weight), result)
        self._peak = max(self._peak, self.now)
        return result

    def _count(self, tensor: Tensor, copies_weight: bool) -> None:
        storage = tensor.untyped_storage()
        key, num_bytes = storage._cdata, storage.nbytes()
        if key in self._existing or key in self._alive:  # a view, or written in place
            return

        def forget(_: weakref.ref[Any]) -> None:
            del self._alive[key]
            self._add(-num_bytes, copies_weight)

        self._alive[key] = weakref.ref(storage, forget)
        self._add(num_bytes, copies_weight)

    def _add(self, num_bytes: int, copies_weight: bool) -> None:
        self.now = Held(self.now.total + num_bytes, self.now.weight_copies + num_bytes * copies_weight)

    def take_peak(self) -> Held:
        """Return the highest total since the last call, and begin anew."""
        peak, self._peak = self._peak, self.now
        return max(peak, self.now)


class TeacherPass(NamedTuple):
    """What the largest teacher pass holds.

    Attributes:
        peak: at the most while the backbone is called, its cache included.
        after: once its hidden states are cut out.
        num_tokens: completion tokens of the pass.
        hidden_itemsize: bytes of one number of the hidden states.
    """

    peak: Held
    after: Held
    num_tokens: int
    hidden_itemsize: int


class TrainingPass(NamedTuple):
    """What one micro-batch's backbone pass holds.

    Attributes:
        after_forward: what autograd keeps, and the copies of weights that autocast keeps until the forward's end.
        kept: what is left of it when the loss is made.
        forward_peak, backward_peak: at the most, gradients included where they were kept.
        hidden_itemsize: bytes of one number of the last hidden states.
    """

    after_forward: Held
    kept: int
    forward_peak: Held
    backward_peak: Held
    hidden_itemsize: int


class FakeModels:
    """The fake models of runs, each built once: estimates of one run with other micro-batches or options share them."""

    def __init__(self) -> None:
        self._models: dict[Any, FakeModel] = {}

    def of(self, run: RunSpec) -> "FakeModel":
        """Return the model of a run, in the precision that its engine computes in."""
        engine = run.engine.kind if run.engine.is_zero or run.engine.kind == "fsdp2" else None
        key = (str(run.model.to_dict()), str(run.model_config), run.mixed_dtype, engine)
        if key not in self._models:
            self._models[key] = FakeModel(run)
        return self._models[key]


class FakeModel:
    """A model of fake tensors and the passes it can run, each of which is run once.

    Args:
        run: model, adapter, engine and precision.
    """

    def __init__(self, run: RunSpec) -> None:
        engine, mixed = run.engine, run.mixed_dtype
        self._mode = FakeTensorMode()
        self._autocast_dtype = None if engine.is_zero else mixed
        self._with_mask = not uses_flash_attention(run.model_config)
        self._model = build_without_memory(
            run.model,
            run.model_config,
            adapters_in_base_dtype=engine.kind == "zero3",
            trust_remote_code=run.training.trust_remote_code,
        )
        self._student = student_of(self._model)
        self.shape = shape_of(self._model, run.model_config)
        computes_in_mixed = engine.is_zero or engine.kind == "fsdp2"
        replace_by_fake(self._model, self._mode, mixed if computes_in_mixed else None)
        self.sampling = functools.cache(self._sampling)
        self.teacher_pass = functools.cache(self._teacher_pass)
        self.training_pass = functools.cache(self._training_pass)

    def _autocast(self) -> AbstractContextManager[Any]:
        dtype = self._autocast_dtype
        return nullcontext() if dtype is None else torch.autocast("cpu", dtype)

    @contextmanager
    def _counting(self) -> Iterator[LiveBytes]:
        with self._mode, LiveBytes([*self._model.parameters(), *self._model.buffers()]) as live:
            yield live

    def _inputs(self, num_rows: int, length: int, past: int = 0) -> dict[str, Tensor]:
        inputs = {"input_ids": torch.zeros(num_rows, length, dtype=torch.int64)}
        if self._with_mask:
            inputs["attention_mask"] = torch.ones(num_rows, past + length, dtype=torch.int64)
        return inputs

    @torch.no_grad()
    def _sampling(self, num_rows: int, prompt_length: int, completion_length: int) -> tuple[int, Held]:
        """Sample `num_rows` completions with `generate`: the prompts' pass, then the last token's.

        Returns:
            Bytes of the cache at the last token, and the peak, the cache included.
        """
        before = prompt_length + completion_length - 1

        def call(model: nn.Module, length: int, cache: Any, past: int = 0, **options: int) -> None:
            with self._autocast():
                model(**self._inputs(num_rows, length, past), **use_of(cache, model), **options)

        self._student.eval()
        with self._counting() as live:
            call(self._student, prompt_length, DynamicCache(config=self._student.config), logits_to_keep=1)
            prompt_peak = live.take_peak()
            cache = DynamicCache(config=self._student.config)
            call(self._student.base_model, before, cache)
            live.take_peak()
            call(self._student, 1, cache, past=before, logits_to_keep=1)
            return live.now.total, max(prompt_peak, live.take_peak())

    @torch.no_grad()
    def _teacher_pass(
        self, num_rows: int, rows_per_prompt: int, prompt_length: int, completion_length: int, max_tokens: int
    ) -> TeacherPass:
        """Score rows as `srpo_trl.teacher.scoring` does, `rows_per_prompt` after one prompt each."""
        rest, completion = (0,) * (prompt_length - 1), (0,) * completion_length
        rows = [TeacherRow((i // rows_per_prompt, *rest), completion) for i in range(num_rows)]
        layout = row_layout(self._student)
        passes = [
            [rows[i] for i in batch] for batch in plan_passes(rows, max_tokens=max_tokens, layout=layout)
        ]
        largest = max(passes, key=lambda batch: sum(len(row.completion_ids) for row in batch))
        self._student.eval()
        with self._counting() as live, self._autocast():
            states = forward_rows(self._student.base_model, largest, layout)
            num_tokens = sum(map(len, states))
            return TeacherPass(live.take_peak(), live.now, num_tokens, states[0].element_size())

    def _training_pass(
        self, num_rows: int, length: int, checkpointing: bool, keep_gradients: bool
    ) -> TrainingPass:
        """Run the backbone forward and backward on one micro-batch.

        Args:
            num_rows: B.
            length: L.
            checkpointing: whether layers are run again in the backward.
            keep_gradients: whether the parameters' gradients stay when they are complete; else they are freed, as
                where memory for all of them is counted already or an engine shards them.
        """
        self._prepare_training(checkpointing)
        trainable = [p for p in self._model.parameters() if p.requires_grad]

        def free(parameter: Tensor) -> None:
            parameter.grad = None

        hooks = [p.register_post_accumulate_grad_hook(free) for p in trainable if not keep_gradients]
        with self._counting() as live:
            with self._autocast():
                inputs = self._inputs(num_rows, length)
                hidden_BLD = self._student.base_model(**inputs, use_cache=False).last_hidden_state
                after_forward, forward_peak = live.now, live.take_peak()
            kept = live.now.total
            live.take_peak()
            hidden_BLD.backward(torch.empty_like(hidden_BLD))
            backward_peak = live.take_peak()
        for hook in hooks:
            hook.remove()
        self._model.zero_grad(set_to_none=True)
        return TrainingPass(after_forward, kept, forward_peak, backward_peak, hidden_BLD.element_size())

    def _prepare_training(self, checkpointing: bool) -> None:
        self._student.train()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # transformers renames these
            self._student.gradient_checkpointing_disable()
            if checkpointing:
                self._student.gradient_checkpointing_enable({"use_reentrant": False})
        if checkpointing and self._model is not self._student:  # as TRL does for adapters
            self._student.enable_input_require_grads()
