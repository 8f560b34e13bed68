"""What the run prints and saves: the raw numbers as JSON, tables of the curves and of their means."""

import json
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.table import Table

from srpo_trl.commands.quickstart.task import METHODS
from srpo_trl.commands.quickstart.train import Curve


def curve_table(curves: Sequence[Curve]) -> Table:
    """Return held-out accuracy over steps, with the seconds of training that each took; means over seeds."""
    table = Table(title="Held-out accuracy (seconds of training)")
    table.add_column("step", justify="right")
    by_method = _by_method(curves)
    for method in by_method:
        table.add_column(method.upper(), justify="right")
    for index, step in enumerate(curves[0].steps):
        cells = [
            f"{_mean([run.accuracy[index] for run in runs]):.3f} ({_mean([run.seconds[index] for run in runs]):.0f} s)"
            for runs in by_method.values()
        ]
        table.add_row(str(step), *cells)
    return table


def summary_table(curves: Sequence[Curve]) -> Table:
    """Return, per method, the mean of its curve, its last point and its time per step, with the range over seeds."""
    by_method = _by_method(curves)
    num_seeds = max(len(runs) for runs in by_method.values())
    table = Table(title=f"{num_seeds} seeds: mean (lowest to highest)" if num_seeds > 1 else "1 seed")
    for name in ("", "mean of the curve", "last point", "seconds a step", "distilled first, last"):
        table.add_column(name, justify="right")
    for method, runs in by_method.items():
        table.add_row(
            method.upper(),
            _spread([run.mean_accuracy for run in runs], 3),
            _spread([run.accuracy[-1] for run in runs], 3),
            _spread([run.seconds[-1] / run.steps[-1] for run in runs], 2),
            _routed(runs),
        )
    return table


def write_results(path: Path, curves: Sequence[Curve], **facts: Any) -> None:
    """Write the raw numbers, with the versions and the machine that they come from."""
    packages = ("torch", "transformers", "trl", "srpo-trl")
    results = {
        **facts,
        "curves": [curve.as_dict() for curve in curves],
        "versions": {package: version(package) for package in packages}
        | {"python": platform.python_version()},
        "machine": {"platform": platform.platform(), "processor": platform.machine()},
    }
    path.write_text(json.dumps(results, indent=2) + "\n")


def _by_method(curves: Sequence[Curve]) -> dict[str, list[Curve]]:
    grouped = {method: [curve for curve in curves if curve.method == method] for method in METHODS}
    return {method: runs for method, runs in grouped.items() if runs}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _spread(values: Sequence[float], digits: int) -> str:
    mean = f"{_mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def _routed(runs: Sequence[Curve]) -> str:
    measured = [[frac for frac in run.routed_frac if frac is not None] for run in runs]
    if not all(measured):
        return "none"
    return f"{_mean([fracs[0] for fracs in measured]):.0%}, {_mean([fracs[-1] for fracs in measured]):.0%}"
