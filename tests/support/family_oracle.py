"""Routes, weights, advantages and pulls of the family's methods, token by token, in plain Python.

Formulas: see docs/methods.md. Nothing here imports the package.
"""

import math

POLICY, DISTILLED = 1, 2


def routes(method, group, step=0, at_step=50):
    """The route of each rollout of a group, given as (correct, context, scored)."""
    all_failed = any(scored for *_, scored in group) and not any(correct for correct, *_ in group)
    found = []
    for _, context, scored in group:
        if method in ("clip_cov", "kl_cov", "negative_control"):
            route = POLICY
        elif method == "hdpo":
            route = POLICY | (DISTILLED if all_failed and context else 0)
        elif method == "opsd":
            route = POLICY | (DISTILLED if context else 0)
        elif method == "sdpo_then_grpo" and step >= at_step:
            route = POLICY
        else:
            route = DISTILLED if context else 0
        found.append(route if scored else 0)
    return found


def pass_rate_weight(group, powers):
    """p^a (1 - p)^b of a group."""
    scored = [correct for correct, _, is_scored in group if is_scored]
    p = sum(scored) / len(scored)
    return p ** powers[0] * (1 - p) ** powers[1]


def mix(student, teacher, share):
    """share KL(student || teacher) + (1 - share) KL(teacher || student) of two lists of probabilities."""
    reverse = sum(p * math.log(p / q) for p, q in zip(student, teacher, strict=True))
    forward = sum(q * math.log(q / p) for p, q in zip(student, teacher, strict=True))
    return share * reverse + (1 - share) * forward


def covariances(advantages, logps, mask):
    """(A - mean A)(log pi - mean log pi) of each token that counts; its place first."""
    places = [(i, t) for i, row in enumerate(mask) for t, counts in enumerate(row) if counts]
    mean_a = sum(advantages[i] for i, _ in places) / len(places)
    mean_l = sum(logps[i][t] for i, t in places) / len(places)
    return {(i, t): (advantages[i] - mean_a) * (logps[i][t] - mean_l) for i, t in places}


def kl_cov(advantages, logps, old, mask, share, coefficient):
    """The pull of each token: -coefficient sign(log pi - log pi_old) on the share with the largest covariance."""
    cov = covariances(advantages, logps, mask)
    top = sorted(cov, key=cov.get, reverse=True)[: math.floor(share * len(cov))]
    return {(i, t): -coefficient * math.copysign(1.0, logps[i][t] - old[i][t]) for i, t in top}
