"""The distribution of token weights, over the tokens of the logged examples."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from srpo_trl.commands.report.drawing import INK, PANEL_INCHES, STYLE, Picture, name_runs, run_style
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
    return Picture(
        "weight_distribution",
        "Distribution of token weights",
        "Of the distilled tokens in the examples below, not of all: the share at each weight, whose mean over a whole "
        "optimizer step is 1. One peak at 1 means that the weights do nothing; a long tail to the right, that a few "
        "sure tokens count most.",
        [
            f"No examples.jsonl of {run.name}."
            for run, values in zip(runs, weights, strict=True)
            if not len(values)
        ],
        _figure(edges, shares, runs, [len(values) > 0 for values in weights]) if rows else None,
        ("run", "weight_from", "weight_to", "share_of_tokens"),
        rows,
    )


def _weights(run: RunHistory) -> list[float]:
    lists = [record.get("weight") for record in run.examples]
    return [float(w) for values in lists if isinstance(values, list) for w in values if is_number(w)]


def _figure(
    edges: np.ndarray, shares: Sequence[np.ndarray], runs: Sequence[RunHistory], is_drawn: Sequence[bool]
) -> Figure:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2 * PANEL_INCHES[0], PANEL_INCHES[1]), layout="constrained")
        axes = figure.subplots()
        for i, run_shares in enumerate(shares):
            if is_drawn[i]:
                axes.stairs(run_shares, edges, linewidth=1.6, **run_style(i))
                axes.stairs(run_shares, edges, fill=True, alpha=0.12, color=run_style(i)["color"])
        axes.set(xlabel="weight", ylabel="share of tokens", xlim=(0, edges[-1]), ylim=(0, None))
        axes.grid(alpha=0.18, color=INK, linewidth=0.6)
        name_runs(figure, runs)
    return figure
