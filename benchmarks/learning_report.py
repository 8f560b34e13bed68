"""Tables and picture of the learning study, from the `results.json` that compare wrote for each task.

python -m benchmarks.learning_report [outputs/learning]     prints Markdown, writes learning.png there
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from srpo_trl.commands.curves import markdown
from srpo_trl.commands.curves_plot import COLORS, CURVE_STYLE, MARKERS
from srpo_trl.runs.scores import estimate

Runs = dict[int, list[dict[str, float]]]  # by seed, the points of `results.json`
EARLY = 40  # steps after which the variants' speed at the start is compared
REFERENCES = ("grpo", "srpo_beta0")  # what the other variants are compared with, seed by seed


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning_report", description="See the file.")
    parser.add_argument("folder", type=Path, nargs="?", default=Path("outputs/learning"))
    report(parser.parse_args().folder)
    return 0


def report(folder: Path) -> None:
    """Print the tables of every task in `folder` as Markdown and draw `learning.png` beside them."""
    tasks = {path.parent.name: finished_runs(path) for path in sorted(folder.glob("*/results.json"))}
    for task, variants in tasks.items():
        print("\n".join([f"## {task}", "", *summary(variants), "", *differences(variants), ""]))
    draw(tasks, folder / "learning.png")


def finished_runs(path: Path) -> dict[str, Runs]:
    """Return the finished runs of each variant that has any."""
    facts = json.loads(path.read_text(encoding="utf-8"))["variants"]
    runs = {
        name: {run["seed"]: run["points"] for run in variant["runs"] if run["is_finished"]}
        for name, variant in facts.items()
    }
    return {name: by_seed for name, by_seed in runs.items() if by_seed}


def mean_score(points: Sequence[Mapping[str, float]]) -> float:
    """Return the mean over the evaluations after the start: less noisy than any one of them."""
    return fmean(point["score"] for point in points if point["step"] > 0)


def last_score(points: Sequence[Mapping[str, float]]) -> float:
    """Return the score of the last evaluation."""
    return points[-1]["score"]


def early_score(points: Sequence[Mapping[str, float]]) -> float:
    """Return the score after `EARLY` steps."""
    return next(point["score"] for point in points if point["step"] == EARLY)


def best_score(points: Sequence[Mapping[str, float]]) -> float:
    """Return the highest score after the start."""
    return max(point["score"] for point in points if point["step"] > 0)


def summary(variants: Mapping[str, Runs]) -> list[str]:
    """Return the table of every variant's curve: mean over it, early score, best and last."""
    rows = [["variant", "seeds", "start", "mean of the curve", f"after {EARLY} steps", "best", "last"]]
    for name, runs in variants.items():
        curves = list(runs.values())
        measures = (mean_score, early_score, best_score, last_score)
        cells = [_text([measure(points) for points in curves]) for measure in measures]
        start = fmean(points[0]["score"] for points in curves)
        rows.append([name, str(len(curves)), f"{start:.3f}", *cells])
    return markdown(rows)


def differences(variants: Mapping[str, Runs]) -> list[str]:
    """Return the table of differences between variants, over the seeds that both have: the same order of questions."""
    rows = [["difference", "seeds", "mean of the curve", f"after {EARLY} steps", "last"]]
    for reference in REFERENCES:
        for name in variants:
            seeds = sorted(set(variants[name]) & set(variants.get(reference, {})))
            if name != reference and seeds and (reference == "grpo" or name == "srpo"):
                cells = []
                for measure in (mean_score, early_score, last_score):
                    pairs = [(variants[name][seed], variants[reference][seed]) for seed in seeds]
                    cells.append(_text([measure(a) - measure(b) for a, b in pairs], sign="+"))
                rows.append([f"{name} - {reference}", str(len(seeds)), *cells])
    return markdown(rows)


def _text(values: Sequence[float], sign: str = "") -> str:
    found = estimate(values)
    assert found is not None
    return found.text(sign)


def draw(tasks: Mapping[str, Mapping[str, Runs]], path: Path) -> None:
    """Draw the mean curves over steps, a panel for each task, with every single run behind them."""
    with matplotlib.rc_context(CURVE_STYLE):
        figure = Figure(figsize=(12, 4.6), layout="constrained")
        panels = figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
        for axes, (task, variants) in zip(panels, tasks.items(), strict=True):
            for (name, runs), color, marker in zip(variants.items(), COLORS, MARKERS, strict=False):
                _draw_variant(axes, name, runs, {"color": color, "marker": marker})
            axes.set(xlabel="training step", title=task, xlim=(0, None), ylim=(0, 1))
            axes.grid(alpha=0.25)
        panels[0].set_ylabel("held-out accuracy (sampled, temperature 1)")
        handles, labels = panels[-1].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center", frameon=False)
        figure.savefig(path, dpi=100)


def _draw_variant(axes: Any, name: str, runs: Runs, style: dict[str, str]) -> None:
    steps = [point["step"] for point in next(iter(runs.values()))]
    scores = [[point["score"] for point in points] for points in runs.values()]
    for run in scores if len(scores) > 1 else []:
        axes.plot(steps, run, color=style["color"], linewidth=0.6, alpha=0.35)
    mean = [fmean(column) for column in zip(*scores, strict=True)]
    axes.plot(steps, mean, linewidth=1.6, markersize=4, label=f"{name} (n={len(scores)})", **style)


if __name__ == "__main__":
    sys.exit(main())
