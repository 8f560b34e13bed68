"""A few tokens through the real model: are its logits, its padded rows and its teacher pass what training takes?

Training never asks the model for logits. It multiplies hidden states with the LM head (TRL's fused head and this
package's loss), pads prompts on the left without saying so, and lays the teacher's rows out as its attention seems to
allow. Each is right for most architectures and silently wrong for some, so each is compared once with plain passes.

Legend: R rows, L length, V vocabulary, D hidden.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from srpo_trl.loss.head import head_logits, lm_head_of
from srpo_trl.teacher.packing import Layout, TeacherRow
from srpo_trl.teacher.positions import positions_of, takes_positions
from srpo_trl.teacher.probe_rows import PROMPT, ProbeRows, num_embeddings, probe_rows
from srpo_trl.teacher.scoring import ShardedBackbone, forward_rows

_SPREAD = 8.0  # standard deviation of logits at which a softcap shows


class Tolerances(NamedTuple):
    """Largest differences that are rounding, relative to the spread of what is compared.

    Attributes:
        logits: the head's product, once.
        hidden: the backbone, whose rounding grows with its depth.
        causal: as `hidden`; what is not causal differs by all of the spread.
        quantile: of a row's tokens that is compared; not the worst one in half precision, where a token that lies
            between two experts may go to the other.
    """

    logits: float
    hidden: float
    causal: float
    quantile: float


EXACT = Tolerances(2e-3, 2e-3, 2e-2, 1.0)  # float32
TENSOR_FLOAT32 = Tolerances(1e-2, 2e-2, 5e-2, 0.5)  # float32 on a GPU, which may multiply in TF32
HALF = Tolerances(3e-2, 0.1, 0.3, 0.5)  # bfloat16 and float16, mixed precision and quantized weights


class ModelProblemError(ValueError):
    """The model's own log-probabilities are not those that training would use."""


class ModelProbe(NamedTuple):
    """What a model needs to be trained right.

    Attributes:
        layout: of the teacher's rows, the first of those tried that gives what plain passes give.
        needs_positions: its backbone counts positions from a row's padding on unless it is given position ids.
    """

    layout: Layout
    needs_positions: bool


