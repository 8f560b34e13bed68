"""Memory of the two losses, from hidden states through LM heads and back: TRL's fused head and the distillation.

Legend: N packed tokens, D hidden, V vocabulary.
"""

import math
import sys
from typing import NamedTuple

import torch
from torch import Tensor

from srpo_trl.commands.plan.storage import FP32, MIXED
from srpo_trl.loss.ops import DistillationSpec, Head
from srpo_trl.loss.ops.chunk_size import chunk_bound, statistics_chunk_bytes
from srpo_trl.loss.ops.fused_plan import plan_fused, plan_fused_statistics
from srpo_trl.loss.ops.plan import plan_distillation, plan_statistics

# TRL's fused LM head (trl.kernels.chunked_logprob) takes so many tokens and columns of the vocabulary at a time.
TILE_TOKENS, TILE_COLUMNS = 4096, 32768
# Where Triton does not run, that head is chains of torch operators: so many fp32 tiles at once.
_TORCH_TILES_FORWARD, _TORCH_TILES_BACKWARD = 3, 7.25


class LossBytes(NamedTuple):
    """What losses hold beyond the backbone's activations, at the most, in the forward and in the backward."""

    forward: int
    backward: int


class LossSizes(NamedTuple):
    """Sizes of the student's LM head and of teachers' hidden states, and what the losses hold for them.

    Attributes:
        hidden_size, vocab_size: D and V.
        weight_itemsize, hidden_itemsize: bytes of a number of the head's weight and of the hidden states.
        product_itemsize: of TRL's products: autocast's, else the hidden states'.
        is_trainable: whether the weight gets a gradient.
        on_gpu: whether the fused kernels run.
        free: bytes that are free when the loss begins, by which it chooses its chunks.
        teacher_hidden_sizes: D of each scorer that distils; the operator runs once for each.
    """

    hidden_size: int
    vocab_size: int
    weight_itemsize: int
    hidden_itemsize: int
    product_itemsize: int
    is_trainable: bool
    on_gpu: bool
    free: int = sys.maxsize
    teacher_hidden_sizes: tuple[int, ...] = ()

    @property
    def gradient(self) -> int:
        """Bytes of the head's complete gradient, in the weight's format."""
        return self.vocab_size * self.hidden_size * self.weight_itemsize * self.is_trainable

    def both(self, policy_tokens: int, distilled_tokens: int, spec: DistillationSpec | None) -> LossBytes:
        """The losses of one micro-batch: TRL's policy loss, then the distillation; in backward the other way round.

        Args:
            policy_tokens: N of the policy branch.
            distilled_tokens: N of the distillation.
            spec: of the distillation; None: there is none.
        """
        policy, states = self._policy(policy_tokens), policy_tokens * self.hidden_size * self.hidden_itemsize
        if spec is None:
            return LossBytes(states + policy.forward, states + policy.backward)
        distillation = self._distillation(distilled_tokens, spec)
        return LossBytes(
            states + max(policy.forward, distillation.forward),
            # The distillation's gradient of the head waits while the policy branch makes its own.
            states + max(distillation.backward, policy.backward + self.gradient),
        )

    def _policy(self, num_tokens: int) -> LossBytes:
        """TRL's fused head: one tile of products, of TILE_COLUMNS columns whatever the vocabulary.

        Tokens and columns of a tile are copied where their format is not the products'; in the forward the columns for
        the product alone. The backward sums the gradients of hidden states and head in fp32.
        """
        tokens, columns = min(num_tokens, TILE_TOKENS), min(self.vocab_size, TILE_COLUMNS)
        rows = tokens * (self.product_itemsize != self.hidden_itemsize)
        tile = (tokens * TILE_COLUMNS + rows * self.hidden_size) * self.product_itemsize
        copied_columns = columns * (self.product_itemsize != self.weight_itemsize)
        columns_copy = copied_columns * self.hidden_size * self.product_itemsize
        torch_tile = 0 if self.on_gpu else tokens * columns * FP32
        copy = self.gradient if self.weight_itemsize < FP32 else 0
        return LossBytes(
            math.ceil(tile + max(columns_copy, _TORCH_TILES_FORWARD * torch_tile)),
            math.ceil(tile + columns_copy + _TORCH_TILES_BACKWARD * torch_tile)
            + copy
            + self._fp32_gradients(num_tokens, FP32),
        )

    def _distillation(self, num_tokens: int, spec: DistillationSpec) -> LossBytes:
        """This package's loss: all sides' packed hidden states, a chunk's temporaries, gradients made in the forward.

        Under autocast on a GPU, hidden states and heads are copied to 16 bits. The head's gradient is fp32 until the
        backward scales it into the weight's format, which takes both at once.
        """
        rounds = self.on_gpu and self.product_itemsize < self.weight_itemsize
        teachers = self.teacher_hidden_sizes
        states, of_teachers = num_tokens * self.hidden_size, num_tokens * sum(teachers)
        itemsize = MIXED if rounds or self.hidden_itemsize == MIXED else FP32
        gradients = len(teachers) * self._fp32_gradients(num_tokens, itemsize)
        sides = (num_tokens + self.vocab_size) * (self.hidden_size + max(teachers))
        rounded = sides * MIXED * rounds
        temporary = self.temporaries(num_tokens, spec)
        return LossBytes(
            (states + of_teachers) * self.hidden_itemsize + rounded + temporary + gradients,
            gradients + states * self.hidden_itemsize + self.gradient,
        )

    def _fp32_gradients(self, num_tokens: int, hidden_itemsize: int) -> int:
        """Gradients of the hidden states, and of the head while it is summed up in fp32."""
        rows = num_tokens * hidden_itemsize + self.vocab_size * FP32 * self.is_trainable
        return rows * self.hidden_size

    def temporaries(self, num_tokens: int, spec: DistillationSpec | None) -> int:
        """Temporaries of the distillation (None: of the teacher's statistics), as the operator plans them."""
        side = self._side(num_tokens, self.hidden_size)
        teacher = self._side(num_tokens, max(self.teacher_hidden_sizes, default=self.hidden_size))
        if spec is None:
            chunk_bytes = statistics_chunk_bytes(self.on_gpu)
            if self.on_gpu:
                return plan_fused_statistics(*side, chunk_bytes).temporary_bytes
            return plan_statistics(*side, torch.float32, chunk_bytes).temporary_bytes
        free = self.free - self._fp32_gradients(0, FP32)
        chunk_bytes = chunk_bound(free, self.vocab_size * FP32, self.vocab_size, spec)
        if self.on_gpu:
            return plan_fused(*side, *teacher, spec, chunk_bytes).temporary_bytes
        return plan_distillation(*side, *teacher, torch.float32, spec, chunk_bytes).temporary_bytes

    def _side(self, num_tokens: int, hidden_size: int) -> tuple[Tensor, Head]:
        """Hidden states and head without data, for the operators' own plans.

        On a GPU in float32: factors of 16 bits are not upcast there, so a plan needs no room for that.
        """

        def empty(rows: int, itemsize: int) -> Tensor:
            dtype = torch.bfloat16 if itemsize == MIXED and not self.on_gpu else torch.float32
            return torch.empty(rows, hidden_size, dtype=dtype, device="meta")

        return empty(num_tokens, self.hidden_itemsize), Head(empty(self.vocab_size, self.weight_itemsize))
