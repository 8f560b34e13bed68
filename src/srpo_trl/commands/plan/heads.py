"""Memory of the two losses, from hidden states through LM heads and back: TRL's fused head and the distillation.

Legend: N packed tokens, D hidden, V vocabulary.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from srpo_trl.commands.plan.formulas import FP32, MIXED
from srpo_trl.loss.ops import DistillationSpec, Head
from srpo_trl.loss.ops.fused_plan import plan_fused, plan_fused_entropy
from srpo_trl.loss.ops.plan import plan_distillation, plan_entropy

# TRL's fused LM head (trl.kernels.chunked_logprob) takes so many tokens and columns of the vocabulary at a time.
TILE_TOKENS, TILE_COLUMNS = 4096, 32768
# Where Triton does not run, that head is chains of torch operators: so many fp32 tiles at once.
_TORCH_TILES_FORWARD, _TORCH_TILES_BACKWARD = 3, 7.25
# Bound of the temporaries of this package's operators (`srpo_trl.loss.ops`), on a GPU and on a CPU.
_CHUNK_BYTES = {True: 512 * 2**20, False: 256 * 2**20}


class HeadSizes(NamedTuple):
    """Sizes of the LM head.

    Attributes:
        hidden_size, vocab_size: D and V.
        weight_itemsize, hidden_itemsize: bytes of a number of the head's weight and of the hidden states.
        product_itemsize: of TRL's products: autocast's, else the hidden states'.
        is_trainable, is_tied: whether the weight gets a gradient, and whether it is the embedding.
        on_gpu: whether the fused kernels run.
    """

    hidden_size: int
    vocab_size: int
    weight_itemsize: int
    hidden_itemsize: int
    product_itemsize: int
    is_trainable: bool
    is_tied: bool
    on_gpu: bool

    @property
    def gradient(self) -> int:
        """Bytes of the head's complete gradient, in the weight's format."""
        return self.vocab_size * self.hidden_size * self.weight_itemsize * self.is_trainable

    @property
    def fp32_gradient(self) -> int:
        """Bytes of that gradient while it is summed up, in fp32."""
        return self.vocab_size * self.hidden_size * FP32 * self.is_trainable

    @property
    def rounds_factors(self) -> bool:
        """Whether the distillation copies hidden states and heads to bf16, as it does under autocast on a GPU."""
        return self.on_gpu and self.product_itemsize < self.weight_itemsize


class Loss(NamedTuple):
    """What the losses hold beyond the backbone's activations, in bytes.

    Attributes:
        forward: at the most while they are computed.
        backward: at the most while the backward runs through the heads.
    """

    forward: int
    backward: int


def loss_bytes(
    sizes: HeadSizes, policy_tokens: int, distilled_tokens: int, spec: DistillationSpec | None
) -> Loss:
    """The losses of one micro-batch: TRL's policy loss, then the distillation; in backward the other way round.

    Args:
        sizes: of the head.
        policy_tokens: N of the policy branch.
        distilled_tokens: N of the distillation.
        spec: of the distillation; None: there is none.
    """
    policy, distillation = _policy(sizes, policy_tokens), _distillation(sizes, distilled_tokens, spec)
    states = policy_tokens * sizes.hidden_size * sizes.hidden_itemsize  # packed, and kept for the backward
    return Loss(
        forward=states + max(policy.forward, distillation.forward),
        # The distillation's gradient of the head waits while the policy branch makes its own.
        backward=states + max(distillation.backward, policy.backward + bool(spec) * sizes.gradient),
    )


def _policy(s: HeadSizes, num_tokens: int) -> Loss:
    """TRL's fused head: one tile of products, of TILE_COLUMNS columns whatever the vocabulary.

    Tokens and columns of a tile are copied where their format is not the products'. The backward sums the gradients of
    hidden states and head in fp32.
    """
    tokens, columns = min(num_tokens, TILE_TOKENS), min(s.vocab_size, TILE_COLUMNS)
    tile = tokens * TILE_COLUMNS * s.product_itemsize
    tile += tokens * s.hidden_size * s.product_itemsize * (s.product_itemsize != s.hidden_itemsize)
    tile += columns * s.hidden_size * s.product_itemsize * (s.product_itemsize != s.weight_itemsize)
    torch_tile = 0 if s.on_gpu else tokens * columns * FP32
    copy = s.gradient if s.weight_itemsize < FP32 else 0
    gradients = num_tokens * s.hidden_size * FP32 + s.fp32_gradient + copy
    return Loss(
        forward=math.ceil(tile + _TORCH_TILES_FORWARD * torch_tile),
        backward=math.ceil(tile + _TORCH_TILES_BACKWARD * torch_tile) + gradients,
    )


def _distillation(s: HeadSizes, num_tokens: int, spec: DistillationSpec | None) -> Loss:
    """This package's loss: both sides' packed hidden states, a chunk's temporaries, and gradients made in the forward.

    The head's gradient is fp32 until the backward scales it into the weight's format, which takes both at once.
    """
    if spec is None:
        return Loss(0, 0)
    states = num_tokens * s.hidden_size
    gradients = states * (MIXED if s.rounds_factors or s.hidden_itemsize == MIXED else FP32) + s.fp32_gradient
    rounded = 2 * (states + s.vocab_size * s.hidden_size) * MIXED if s.rounds_factors else 0
    return Loss(
        forward=2 * states * s.hidden_itemsize + rounded + temporary_bytes(s, num_tokens, spec) + gradients,
        backward=gradients + states * s.hidden_itemsize + s.gradient,
    )


def temporary_bytes(sizes: HeadSizes, num_tokens: int, spec: DistillationSpec | None) -> int:
    """Temporaries of the distillation (None: of the teacher's entropy) for `num_tokens`, as the operator plans them."""
    side, chunk_bytes = _side(sizes, num_tokens), _CHUNK_BYTES[sizes.on_gpu]
    if spec is None:
        if sizes.on_gpu:
            return plan_fused_entropy(*side, chunk_bytes).temporary_bytes
        return plan_entropy(*side, torch.float32, chunk_bytes).temporary_bytes
    if sizes.on_gpu:
        return plan_fused(*side, *side, spec, chunk_bytes).temporary_bytes
    return plan_distillation(*side, *side, torch.float32, spec, chunk_bytes).temporary_bytes


def _side(sizes: HeadSizes, num_tokens: int) -> tuple[Tensor, Head]:
    """Hidden states and head without data, for the operators' own plans.

    On a GPU in float32: bfloat16 factors are not raised there, so a plan needs no room for that.
    """
    dtypes = {MIXED: torch.bfloat16, FP32: torch.float32}

    def empty(rows: int, itemsize: int) -> Tensor:
        dtype = torch.float32 if sizes.on_gpu else dtypes[itemsize]
        return torch.empty(rows, sizes.hidden_size, dtype=dtype, device="meta")

    return empty(num_tokens, sizes.hidden_itemsize), Head(empty(sizes.vocab_size, sizes.weight_itemsize))
