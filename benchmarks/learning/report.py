"""Tables and picture of the learning study: `python -m benchmarks.learning.report [outputs/learning]`.

Prints Markdown, writes the same to `tables.md` and the picture to `learning.png` in the study's folder.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from benchmarks.learning.add4 import chooses_form
from benchmarks.learning.results import MEASURES, Result, Study, difference, over_seeds
from benchmarks.learning.rows import FORMS, LATE, SWEPT
from benchmarks.learning.tasks import TASKS
from srpo_trl.commands.curves import markdown
from srpo_trl.commands.curves_plot import COLORS, CURVE_STYLE, MARKERS
from srpo_trl.commands.quickstart.task import WORDS
from srpo_trl.runs.log import EXAMPLES_FILE
from srpo_trl.runs.scores import Estimate

REFERENCE = "grpo"
LEVELS = ("grpo", "sdpo", "srpo")  # drawn as accuracies; these and the others as differences to GRPO
DRAWN = (*LEVELS, "both", "negative_control", "srpo_reference", "sft")
# Pairs of rows: what the first one does beyond the second.
PAIRS = (
    ("srpo", "correct_only"),
    ("negative_control", "srpo"),
    ("both", "grpo"),
    ("both", "srpo"),
    ("both", "negative_control"),
    ("srpo", "srpo_beta0"),
    ("srpo_without_forms", "srpo"),
    ("sdpo_frozen", "sdpo"),
    ("srpo_reference", "srpo"),
    ("srpo_reference", "correct_only"),
    ("both_reference", "both"),
    ("both_reference", "negative_control"),
    ("srpo_reference", "grpo_reference"),
    ("srpo_reference", "negative_reference"),
    ("srpo_reference", "sft"),
    ("both_reference", "negative_reference"),
)
NOTHING = "-"
DIFFERENCE = "Δ"  # to GRPO, seed by seed
Table = list[list[str]]


def report(folder: Path) -> None:
    """Print and write what the study has so far."""
    study = Study(folder)
    lines = [line for block in _blocks(study) for line in (*block, "")]
    print("\n".join(lines))
    (folder / "tables.md").write_text("\n".join(lines), encoding="utf-8")
    draw(study, folder / "learning.png")


def _blocks(study: Study) -> Iterator[list[str]]:
    for task in study.tasks:
        swept = [row for row in study.rows(task) if row in SWEPT]
        yield [f"## {task}", "", starts(study, task)]
        yield ["All at one learning rate:", "", *markdown(scores(study, task, swept))]
        if len(study.choice(task, REFERENCE)) > 1:
            yield ["Each at its best rate:", "", *markdown(scores(study, task, swept, at_best=True))]
            yield [
                "Mean of the curve at each rate, seeds 0 and 1:",
                "",
                *markdown(rates(study, task, swept)),
            ]
        yield ["Answers and cost:", "", *markdown(answers(study, task, study.rows(task)))]
        if rows := [row for row in study.rows(task) if row in FORMS]:
            yield [
                "Why:",
                "",
                *markdown(scores(study, task, ["grpo", "srpo", "correct_only", "both", *rows])),
            ]
    yield ["## An early gain and a higher end?", "", *markdown(late(study))]
    yield ["## What a part adds", "", *markdown(pairs(study))]
    yield ["## Where the weights act", "", *markdown(where_weights_act(study))]


def starts(study: Study, task: str) -> str:
    """Return a sentence about the starts that the task's runs have."""
    numbers = sorted(study.runs(task, REFERENCE))
    made = [study.start(task, number) for number in numbers]
    alone, shown = ([start[name] for start in made] for name in ("alone", "shown"))
    facts = [result.facts for result in study.runs(task, REFERENCE).values()]
    rollouts, tokens = _mean(facts, "rollouts"), _mean(facts, "tokens") / 1000
    return (
        f"{len(made)} starts: right {', '.join(f'{share:.3f}' for share in alone)} alone, "
        f"{min(shown):.3f} to {max(shown):.3f} with a right solution shown. {TASKS[task].num_steps} steps of "
        f"{TASKS[task].prompts_per_step} questions, {rollouts:,.0f} rollouts, {tokens:,.0f} thousand tokens, rate "
        f"{TASKS[task].rate:g}."
    )


