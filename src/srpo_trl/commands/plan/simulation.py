"""The passes of a step, run on tensors without data: what sampling, teacher and student would hold.

Every pass is the model's own code (attention, masks, cache, autocast, checkpointing), so each architecture that
transformers can run on fake tensors is counted as it is. The loss is not run; `formulas` has it.

Legend: B rows, P prompt length, T completion length, L = P + T, D hidden.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import DynamicCache

from srpo_trl.commands.plan.allocations import Held, LiveBytes, without_data
from srpo_trl.commands.plan.shape import student_of
from srpo_trl.teacher.packing import TeacherRow, plan_passes, row_layout
from srpo_trl.teacher.scoring import forward_rows


class Precision(NamedTuple):
    """The number formats of a pass.

    Attributes:
        autocast: that autocast computes in; None: no autocast.
        weights: that an engine computes all weights in; None: each in its own.
    """

    autocast: torch.dtype | None
    weights: torch.dtype | None


class Sampling(NamedTuple):
    """What sampling holds beside the weights.

    Attributes:
        cache: of the key-value cache at the last token.
        peak: the highest total, cache included.
    """

    cache: int
    peak: Held


class TeacherPass(NamedTuple):
    """What the largest teacher pass holds.

    Attributes:
        peak: the highest total of the backbone's calls, their cache included.
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
        forward_peak, backward_peak: the highest totals, gradients included where they were kept.
        hidden_itemsize: bytes of one number of the last hidden states.
    """

    after_forward: Held
    kept: int
    forward_peak: Held
    backward_peak: Held
    hidden_itemsize: int


class Simulation:
    """A model without data and the passes it can run.

    Args:
        model: on the meta device, PEFT's wrapper included; it is changed in place.
        precision: of all passes.
        with_mask: attention needs a mask for padded rows.
    """

    def __init__(self, model: nn.Module, precision: Precision, *, with_mask: bool) -> None:
        self._mode = FakeTensorMode()
        self._model = model
        self._student = student_of(model)
        self._precision = precision
        self._with_mask = with_mask
        without_data(model, self._mode, lambda tensor: precision.weights or tensor.dtype)
        self._existing = [*model.parameters(), *model.buffers()]

    def _autocast(self) -> AbstractContextManager:
        dtype = self._precision.autocast
        return nullcontext() if dtype is None else torch.autocast("cpu", dtype)

    @contextmanager
    def _counting(self) -> Iterator[LiveBytes]:
        with self._mode, LiveBytes(self._existing) as live:
            yield live

    def _inputs(self, num_rows: int, length: int, mask_length: int | None = None) -> dict[str, Tensor]:
        inputs = {"input_ids": torch.zeros(num_rows, length, dtype=torch.int64)}
        if self._with_mask:
            inputs["attention_mask"] = torch.ones(num_rows, mask_length or length, dtype=torch.int64)
        return inputs

    @torch.no_grad()
    def sampling(self, num_rows: int, prompt_length: int, completion_length: int) -> Sampling:
        """Sample `num_rows` completions with `generate`: the prompts' pass, then the last token's."""
        self._student.eval()
        with self._counting() as live:
            self._call(num_rows, prompt_length, DynamicCache(config=self._student.config))
            prompt_peak = live.take_peak()
            cache = DynamicCache(config=self._student.config)
            self._call(num_rows, prompt_length + completion_length - 1, cache, backbone_only=True)
            live.take_peak()
            self._call(num_rows, 1, cache, past=prompt_length + completion_length - 1)
            return Sampling(live.now.total, max(prompt_peak, live.take_peak()))

    def _call(
        self, num_rows: int, length: int, cache: Any, past: int = 0, backbone_only: bool = False
    ) -> None:
        model = self._student.base_model if backbone_only else self._student
        options = {} if backbone_only else {"logits_to_keep": 1}
        with self._autocast():
            model(
                **self._inputs(num_rows, length, past + length),
                past_key_values=cache,
                use_cache=True,
                **options,
            )

    @torch.no_grad()
    def teacher_pass(self, rows: Sequence[TeacherRow], max_tokens: int) -> TeacherPass:
        """Score rows as `srpo_trl.teacher.scoring` does, and return what its largest pass holds."""
        layout = row_layout(self._student)
        passes = [
            [rows[i] for i in batch] for batch in plan_passes(rows, max_tokens=max_tokens, layout=layout)
        ]
        largest = max(passes, key=lambda batch: sum(len(row.completion_ids) for row in batch))
        self._student.eval()
        with self._counting() as live, self._autocast():
            states = forward_rows(self._student.base_model, largest, layout)
            return TeacherPass(
                live.take_peak(), live.now, sum(len(state) for state in states), states[0].element_size()
            )

    def training_pass(
        self, num_rows: int, length: int, *, checkpointing: bool, keep_gradients: bool
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
        parameters = [p for p in self._model.parameters() if p.requires_grad]
        hooks = (
            []
            if keep_gradients
            else [p.register_post_accumulate_grad_hook(_free_gradient) for p in parameters]
        )
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
        for parameter in parameters:
            parameter.grad = None
        return TrainingPass(after_forward, kept, forward_peak, backward_peak, hidden_BLD.element_size())

    def _prepare_training(self, checkpointing: bool) -> None:
        self._student.train()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # transformers renames these
            if not checkpointing:
                self._student.gradient_checkpointing_disable()
                return
            self._student.gradient_checkpointing_enable({"use_reentrant": False})
        if self._model is not self._student:  # as TRL does for adapters
            self._student.enable_input_require_grads()


def _free_gradient(parameter: Tensor) -> None:
    parameter.grad = None
