"""`srpo-trl plan` says of every recipe for one GPU that it fits there, with the margin left free."""

from pathlib import Path

import pytest

from planned import fitting_plan
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
def test_recipe_fits_its_gpu(recipe):
    fitting_plan(
        ["--config", str(SMALL / f"{recipe}.yaml")], recipe.rpartition("_")[2].removesuffix("gb"), recipe
    )


@pytest.mark.slow
@pytest.mark.parametrize("path", WITH_TEACHERS, ids=lambda path: path.stem)
def test_recipe_with_an_external_teacher_fits_its_gpu(path):
    run, _ = fitting_plan(
        ["--config", str(path)], "80" if "_80gb.yaml" in path.read_text() else "24", path.stem
    )
    given = read_config_file(str(path))["teacher_model"]
    assert {c.name_or_path for c in run.teachers.values()} == {
        *(given.values() if isinstance(given, dict) else [given])
    }