def scores(study: Study, task: str, rows: Sequence[str], at_best: bool = False) -> Table:
    """Return the table of each row's curve, and of its differences to GRPO's seed by seed."""

    def runs(row: str) -> dict[int, Result]:
        return study.runs(task, row, study.best_rate(task, row) if at_best else None)

    head = ["row", *(["rate"] if at_best else []), "seeds", *MEASURES]
    table = [[*head, *(f"{DIFFERENCE} {name}" for name in MEASURES)]]
    for row in rows:
        rate = [f"{study.best_rate(task, row):g}"] if at_best else []
        levels = [text(over_seeds(runs(row), measure)) for measure in MEASURES.values()]
        table.append([row, *rate, str(len(runs(row))), *levels, *_less_grpo(runs(row), runs(REFERENCE), row)])
    return table


def _less_grpo(runs: dict[int, Result], grpo: dict[int, Result], row: str) -> list[str]:
    if row == REFERENCE:
        return [""] * len(MEASURES)
    return [text(difference(runs, grpo, measure), "+") for measure in MEASURES.values()]


def rates(study: Study, task: str, rows: Sequence[str]) -> Table:
    """Return the table of the mean of the curve at each rate, over the seeds that rates are chosen on."""
    tried = sorted((TASKS[task].rate, *TASKS[task].other_rates))
    choices = {row: study.choice(task, row) for row in rows}
    return [
        ["row", *(f"{rate:g}" for rate in tried)],
        *([row, *(text(choice.get(rate)) for rate in tried)] for row, choice in choices.items()),
    ]


def answers(study: Study, task: str, rows: Sequence[str]) -> Table:
    """Return the table of what answers are like, and of what a run costs."""
    grpo = study.runs(task, REFERENCE)
    head = ["pass@1 at the end", "pass@16", "different among right ones", "entropy in training"]
    table = [["row", *head, "tokens of an answer", "processor's seconds, of GRPO's"]]
    for row in rows:
        runs = study.runs(task, row)
        logged = [result.facts["logged"] for result in runs.values()]
        entropy = _mean(logged, "entropy")  # of what the policy loss trains
        length = _mean(logged, "completions/mean_length")
        table.append(
            [
                row,
                *(text(over_seeds(runs, lambda result, n=n: result.facts["pass"][n])) for n in ("1", "16")),
                text(over_seeds(runs, lambda result: result.facts["distinct_share"])),
                f"{entropy:.3f}" if entropy > 0 else NOTHING,
                f"{length:.1f}" if length > 0 else NOTHING,
                seconds(runs, grpo),
            ]
        )
    return table


def late(study: Study) -> Table:
    """Return the table of SRPO's variants less GRPO, early and at the end, on each task that has them."""
    tasks = [task for task in study.tasks if any(row in LATE for row in study.rows(task))]
    early_and_end = {name: MEASURES[name] for name in list(MEASURES)[1:]}
    table = [["row", "seeds", *(f"{task}, {name}" for task in tasks for name in early_and_end)]]
    for row in ("srpo", *LATE):
        cells, counts = [], []
        for task in tasks:
            runs, grpo = study.runs(task, row), study.runs(task, REFERENCE)
            counts.append(len(runs.keys() & grpo.keys()))
            cells += [text(difference(runs, grpo, measure), "+") for measure in early_and_end.values()]
        table.append([row, str(min(counts, default=0)), *cells])
    return table


def pairs(study: Study) -> Table:
    """Return the table of differences between two rows, seed by seed, on each task that has both."""
    measures = {name: MEASURES[name] for name in ("mean of the curve", "end")}
    table = [["rows", *(f"{task}, {name}" for task in study.tasks for name in measures)]]
    for row, other in PAIRS:
        runs = [(study.runs(task, row), study.runs(task, other)) for task in study.tasks]
        found = [difference(*both, measure) for both in runs for measure in measures.values()]
        table.append([f"{row} - {other}", *(text(each, "+") for each in found)])
    return table


def where_weights_act(study: Study) -> Table:
    """Return the table of the divergence's share on free tokens, without the weights and with them."""
    head = ["free tokens", "of the divergence", "of the weighted divergence", "teacher's entropy, nats"]
    table = [["task", *head, "effective share of the weights"]]
    for task in study.tasks:
        runs = study.runs(task, "srpo")
        logged = [result.facts["logged"] for result in runs.values()]
        shares = np.mean([free_shares(result.folder, task) for result in runs.values()], axis=0)
        entropy, effective = (
            _mean(logged, f"srpo/{name}") for name in ("teacher/entropy", "weight/ess_frac")
        )
        table.append([task, *(f"{share:.3f}" for share in shares), f"{entropy:.3f}", f"{effective:.3f}"])
    return table


