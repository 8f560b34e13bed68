"""Routes, weights, advantages and pulls of the family's methods, token by token, in plain Python.

Formulas: see docs/methods.md. Nothing here imports the package.
"""

import math

POLICY, DISTILLED = 1, 2
ON_POLICY = (
    "clip_cov kl_cov negative_control ema_anchor kdrl opd opd_then_rl rlsd rlad g_opd uni_opd scope dmpo rapo f_dpg "
    "salsa eksft apo fg_expo erpd gtpo dgpo dph_rl tcod"
)


def routes(method, group, step=0, at_step=50):
    """The route of each rollout of a group, given as (correct, context, scored)."""
    all_failed = any(scored for *_, scored in group) and not any(correct for correct, *_ in group)
    found = []
    for correct, context, scored in group:
        if method in ON_POLICY.split():
            route = POLICY
        elif method == "hdpo":
            route = POLICY | (DISTILLED if all_failed and context else 0)
        elif method == "lightning":
            route = POLICY if context else 0
        elif method in ("srpo_stable", "srpo_unweighted"):
            route = POLICY if correct or not context else DISTILLED
        elif method == "srpo_both":
            route = POLICY if correct or not context else POLICY | DISTILLED
        elif method in ("opsd", "pi_distill", "vopd", "skill_sd", "trace"):
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


# --- What trains a token, by its rollout i and place t, from floats: `own` is log pi, the others log-probabilities.


def kdrl_gradient(own, teacher, beta):
    """Of beta (log pi - log T)^2 / 2 by log pi, by a difference of two sides."""
    return _slope(lambda x: beta * (x - teacher) ** 2 / 2, own)


def k3_gradient(own, reference, beta):
    """Of beta (r - log r - 1), r = reference / pi."""
    return _slope(lambda x: beta * (math.exp(reference - x) - (reference - x) - 1), own)


def rapo_gradient(own, initial, power, alpha):
    """Of alpha (w log w - w + 1), w = pi_0^power / pi."""

    def loss(x):
        w = math.exp(power * initial - x)
        return alpha * (w * math.log(w) - w + 1)

    return _slope(loss, own)


def dph_gradient(own, initial, eta, is_jensen_shannon):
    """Of eta f(u), u = pi / pi_0, by log pi: f = u - 1 - log u, or u log u - (u + 1) log((u + 1) / 2)."""

    def loss(x):
        u = math.exp(x - initial)
        if is_jensen_shannon:
            return eta * (u * math.log(u) - (u + 1) * math.log((u + 1) / 2))
        return eta * (u - 1 - math.log(u))

    return _slope(loss, own)


def rlad_ratio(own, old, teacher, alpha):
    """(pi / pi_old)^alpha (pi / T)^(1 - alpha)."""
    return (math.exp(own) / math.exp(old)) ** alpha * (math.exp(own) / math.exp(teacher)) ** (1 - alpha)


def rlsd_advantage(advantage, own, teacher, share, epsilon):
    """The advantage of a token with a teacher that saw a solution."""
    ratio = math.exp(teacher - own) if advantage > 0 else math.exp(own - teacher)
    return advantage * (1 - share) + advantage * share * min(max(ratio, 1 - epsilon), 1 + epsilon)


def g_opd_advantage(own, teacher, reference, scale):
    """Of maximizing E[scale log(T / ref)] - KL(pi || ref): the reward less the log-ratio to the reference."""
    return scale * (teacher - reference) - (own - reference)


def margins(gaps, correct, scored, margin):
    """What is added to the gaps of each rollout of a group, by its mean gap."""
    right = [g for g, c, s in zip(gaps, correct, scored, strict=True) if c and s]
    wrong = [g for g, c, s in zip(gaps, correct, scored, strict=True) if s and not c]
    if not (right and wrong):
        return [0.0] * len(gaps)
    shift = max(0.0, margin - (sum(right) / len(right) - sum(wrong) / len(wrong)))
    return [shift / 2 if c else -shift / 2 for c in correct]


def scope_weights(student, teacher, correct, scored, temperature):
    """w of each rollout of a group, from the mean log-probabilities: by perplexity, mean 1 among its kind."""

    def shares(perplexity, power):
        total = sum(p**power for p in perplexity)
        return [len(perplexity) * p**power / total for p in perplexity]

    right = [i for i, (c, s) in enumerate(zip(correct, scored, strict=True)) if c and s]
    wrong = [i for i, (c, s) in enumerate(zip(correct, scored, strict=True)) if s and not c]
    found = [0.0] * len(correct)
    for rows, logps, power in ((right, student, 1 / temperature), (wrong, teacher, -1 / temperature)):
        made = shares([math.exp(-logps[i]) for i in rows], power) if rows else []
        for i, weight in zip(rows, made, strict=True):
            found[i] = weight
    return found


