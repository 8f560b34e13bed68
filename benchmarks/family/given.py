"""A method's run with all that the method is given."""

from pathlib import Path
from typing import Any

from benchmarks.family.models import TEACHERS, model_folder
from benchmarks.family.rollouts import mastered, stored
from benchmarks.family.rows import EXTRAS, STUDIED, TASK, columns, external_models, own_options
from benchmarks.learning.given import do
from benchmarks.learning.rollouts import sampled
from benchmarks.learning.run import Given, Run, start_folder, train, training_questions
from srpo_trl.commands.quickstart.warmup import load_start
from srpo_trl.data.tiny_model import build_tokenizer
from srpo_trl.rollout.offline import offline_rollouts


def run_of(method: str, seed: int) -> Run:
    """Return a method's run from the start of this number, which is its seed, too."""
    return Run(TASK.name, STUDIED.get(method, method), TASK.rate, seed, seed)


def do_method(study: Path, method: str, seed: int) -> None:
    """Train a method's run and write its result, unless it is there."""
    run = run_of(method, seed)
    if run.is_done(study):
        return
    if method in STUDIED:
        do(run, study)
    else:
        train(run, study, given(study, method, run))


def given(study: Path, method: str, run: Run) -> Given:
    """Return what a run of the method is given."""
    made: dict[str, Any] = {"options": options(study, method, run.start), "columns": columns(method)}
    made |= {"extras": EXTRAS[method]} if method in EXTRAS else {}
    return Given(**made, rollout_func=_rollouts(study, method, run))


def options(study: Path, method: str, start: int) -> dict[str, Any]:
    """Return the trainer's options, with the folders of the models that score."""
    folders = [model_folder(study, "teacher", number) for number in TEACHERS]
    of_start = {"erpd": "first-stage", "salsa": "average"}
    if method in of_start:
        folders = [model_folder(study, of_start[method], start)]
    names = external_models(method)
    models = {name or "teacher": str(folder) for name, folder in zip(names, folders, strict=False)}
    return own_options(method) | ({"teacher_model": models} if models else {})


def _rollouts(study: Path, method: str, run: Run) -> Any:
    if method not in ("lightning", "dph_rl"):
        return None
    folder = model_folder(study, "teacher", TEACHERS[0])
    if method == "dph_rl":
        folder = start_folder(study, TASK.name, run.start)
    loaded = load_start(folder)
    assert loaded is not None, "models are made before runs"
    tokenizer, questions = build_tokenizer(TASK.words), training_questions(run)
    rows = stored(loaded[0], tokenizer, questions, run.seed)
    if method == "dph_rl":
        rows = mastered(rows, tokenizer, questions)
    return offline_rollouts(rows, otherwise=sampled)
