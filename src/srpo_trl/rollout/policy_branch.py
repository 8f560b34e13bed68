"""What a method makes of TRL's policy loss, once the student's pass has scored its tokens.

Legend: B rows of a micro-batch, T completion positions.
"""

import torch
from torch import Tensor

from srpo_trl.loss.step_totals import WindowTotals, pull_loss
from srpo_trl.methods.record import Method, StudentScores
from srpo_trl.rollout.batch import RoutedBatch, TrlBatch, policy_inputs


class PolicyBranch:
    """The policy loss of one micro-batch.

    Args:
        method: whose `advantages` and `pull` are asked.
        routed: the micro-batch.
        batch: the same as TRL has it.
        num_items: () what TRL is to divide by, before its own rescaling.
        step: optimizer steps so far.

    Attributes:
        inputs: what TRL's loss takes, which reads the advantages after the student's forward.
    """

    def __init__(
        self, method: Method, routed: RoutedBatch, batch: TrlBatch, num_items: Tensor, step: int
    ) -> None:
        self.inputs = policy_inputs(batch, routed, num_items)
        self._method, self._routed, self._step = method, routed, step
        self._pulled: tuple[Tensor, Tensor] | None = None

    def take(self, logps_BT: Tensor, entropy_BT: Tensor) -> None:
        """Take the student's scores of the policy tokens, as its pass in hand gives them."""
        method, mask_BT = self._method, self._routed.policy_BT
        if method.advantages is None and method.pull is None:
            return
        tokens = self._routed.tokens(self._step, StudentScores(logps_BT.detach(), entropy_BT.detach()))
        if method.advantages is not None:
            advantages = method.advantages(tokens)
            allowed = (mask_BT.shape[:1], mask_BT.shape)
            self.inputs["advantages"] = _checked("advantages", advantages, allowed, mask_BT)
        if method.pull is not None:
            pull_BT = _checked("pull", method.pull(tokens), (mask_BT.shape,), mask_BT)
            self._pulled = (torch.where(mask_BT, pull_BT.detach(), 0.0), logps_BT)

    def losses(
        self, policy_loss: Tensor, distilled_loss: Tensor, totals: WindowTotals, num_processes: int
    ) -> dict[str, Tensor]:
        """Return the micro-batch's losses by branch, () each: those given, and that of the pull where there is one."""
        losses = {"policy": policy_loss, "distilled": distilled_loss.to(policy_loss.dtype)}
        if self._pulled is not None:
            losses["pull"] = pull_loss(*self._pulled, self._routed.sampler_ratio_BT, totals, num_processes)
        return losses


def _checked(name: str, value: Tensor, shapes: tuple[torch.Size, ...], mask_BT: Tensor) -> Tensor:
    """Return the value.

    Raises:
        ValueError: its shape is none of those; non-finite values are the step's, which is skipped and reported.
    """
    if value.shape not in shapes:
        required = " or ".join(str(tuple(shape)) for shape in shapes)
        raise ValueError(f"The method's {name} is {tuple(value.shape)}; {required} is required.")
    return value.to(mask_BT.device)
