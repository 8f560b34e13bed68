"""The importance ratio of the distillation loss.

Shapes: any; the arguments have the same one.
"""

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0


def importance_ratio(student_logps: Tensor, old_logps: Tensor, clip: float | None) -> Tensor:
    """How much more probable the sampled tokens are now than when they were sampled, capped.

        rho = min(exp(clamp(log pi_theta(y) - log pi_old(y), -20, 20)), clip)      (SDPO, arXiv:2601.20802)

    Args:
        student_logps: log-probabilities of the sampled tokens under the current policy, nats; detached here.
        old_logps: the same under the policy that sampled them, same shape; detached here.
        clip: the cap, above 0. None switches the correction off.

    Returns:
        The arguments' shape, float32 or wider, no gradient; above 0 and at most `clip`; exactly 1 where clip
        is None.

    Raises:
        ValueError: the shapes differ, or clip is not above 0.
    """
    if student_logps.shape != old_logps.shape:
        raise ValueError(
            f"student_logps have the shape {tuple(student_logps.shape)} and old_logps "
            f"{tuple(old_logps.shape)}; both must be the same. "
            "Pass the log-probabilities of the same sampled tokens."
        )
    if clip is not None and clip <= 0:
        raise ValueError(f"clip is {clip}; it must be above 0. Use None to switch the correction off.")
    dtype = torch.promote_types(torch.promote_types(student_logps.dtype, old_logps.dtype), torch.float32)
    if clip is None:
        return torch.ones_like(student_logps, dtype=dtype)
    log_ratio = student_logps.detach().to(dtype) - old_logps.detach().to(dtype)
    return log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp().clamp(max=clip)
