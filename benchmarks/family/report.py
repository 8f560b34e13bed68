"""Tables of every method: `python -m benchmarks.family.report [outputs/learning]`.

Prints Markdown and writes the same to `methods.md` in the study's folder.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.family.models import GIVEN_MODELS
from benchmarks.family.rows import FIRST_STAGE, GIVEN, LEFT_OUT, NUM_SEEDS, STUDIED, TASK
from benchmarks.learning.report import REFERENCE, seconds, text
from benchmarks.learning.results import MEASURES, Result, Study, difference, over_seeds
from benchmarks.learning.run import RESULT_FILE
from srpo_trl.commands.curves import markdown

SHORT = ("mean", "20 steps", "end")  # names of MEASURES
LESS = (MEASURES["end"], MEASURES["mean of the curve"])


def report(folder: Path) -> None:
    """Print and write the tables of what there is so far."""
    study = Study(folder)
    lines = [line for block in _blocks(study) for line in (*block, "")]
    print("\n".join(lines))
    (folder / "methods.md").write_text("\n".join(lines), encoding="utf-8")


def _blocks(study: Study) -> Iterator[list[str]]:
    for group, methods in GIVEN.items():
        yield [f"## {group}"]
        yield markdown(scores(study, [name for name in sorted(methods) if name not in LEFT_OUT]))
    yield ["## Without a run"]
    yield [f"- `{name}`: {reason}." for name, reason in sorted(LEFT_OUT.items())]
    yield ["## Models that were given"]
    yield markdown(models(study))


def runs_of(study: Study, method: str) -> dict[int, Result]:
    """Return a method's runs by seed, of the seeds that all methods have."""
    return _of_all(study.runs(TASK.name, STUDIED.get(method, method)))


def _of_all(runs: dict[int, Result]) -> dict[int, Result]:
    return {seed: result for seed, result in runs.items() if seed < NUM_SEEDS}


def scores(study: Study, methods: list[str]) -> list[list[str]]:
    """Return the table of some methods, in the order given."""
    given = {name: words for group in GIVEN.values() for name, words in group.items()}
    table = [["method", "given", "seeds", "end - GRPO", "mean - GRPO", *SHORT, "seconds"]]
    grpo = runs_of(study, REFERENCE)
    for method in methods:
        runs = runs_of(study, method)
        table.append(
            [
                f"`{method}`",
                given[method],
                str(len(runs)),
                *("" if method == REFERENCE else text(difference(runs, grpo, each), "+") for each in LESS),
                *(text(over_seeds(runs, measure)) for measure in MEASURES.values()),
                _seconds(study, method),
            ]
        )
    return table


def models(study: Study) -> list[list[str]]:
    """Return the table of the other models, measured as the starts are."""
    table = [["model", "right alone", "right with a solution shown"]]
    for path in sorted(study.folder.glob(f"{TASK.name}/{GIVEN_MODELS}/*/{RESULT_FILE}")):
        facts = json.loads(path.read_text(encoding="utf-8"))
        table.append([path.parent.name, f"{facts['alone']:.3f}", f"{facts['shown']:.3f}"])
    return table


def _seconds(study: Study, method: str) -> str:
    """Return the processor's seconds of a run as a multiple of those of a GRPO run of the same batch of work."""
    runs = runs_of(study, method)
    of_batch = study.runs(TASK.name, REFERENCE if method in STUDIED else FIRST_STAGE)
    return seconds(runs, of_batch)


if __name__ == "__main__":
    report(Path(sys.argv[1] if len(sys.argv) > 1 else "outputs/learning"))
