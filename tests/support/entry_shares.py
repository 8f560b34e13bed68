"""Each entry's summand of a divergence, from its formula in float64 with autograd, and clips that some are above.

Nothing here is taken from the package but the shape of its inputs.
"""

import torch


def logits_of(hidden, head, temperature):
    """The finished logits of a head's product in float64."""
    logits = hidden.double() @ head.weight_VD.double().T
    if head.bias_V is not None:
        logits = logits + head.bias_V.double()
    logits = logits * head.logit_scale
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    return logits / temperature


def entries(logps, ids, topk, add_tail):
    """Log-probabilities of the support's entries, the tail last."""
    if topk is None or topk >= logps.shape[-1]:
        return logps
    top = logps.gather(-1, ids)
    if not add_tail:
        return torch.log_softmax(top, -1)
    outside = logps.scatter(-1, ids, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([top, outside], -1)


def summands(log_p, log_q, alpha, is_linear):
    """Of alpha KL(p || q) + (1 - alpha) KL(q || p), or of the generalized Jensen-Shannon divergence."""
    p, q = log_p.exp(), log_q.exp()
    if is_linear or alpha in (0.0, 1.0):
        return alpha * p * (log_p - log_q) + (1 - alpha) * q * (log_q - log_p)
    log_m = torch.log((1 - alpha) * p + alpha * q)
    return alpha * q * (log_q - log_m) + (1 - alpha) * p * (log_p - log_m)


def entry_shares(problem, spec):
    """(N, entries), differentiable in the student's tensors."""
    student = torch.log_softmax(logits_of(problem.hidden, problem.head, spec.temperature), -1)
    teacher = torch.log_softmax(logits_of(problem.teacher_hidden, problem.teacher_head, spec.temperature), -1)
    teacher = teacher.detach()
    ids = student.detach().topk(min(spec.topk or 1, student.shape[-1]), -1).indices
    sides = (entries(side, ids, spec.topk, spec.add_tail) for side in (student, teacher))
    return summands(*sides, spec.alpha, spec.is_linear)


def half_clip(problem, spec):
    """A clip that about half of all entries are above, or as many as can be; halfway between two of them."""
    share = entry_shares(problem, spec).detach().flatten().sort().values
    place = max(len(share) // 2, int((share <= 0).sum()) + 1)
    return float(share[place - 1] + share[place]) / 2


def clipped_frac(problem, spec):
    """The share of all entries that are above the clip."""
    return float((entry_shares(problem, spec) > spec.pointwise_clip).double().mean())