def free_shares(run: Path, task: str) -> tuple[float, float, float]:
    """Return the free tokens' share of the tokens, of the divergence and of the weighted one, in logged rollouts.

    Free are the words of slip4s and quiz8w, and the first token of a column of add4_forms, which chooses its form.
    """
    sums = np.zeros((2, 3))
    for line in (run / EXAMPLES_FILE).read_text(encoding="utf-8").splitlines():
        example = json.loads(line)
        if "tokens" in example:
            divergence, weight = np.array(example["divergence"]), np.array(example["weight"])
            values = np.stack([np.ones_like(divergence), divergence, divergence * weight])
            free = np.array([_is_free(token, place, task) for place, token in enumerate(example["tokens"])])
            sums += np.stack([values[:, free].sum(axis=1), values.sum(axis=1)])
    of_words, of_all, of_weighted = sums[0] / sums[1]
    return float(of_words), float(of_all), float(of_weighted)


def _is_free(token: str, place: int, task: str) -> bool:
    return (task == "add4_forms" and chooses_form(place)) or token in WORDS


def _mean(facts: Sequence[Mapping[str, float]], name: str) -> float:
    values = [each[name] for each in facts if name in each]
    return fmean(values) if values else float("nan")


def seconds(runs: dict[int, Result], others: dict[int, Result]) -> str:
    """Return the processor's seconds of training as a multiple of those of other runs, seed by seed."""
    both = runs.keys() & others.keys()
    ratios = [runs[seed].facts["seconds"] / others[seed].facts["seconds"] for seed in sorted(both)]
    return f"{fmean(ratios):.2f}" if ratios else NOTHING


def text(found: Estimate | None, sign: str = "") -> str:
    """Return an estimate as text, where there is one."""
    return NOTHING if found is None else found.text(sign)


def draw(study: Study, path: Path) -> None:
    """Draw the main curves over steps, and below them what rows are above GRPO seed by seed; a column for each task."""
    with matplotlib.rc_context(CURVE_STYLE):
        figure = Figure(figsize=(12, 7), layout="constrained")
        panels = figure.subplots(2, len(study.tasks), sharey="row", sharex="col", squeeze=False)
        for (above, below), task in zip(panels.T, study.tasks, strict=True):
            grpo = study.runs(task, REFERENCE)
            for row, color, marker in zip(DRAWN, COLORS, MARKERS, strict=False):
                runs, style = study.runs(task, row), {"color": color, "marker": marker, "label": row}
                seeds = sorted(runs.keys() & grpo.keys())
                scores = [runs[seed].scores for seed in seeds]
                differences = np.array(scores) - np.array([grpo[seed].scores for seed in seeds])
                if seeds and row in LEVELS:
                    _band(above, grpo[seeds[0]].steps, np.array(scores), style)
                if seeds and row != REFERENCE:
                    _band(below, grpo[seeds[0]].steps, differences, style)
            above.set(title=f"{task}, {len(grpo)} seeds", ylim=(0, 1))
            below.set(xlabel="training step")
            below.set_xlim(left=0)
            below.axhline(0, color=COLORS[0], linewidth=1.2)
            for axes in (above, below):
                axes.grid(alpha=0.25)
        panels[0, 0].set_ylabel("held-out accuracy\n(sampled, temperature 1)")
        panels[1, 0].set_ylabel("less GRPO's, seed by seed")
        named = {
            name: handle
            for axes in panels.flat
            for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        shown = [row for row in DRAWN if row in named]
        figure.legend([named[row] for row in shown], shown, loc="outside right center", frameon=False)
        figure.savefig(path, dpi=100)


def _band(axes: Axes, steps: Sequence[int], values: NDArray[np.float64], style: dict[str, str]) -> None:
    """Draw mean and standard error of (runs, evaluations)."""
    mean, error = values.mean(axis=0), values.std(axis=0, ddof=len(values) > 1) / len(values) ** 0.5
    axes.plot(steps, mean, markersize=3, **style)
    axes.fill_between(steps, mean - error, mean + error, color=style["color"], alpha=0.15, linewidth=0)


if __name__ == "__main__":
    report(Path(sys.argv[1] if len(sys.argv) > 1 else "outputs/learning"))