def dmpo_steps(scores, means, lengths, strength, temperature):
    """-gradient by log pi of each of a rollout's tokens: of strength mean_i (p_i - q_i)^2, by differences."""
    p = _softmax([score / temperature for score in scores])

    def loss(logps):
        q = _softmax(logps)
        return strength * sum((a - b) ** 2 for a, b in zip(p, q, strict=True)) / len(p)

    found = []
    for i, length in enumerate(lengths):

        def of_sum(x, i=i, length=length):  # a mean log-probability is the sum over tokens by their number
            return loss([m + (x / length if j == i else 0.0) for j, m in enumerate(means)])

        found.append(-_slope(of_sum, 0.0))
    return found


def f_dpg_advantages(policy, target, divergence):
    """-f'(pi / p) less the mean, of sequences with the log-probabilities pi and the unnormalized log p."""
    z = sum(math.exp(t - q) for q, t in zip(policy, target, strict=True)) / len(policy)
    f = {
        "reverse": lambda t: t * math.log(t),
        "forward": lambda t: -math.log(t),
        "jensen_shannon": lambda t: t * math.log(2 * t / (1 + t)) + math.log(2 / (1 + t)),
    }[divergence]
    rewards = [-_slope(f, math.exp(q - t + math.log(z))) for q, t in zip(policy, target, strict=True)]
    return [reward - sum(rewards) / len(rewards) for reward in rewards]


def tip_kept(entropies, divergences, kept):
    """The tokens of a rollout that are distilled."""

    def scaled(values):
        low, high = min(values), max(values)
        return [(v - low) / (high - low) if high > low else 0.0 for v in values]

    h, d = scaled(entropies), scaled(divergences)
    score = [a + b - a * b for a, b in zip(h, d, strict=True)]
    order = sorted(range(len(score)), key=lambda t: -score[t])
    return set(order[: math.floor(kept * len(score))])


def va_opd_loss(values, gains, top, share):
    """share times the mean over the top tokens by gain, the rest times that over the others."""
    order = sorted(range(len(gains)), key=lambda t: -gains[t])
    high, low = order[: math.floor(top * len(gains))], order[math.floor(top * len(gains)) :]
    if not high:
        return sum(values) / len(values)
    return share * sum(values[t] for t in high) / len(high) + (1 - share) * sum(values[t] for t in low) / len(
        low
    )


def length_factor(length, mean, base):
    """Of the advantage of a failed rollout."""
    return 2 - base ** -(length - mean) if length > mean else 1.0


def protected(completions, signs):
    """Places of each completion's tokens that a completion of both signs begins with, or ends with."""

    def prefixes(rows):
        found = []
        for row in rows:
            places = []
            for t, token in enumerate(row):
                by = {
                    sign
                    for other, sign in zip(rows, signs, strict=True)
                    if t < len(other) and other[t] == token
                }
                if not {1, -1} <= by:
                    break
                places.append(t)
            found.append(places)
        return found

    start = prefixes(completions)
    end = prefixes([row[::-1] for row in completions])
    return [set(a) | {len(row) - 1 - t for t in b} for row, a, b in zip(completions, start, end, strict=True)]


def gtpo_advantages(advantage, entropy, completions, signs, i, weight, cost, largest, mean_length):
    """Of each token of a completion of a group."""
    places, row = protected(completions, signs)[i], completions[i]
    base = 0.0 if entropy > largest else advantage - cost * entropy
    share = mean_length / len(row) / max(1, len(places))
    return [
        base * share * ((weight if signs[i] > 0 else 0.0) if t in places else 1.0) for t in range(len(row))
    ]


def trace_advantage(advantage, is_span, step, weight, hold, decay):
    """Of a token: GRPO's, on spans as far as the distillation has left it."""
    share = 1.0 if step < hold else max(0.0, 1.0 - (step - hold) / decay)
    return advantage * (1 - share) if is_span else advantage


def dgpo_factors(entropies, distances, temperature, kappa):
    """Of the advantage of each token of a rollout."""
    low, high = min(entropies), max(entropies)
    unsure = [(h - low) / (high - low) if high > low else 0.0 for h in entropies]
    shares = _softmax([d * u**kappa / temperature for d, u in zip(distances, unsure, strict=True)])
    return [len(shares) * share for share in shares]


def _softmax(values):
    largest = max(values)
    powers = [math.exp(v - largest) for v in values]
    return [power / sum(powers) for power in powers]


def _slope(function, x, h=1e-5):
    return (function(x + h) - function(x - h)) / (2 * h)
