"""What a method makes of TRL's policy loss, once the student's pass has scored its tokens.

Legend: B rows of a micro-batch, T completion positions.
"""

import torch
from torch import Tensor

from srpo_trl.loss.float64 import back_from_float64
from srpo_trl.loss.step_totals import WindowTotals, pull_loss
from srpo_trl.methods.record import Method, StudentScores
from srpo_trl.rollout.batch import RoutedBatch, TrlBatch, policy_inputs
from srpo_trl.rollout.method_rows import IS_RESCORED


class PolicyBranch:
    """The policy loss of one micro-batch.

    Args:
        method: whose `advantages`, `pull` and `anchor` are asked.
        routed: the micro-batch.
        batch: the same as TRL has it.
        num_items: () what TRL is to divide by, before its own rescaling.
        step: optimizer steps so far.

    Attributes:
        inputs: what TRL's loss takes, which reads advantages and log pi_old after the student's forward.
    """

    def __init__(
        self, method: Method, routed: RoutedBatch, batch: TrlBatch, num_items: Tensor, step: int
    ) -> None:
        self.inputs = policy_inputs(batch, routed, back_from_float64(num_items, routed.route_B.device))
        self._method, self._routed, self._step = method, routed, step
        self._pulled: tuple[Tensor, Tensor] | None = None

    def take(self, logps_BT: Tensor, entropy_BT: Tensor, divergence_N: Tensor) -> None:
        """Take the student's scores of the policy tokens and the distilled ones, as its pass in hand gives them."""
        method, routed, mask_BT = self._method, self._routed, self._routed.policy_BT
        if not method.acts_on_policy:
            return
        divergence_BT = torch.zeros_like(logps_BT)
        divergence_BT[routed.distilled_BT] = divergence_N.to(logps_BT.dtype)
        student = StudentScores(logps_BT.detach(), entropy_BT.detach(), divergence_BT.detach())
        tokens = routed.tokens(self._step, student)
        applies_B = routed.rows.get(IS_RESCORED, torch.ones_like(routed.route_B)).bool()
        applies_BT = mask_BT & applies_B.unsqueeze(1)
        if method.advantages is not None:
            advantages = method.advantages(tokens)
            allowed = (mask_BT.shape[:1], mask_BT.shape)
            _check("advantages", advantages, *allowed)
            is_by_row = advantages.dim() == 1
            applies, own = (
                (applies_B, routed.advantage_B) if is_by_row else (applies_BT, routed.advantage_B[:, None])
            )
            self.inputs["advantages"] = torch.where(applies, advantages.to(own), own)
        if method.pull is not None:
            pull_BT = method.pull(tokens)
            _check("pull", pull_BT, mask_BT.shape)
            pull_BT = back_from_float64(pull_BT.detach(), logps_BT.device)
            self._pulled = (torch.where(applies_BT, pull_BT, 0.0), logps_BT)
        if method.anchor is not None:
            anchor_BT = method.anchor(tokens)
            _check("anchor", anchor_BT, mask_BT.shape)
            own_BT = student.logps_BT if routed.old_logps_BT is None else routed.old_logps_BT
            self.inputs["old_per_token_logps"] = torch.where(
                applies_BT, anchor_BT.to(own_BT), own_BT * mask_BT
            )

    def losses(
        self, policy_loss: Tensor, distilled_loss: Tensor, totals: WindowTotals, num_processes: int
    ) -> dict[str, Tensor]:
        """Return the micro-batch's losses by branch, () each: those given, and that of the pull where there is one."""
        losses = {"policy": policy_loss, "distilled": distilled_loss.to(policy_loss.dtype)}
        if self._pulled is not None:
            losses["pull"] = pull_loss(*self._pulled, self._routed.sampler_ratio_BT, totals, num_processes)
        return losses


def _check(name: str, value: Tensor, *shapes: torch.Size) -> None:
    """Raise ValueError where the shape is none of those; non-finite values are the step's, which is skipped."""
    if value.shape not in shapes:
        required = " or ".join(str(tuple(shape)) for shape in shapes)
        raise ValueError(f"The method's {name} is {tuple(value.shape)}; {required} is required.")
