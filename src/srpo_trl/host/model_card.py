"""The model card: TRL's, with what the run knows of itself. Made of the log, so it can be made again at any time."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from datasets import Dataset

from srpo_trl.host.callbacks import package_versions

REPOSITORY = "https://github.com/srpo-trl/srpo-trl"
CARD_FILE, CARD_TAG = "README.md", "srpo-trl"
LOGS = 10  # that a mean at the start or at the end of a run is taken over
# What is told of training, by metric; those that were not logged are left out.
OBSERVED = {
    "reward": "reward",
    "srpo/correct_frac": "correct rollouts",
    "srpo/route/distilled_frac": "distilled",
    "srpo/route/skipped_frac": "excluded from the loss",
    "srpo/teacher/available_frac": "needed a teacher and had one",
    "srpo/teacher/entropy": "teacher entropy, nats",
    "srpo/distillation/divergence": "divergence, nats",
    "completions/mean_length": "completion length, tokens",
}
_SCORE = re.compile(r"eval_(.*_)?((avg|maj|pass)@\d+|format_rate|reward|loss|completions/mean_length)")
_HUB_FILE = re.compile(r"hf://datasets/(?P<id>[^/@]+/[^/@]+)@")


@dataclass(frozen=True)
class RunSummary:
    """What a card says of a run.

    Attributes:
        method: as a checkpoint records it.
        model: folder or hub id of the start; its kind where it has neither.
        prompts: number of training prompts; None: not known.
        rollouts: of one optimizer step, in words.
        rewards: names of the reward functions.
        options: those that were set.
        history: the trainer's log history.
        sampling: how an evaluation samples; None: as TRL does.
        best: step and metric of the best checkpoint; None: not known.
        findings: of the guards; None: there are no guards.
    """

    method: str
    model: str
    prompts: int | None
    rollouts: str
    rewards: Sequence[str]
    options: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]]
    sampling: str | None
    best: tuple[int, str] | None
    findings: Sequence[Mapping[str, Any]] | None


def hub_data_set(rows: Any) -> str | None:
    """Return the hub id of the data set that rows were loaded from, where it is known; `map` and `select` keep it."""
    files = (rows.info.download_checksums or {}) if isinstance(rows, Dataset) else {}
    found = {match["id"] for match in map(_HUB_FILE.match, files) if match}
    return found.pop() if len(found) == 1 else None


def complete_card(path: Path, name: str, summary: RunSummary) -> None:
    """Add to TRL's card at `path` what it leaves out.

    Args:
        path: of the card.
        name: what a reader loads the model by.
        summary: of the run.
    """
    versions = package_versions()
    start = Path(summary.model).name
    own = f"It was trained with [srpo-trl]({REPOSITORY}) {versions['srpo-trl']}, on top of [TRL]"
    changes = {
        "[None](https://huggingface.co/None)": f"`{start}`",
        'model="None"': f"model={json.dumps(name)}",
        "It has been trained using [TRL]": own,
        "### Framework versions\n": "\n".join([*_sections(summary), "", "### Framework versions\n"]),
        "- TRL: ": f"- srpo-trl: {versions['srpo-trl']}\n- TRL: ",
    }
    card = path.read_text(encoding="utf-8")
    for trls, ours in changes.items():
        card = card.replace(trls, ours, 1)
    path.write_text(card, encoding="utf-8")


def _sections(summary: RunSummary) -> Iterator[str]:
    step = next((entry["step"] for entry in reversed(summary.history)), 0)
    data = "" if summary.prompts is None else f" on {summary.prompts} prompts"
    yield (
        f"Method `{summary.method}`, {step} optimizer steps{data}, {summary.rollouts}. "
        f"Rewards: {', '.join(f'`{name}`' for name in summary.rewards)}."
    )
    yield from _observed([entry for entry in summary.history if "loss" in entry])
    yield from _evaluated(summary)
    if summary.findings is not None:
        yield from ["", "### Guards", ""]
        said = [
            f"- Step {f['step']}: {f['message']} (`{f['guard']}`; {f['action']})." for f in summary.findings
        ]
        yield from said or ["None of the guards has found anything."]
    if summary.options:
        yield from ["", "### Options that were set", "", "~~~~~~yaml"]
        yield yaml.safe_dump(
            json.loads(json.dumps(summary.options, default=str)), allow_unicode=True
        ).rstrip()
        yield "~~~~~~"  # a template may hold a fence of the usual kind


def _observed(logs: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield a table of what training logged first and last."""
    window = min(LOGS, max(1, len(logs) // 2))
    rows = []
    for metric, words in OBSERVED.items():
        ends = [
            [log[metric] for log in part if isinstance(log.get(metric), Real)]
            for part in (logs[:window], logs[-window:])
        ]
        if any(ends):
            first, last = (f"{fmean(values):.3g}" if values else "-" for values in ends)
            rows.append(f"| {words} (`{metric}`) | {first} | {last} |")
    if rows:
        few = "log" if window == 1 else f"{window} logs"
        yield from ["", f"| | first {few} | last {few} |", "|---|---|---|", *rows]


def _evaluated(summary: RunSummary) -> Iterator[str]:
    """Yield a table of the last evaluation, each score with its standard error over questions."""
    scored = [entry for entry in summary.history if any(_is_score(*score) for score in entry.items())]
    if not scored:
        return
    entry: dict[str, Any] = {}
    for part in scored:  # several data sets are logged one by one, and a user's scores beside them
        entry |= part if part["step"] == scored[-1]["step"] else {}
    questions = f", {entry['eval_questions']} questions" if "eval_questions" in entry else ""
    sampling = f", {summary.sampling}" if summary.sampling else ""
    best = f" Best by `{summary.best[1]}`: step {summary.best[0]}." if summary.best else ""
    yield from ["", "### Evaluation", "", f"After step {entry['step']}{questions}{sampling}.{best}", ""]
    yield from ["| score | value | standard error |", "|---|---|---|"]
    for name, value in entry.items():
        if _is_score(name, value):
            error = entry.get(f"{name}_stderr")
            shown = f"{error:.3g}" if isinstance(error, Real) else ""
            yield f"| `{name.removeprefix('eval_')}` | {value:.4g} | {shown} |"


def _is_score(name: str, value: Any) -> bool:
    return isinstance(value, Real) and bool(_SCORE.fullmatch(name))
