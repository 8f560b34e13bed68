"""`srpo-trl plan` says of every recipe for one GPU that it fits there, with the margin left free."""

from pathlib import Path

import pytest

from srpo_trl.commands.config_file import read_config_file
from srpo_trl.commands.plan.arguments import read_request
from srpo_trl.commands.plan.phases import estimate_memory
from srpo_trl.commands.plan.published import PublishedSizes
from srpo_trl.commands.plan.step import FakeModels

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
    check(SMALL / f"{recipe}.yaml", recipe.rpartition("_")[2].removesuffix("gb"))


@pytest.mark.slow
@pytest.mark.parametrize("path", WITH_TEACHERS, ids=lambda path: path.stem)
def test_recipe_with_an_external_teacher_fits_its_gpu(path):
    run = check(path, "80" if "_80gb.yaml" in path.read_text() else "24")
    given = read_config_file(str(path))["teacher_model"]
    assert {c.name_or_path for c in run.teachers.values()} == {
        *(given.values() if isinstance(given, dict) else [given])
    }


def check(path, memory):
    """The run of a recipe, once it fits a GPU of so many GiB; the hub is out of reach in tests."""
    request, problems = read_request(["--config", str(path), "--gpu_memory", memory])
    assert not problems
    run = request.run
    assert isinstance(run.model, PublishedSizes)
    plan = estimate_memory(run, FakeModels(), run.training.per_device_train_batch_size)
    print(f"{path.stem}: {plan.peak / 2**30:.1f} GiB, {plan.peak_phase}, of {request.room / 2**30:.1f}")
    assert 0 < plan.peak <= request.room
    return run
