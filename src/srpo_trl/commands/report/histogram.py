"""The distribution of token weights, over the tokens of the logged examples."""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from matplotlib.axes import Axes

from srpo_trl.commands.report.drawing import INK, Drawing, Picture, marks, run_style
from srpo_trl.runs.read import RunHistory, is_number

NUM_BINS = 40


def draw_weights(runs: Sequence[RunHistory]) -> Picture:
    """Draw, per run, which share of the logged examples' distilled tokens has which weight."""
    weights = [np.array(_weights(run)) for run in runs]
    highest = max((values.max() for values in weights if len(values)), default=0.0)
    edges = np.linspace(0.0, max(highest, 1.0) * 1.001, NUM_BINS + 1)
    shares = [np.histogram(values, edges)[0] / max(len(values), 1) for values in weights]
    rows = [
        (run.name, round(float(low), 6), round(float(high), 6), float(share))
        for run, values, run_shares in zip(runs, weights, shares, strict=True)
        if len(values)
        for low, high, share in zip(edges, edges[1:], run_shares, strict=False)
    ]
    drawn = {i: shares[i] for i, values in enumerate(weights) if len(values)}
    words = [f"{runs[i].name} from {weights[i].min():.3g} to {weights[i].max():.3g}" for i in drawn]
    drawing = Drawing(
        "share of the tokens at each weight",
        f"Share of the distilled tokens at each weight: {'; '.join(words)}.",
        partial(_draw_shares, edges=edges, shares=drawn),
    )
    return Picture(
        "weight_distribution",
        "Distribution of token weights",
        "Of the distilled tokens in the examples below, not of all: the share at each weight, whose mean over a whole "
        "optimizer step is 1. One peak at 1 means that the weights do nothing; a long tail to the right, that a few "
        "sure tokens count most.",
        [f"No examples.jsonl of {run.name}." for i, run in enumerate(runs) if i not in drawn],
        [drawing] if drawn else [],
        [run.name for run in runs],
        ("run", "weight_from", "weight_to", "share_of_tokens"),
        rows,
    )


def _weights(run: RunHistory) -> list[float]:
    lists = [record.get("weight") for record in run.examples]
    return [float(w) for values in lists if isinstance(values, list) for w in values if is_number(w)]


def _draw_shares(axes: Axes, *, edges: np.ndarray, shares: Mapping[int, np.ndarray]) -> None:
    middles = (edges[:-1] + edges[1:]) / 2
    for i, values in shares.items():
        style = run_style(i)
        axes.plot(middles, values, drawstyle="steps-mid", linewidth=1.6, **style, **marks(i, len(values)))
        axes.fill_between(middles, values, step="mid", alpha=0.12, color=style["color"], linewidth=0)
    axes.set(xlabel="weight", ylabel="share of tokens", xlim=(0, edges[-1]), ylim=(0, None))
    axes.grid(alpha=0.18, color=INK, linewidth=0.6)
