"""`srpo-trl plan` says of every recipe for one GPU that it fits there, with the margin left free."""

import json
from pathlib import Path

import pytest

from planned import fitting_plan, saved
from srpo_trl.commands.config_file import read_config_file

CONFIGS = Path(__file__).parents[2] / "configs"
SMALL = CONFIGS / "small"
RECIPES = sorted(path.stem for path in SMALL.glob("qwen3_*.yaml"))
WITH_TEACHERS = [  # those whose teachers are published, and not of a run before
    path
    for path in sorted((CONFIGS / "methods").glob("*.yaml"))
    if "Qwen/" in str(read_config_file(str(path)).get("teacher_model"))
]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_fits_its_gpu(recipe, tmp_path):
    _, size, _, memory = recipe.split("_")
    model = saved(tmp_path / "model", size)
    fitting_plan(
        ["--config", str(SMALL / f"{recipe}.yaml"), "--model", model], memory.removesuffix("gb"), recipe
    )


@pytest.mark.slow
@pytest.mark.parametrize("path", WITH_TEACHERS, ids=lambda path: path.stem)
def test_recipe_with_an_external_teacher_fits_its_gpu(path, tmp_path):
    recipe = read_config_file(str(path))
    given, memory = recipe["teacher_model"], "80" if "_80gb.yaml" in path.read_text() else "24"
    teachers = given if isinstance(given, dict) else {"teacher": given}
    folders = {
        name: saved(tmp_path / name, hub_id.rpartition("-")[2].lower()) for name, hub_id in teachers.items()
    }
    options = ["--config", str(path), "--model", saved(tmp_path / "model", "0.6b")]
    as_given = json.dumps(folders) if isinstance(given, dict) else folders["teacher"]
    run, _ = fitting_plan([*options, "--teacher_model", as_given], memory, path.stem)
    assert set(run.teachers) == set(folders)