@torch.no_grad()
def probe_model(
    model: PreTrainedModel,
    layout: Layout,
    *,
    temperature: float,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    resident: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> ModelProbe:
    """Return what the model needs to be trained right, found with one tiny batch; it is left as it was.

    Weights, buffers, modes and random states are those of before. About eight passes of at most 51 tokens.

    Args:
        model: with TRL's fused LM head (at `temperature`) and the distillation head.
        layout: of the teacher's rows, as `row_layout` gives it; "padded" is tried where it is wrong.
        temperature: that TRL divides logits by.
        device: that the model computes on.
        autocast: the mixed precision that it trains in.
        resident: makes parameters whole and puts them on the device, for the length of one pass.
    Raises:
        ModelProblemError: no way of running the model gives its own log-probabilities; names class and difference.
    """
    rows = probe_rows(model)
    passes = _Passes(model, device, autocast, resident)
    with _left_as_found(model, device):
        problem, tolerances = _head_problem(passes, rows, temperature)
        if problem:
            raise ModelProblemError(f"{type(model).__name__} cannot be trained by distillation: {problem}")
        return _probe_hidden_states(passes, rows, layout, tolerances)


# ---------------------------------------------------------------- passes


class _Passes:
    """Forward passes of the probe."""

    def __init__(
        self,
        model: PreTrainedModel,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager[Any]],
        resident: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self.model = model
        self.device = device
        self.autocast = autocast
        self.resident = resident

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run passes in mixed precision, with parameters whole and on the device, and without compiling for them."""
        with torch.compiler.set_stance("force_eager"), self.resident(), self.autocast():
            yield

    def batch(self, rows: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """Return the rows padded on the left, as TRL pads prompts, by names of the model's inputs."""
        length = max(map(len, rows))
        pad = getattr(self.model.config.get_text_config(), "pad_token_id", None)
        pad = pad if isinstance(pad, int) and 0 <= pad < num_embeddings(self.model) else 0
        ids_RL = torch.tensor([[pad] * (length - len(row)) + list(row) for row in rows], device=self.device)
        mask_RL = torch.tensor(
            [[0] * (length - len(row)) + [1] * len(row) for row in rows], device=self.device
        )
        return {"input_ids": ids_RL, "attention_mask": mask_RL}

    def hidden_states(self, rows: Sequence[Sequence[int]], *, gives_positions: bool = False) -> list[Tensor]:
        """Return each row's (L, D) hidden states in float32 from one padded pass."""
        inputs = self.batch(rows)
        if gives_positions:
            inputs["position_ids"] = positions_of(inputs["attention_mask"])
        with self.running():
            hidden_RLD = self.backbone()(**inputs, use_cache=False).last_hidden_state
        return [hidden_LD[-len(row) :].float() for hidden_LD, row in zip(hidden_RLD, rows, strict=True)]

    def backbone(self) -> ShardedBackbone:
        """Return the backbone as the student's own forward calls it."""
        return ShardedBackbone(self.model, self.model, self.device, lambda number: number)


@contextmanager
def _left_as_found(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Evaluate in the block; modes, buffers and random states are afterwards what they were."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        model.eval()
        try:
            yield
        finally:
            for module, was_training in modes:
                module.training = was_training
            for buffer, value in buffers:
                buffer.copy_(value)


# ---------------------------------------------------------------- the LM head

_HALVES = (torch.bfloat16, torch.float16)
_HEAD = (
    "The fused losses take softcap(scale * (hidden W^T + bias)), with the scale in logit_scale, output_multiplier, "
    "lm_head_multiplier or logits_scaling and the cap in final_logit_softcapping of the configuration. Take an "
    "architecture of this form; method='grpo' is no way round, as GRPOTrainer computes its loss with the same head."
)


class _Loud(NamedTuple):
    """Hidden states of one batch, enlarged, what the head as data makes of them, and what the model does.

    Attributes:
        own_RLV: the model's own logits.
        product_RLV: of the head as data.
        tolerances: for the precision of both.
    """

    own_RLV: Tensor
    product_RLV: Tensor
    tolerances: Tolerances


def _head_problem(passes: _Passes, rows: ProbeRows, temperature: float) -> tuple[str | None, Tolerances]:
    """Return how the model's own log-probabilities differ from both products with its head, or None; and tolerances."""
    model, inputs = passes.model, passes.batch(rows)
    source = model.base_model
    loud = _own_and_product(passes, inputs, source)
    if loud is None:  # a few run their decoder without what is around it
        source = model.get_decoder()
        loud = _own_and_product(passes, inputs, source)
    if loud is None:
        return "its forward does not run its base_model, from which the hidden states are taken.", EXACT
    tolerances = loud.tolerances
    if loud.own_RLV.shape != loud.product_RLV.shape:
        shapes = tuple(loud.own_RLV.shape), tuple(loud.product_RLV.shape)
        return f"its logits have shape {shapes[0]}, those of its LM head {shapes[1]}. {_HEAD}", tolerances
    is_scored = inputs["attention_mask"].bool()
    own_NV, product_NV = loud.own_RLV[is_scored].float(), loud.product_RLV[is_scored]
    if not own_NV.isfinite().all():  # weights that have diverged are not this check's to judge
        return None, tolerances
    own_NV, product_NV = (logits - logits.mean(-1, keepdim=True) for logits in (own_NV, product_NV))
    off = _relative(product_NV, own_NV)
    if not off <= tolerances.logits:
        return (
            f"its own logits differ by {off:.2g} of their spread from those of its LM head. {_HEAD}",
            tolerances,
        )
    off = _relative(*_fused_and_own_logps(passes, inputs, loud, source, temperature))
    if not off <= tolerances.logits:
        return (
            f"TRL's fused LM head gives log-probabilities that differ by {off:.2g} from its own. {_HEAD}",
            tolerances,
        )
    unread = _unread_parameters(passes, inputs, source)
    if unread:
        return (
            f"its logits depend on {', '.join(unread)}, which the fused losses do not read. {_HEAD}",
            tolerances,
        )
    return None, tolerances


def _own_and_product(passes: _Passes, inputs: dict[str, Tensor], source: nn.Module) -> _Loud | None:
    """Return logits of enlarged hidden states both ways; None where the model's forward does not call `source`."""
    model = passes.model
    with passes.running(), _enlarged(model, source) as hidden_states:
        own_RLV = model(**inputs, use_cache=False).logits
        if not hidden_states:
            return None
        head, hidden_RLD = lm_head_of(model), hidden_states[0]
        dtypes = (own_RLV.dtype, hidden_RLD.dtype, head.weight_VD.dtype)
        is_half = any(dtype in _HALVES for dtype in dtypes) or torch.is_autocast_enabled(
            hidden_RLD.device.type
        )
        return _Loud(own_RLV, head_logits(hidden_RLD, head), _tolerances(is_half, passes))


def _fused_and_own_logps(
    passes: _Passes, inputs: dict[str, Tensor], loud: _Loud, source: nn.Module, temperature: float
) -> tuple[Tensor, Tensor]:
    """Return (N,) log-probabilities of the tokens that follow another: TRL's, and those of the model's own logits."""
    is_scored_RL = inputs["attention_mask"].bool()
    labels_RL = inputs["input_ids"].masked_fill(~is_scored_RL, -100)
    with passes.running(), _enlarged(passes.model, source):
        fused_RL = passes.model(**inputs, labels=labels_RL, fused_lm_head=True).log_probs
    logps_RLV = (loud.own_RLV[:, :-1].float() / temperature).log_softmax(-1)
    own_RL = logps_RLV.gather(-1, inputs["input_ids"][:, 1:].unsqueeze(-1)).squeeze(-1)
    follows_RL = is_scored_RL[:, :-1] & is_scored_RL[:, 1:]
    return fused_RL[follows_RL].float(), own_RL[follows_RL]


def _unread_parameters(passes: _Passes, inputs: dict[str, Tensor], source: nn.Module) -> list[str]:
    """Return names of trainable parameters between hidden states and logits that are not the LM head's own."""
    model, head = passes.model, lm_head_of(passes.model)
    computed = getattr(
        model.get_output_embeddings(), "parametrizations", nn.Module()
    )  # what the head is made of
    known = {
        id(p) for p in (*model.base_model.parameters(), *computed.parameters(), head.weight_VD, head.bias_V)
    }
    others = {n: p for n, p in model.named_parameters() if p.requires_grad and id(p) not in known}
    if not others:
        return []
    with passes.running(), _enlarged(model, source), torch.enable_grad():
        total = model(**inputs, use_cache=False).logits.sum()
        if not total.requires_grad:
            return []
        gradients = torch.autograd.grad(total, list(others.values()), allow_unused=True)
    return [name for name, gradient in zip(others, gradients, strict=True) if gradient is not None]


@contextmanager
def _enlarged(model: PreTrainedModel, source: nn.Module) -> Iterator[list[Tensor]]:
    """Enlarge the hidden states of `source` until logits have the spread `_SPREAD`; collect them, without gradient."""
    seen: list[Tensor] = []

    def enlarge(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        hidden_RLD = output.last_hidden_state.detach()
        spread = float(head_logits(hidden_RLD, lm_head_of(model)._replace(softcap=None)).std())
        factor = max(1.0, _SPREAD / spread) if 0 < spread < float("inf") else 1.0
        output.last_hidden_state = hidden_RLD * factor
        seen.append(output.last_hidden_state)
        return output

    handle = source.register_forward_hook(enlarge)
    try:
        yield seen
    finally:
        handle.remove()


def _tolerances(is_half: bool, passes: _Passes) -> Tolerances:
    if is_half:
        return HALF
    return EXACT if passes.device.type == "cpu" else TENSOR_FLOAT32


def _relative(found: Tensor, expected: Tensor) -> float:
    """Return the size of the difference relative to what is expected."""
    return float((found - expected).norm() / expected.norm().clamp(min=1e-30))


# ---------------------------------------------------------------- padding and layouts


def _probe_hidden_states(
    passes: _Passes, rows: ProbeRows, layout: Layout, tolerances: Tolerances
) -> ModelProbe:
    name = type(passes.model).__name__
    short, other = (passes.hidden_states([row])[0] for row in (rows.short, rows.other))
    padded = passes.hidden_states(rows)
    if not short.isfinite().all():
        return ModelProbe(layout, needs_positions=False)
    rounding = _hidden_difference([padded[0][: len(short)]], [short], tolerances.quantile)
    if not rounding <= tolerances.causal:
        raise ModelProblemError(
            f"{name} cannot be trained on completions: a token's hidden state changes by {rounding:.2g} of the spread "
            "with the tokens after it. Take a causal model; of an encoder, set is_decoder=True in its configuration."
        )
    largest = max(tolerances.hidden, 3 * rounding)
    off = _hidden_difference(padded[1:], [short, other], tolerances.quantile)
    needs_positions = not off <= largest
    if needs_positions and takes_positions(passes.model):
        padded = passes.hidden_states(rows, gives_positions=True)
        off = _hidden_difference(padded[1:], [short, other], tolerances.quantile)
    if not off <= largest:
        raise ModelProblemError(
            f"{name} cannot be trained on prompts of different lengths: padding on the left, as TRL pads prompts, "
            f"changes a row's hidden states by {off:.2g} of their spread. Take an architecture whose layers leave "
            "padding out; method='grpo' does not help: GRPOTrainer pads the same way."
        )
    layouts: list[Layout] = [layout] if layout == "padded" else [layout, "padded"]
    differences = {}
    for tried in layouts:
        differences[tried] = _layout_difference(
            passes, rows, tried, [padded[0], short, other], tolerances.quantile
        )
        if differences[tried] <= largest:
            return ModelProbe(tried, needs_positions)
    raise ModelProblemError(
        f"{name} cannot be a teacher: rows in one pass have other hidden states than alone, by "
        + ", ".join(f"{off:.2g} of their spread in layout {tried!r}" for tried, off in differences.items())
        + ". Take an architecture whose rows do not depend on each other or on padding after them."
    )


def _layout_difference(
    passes: _Passes, rows: ProbeRows, layout: Layout, alone: list[Tensor], quantile: float
) -> float:
    """Return how far the teacher's pass is from plain passes, relative to the spread of hidden states."""
    prompt_lengths = (PROMPT, PROMPT, PROMPT // 2)
    teacher_rows = [
        TeacherRow(tuple(row[:length]), tuple(row[length:]))
        for row, length in zip(rows, prompt_lengths, strict=True)
    ]
    try:
        with passes.running():
            states = forward_rows(passes.backbone(), teacher_rows, layout)
    except Exception:  # a model may raise whatever it likes in a layout that it does not support
        if layout == "padded":
            raise
        return float("inf")
    expected = [hidden_LD[length - 1 : -1] for hidden_LD, length in zip(alone, prompt_lengths, strict=True)]
    return _hidden_difference([state.float() for state in states], expected, quantile)


def _hidden_difference(found: Sequence[Tensor], expected: Sequence[Tensor], quantile: float) -> float:
    """Return the worst row's difference, at this quantile of its tokens, relative to the spread of hidden states."""
    expected_ND = torch.cat(list(expected))
    spread = (expected_ND - expected_ND.mean(0)).norm(dim=-1).median().clamp(min=1e-30)
    rows = [(a - b).norm(dim=-1).quantile(quantile) for a, b in zip(found, expected, strict=True)]
    return float(torch.stack(rows).max() / spread)
