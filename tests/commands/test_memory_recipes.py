"""`srpo-trl plan` says of every recipe for one GPU that it fits there, with the margin left free."""

import json
from pathlib import Path

import pytest

from srpo_trl.commands.config_file import read_config_file
from srpo_trl.commands.plan.arguments import read_request
from srpo_trl.commands.plan.phases import estimate_memory
from srpo_trl.commands.plan.step import FakeModels

CONFIGS = Path(__file__).parents[2] / "configs"
SMALL = CONFIGS / "small"
RECIPES = sorted(path.stem for path in SMALL.glob("qwen3_*.yaml"))
# what the models' published config.json says of their size
QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 151936,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": True,
}
SIZES = {
    "0.6b": {"hidden_size": 1024, "intermediate_size": 3072},
    "1.7b": {"hidden_size": 2048, "intermediate_size": 6144},
    "4b": {
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
    },
}
WITH_TEACHERS = [  # those whose teachers are published, and not of a run before
    path
    for path in sorted((CONFIGS / "methods").glob("*.yaml"))
    if "Qwen/" in str(read_config_file(str(path)).get("teacher_model"))
]


def saved(folder, size):
    """A folder with the config.json of a published model."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(QWEN3 | {"dtype": "bfloat16"} | SIZES[size]))
    return str(folder)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_fits_its_gpu(recipe, tmp_path):
    _, size, _, memory = recipe.split("_")
    model = saved(tmp_path / "model", size)
    check(["--config", str(SMALL / f"{recipe}.yaml"), "--model", model], memory.removesuffix("gb"), recipe)


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
    run = check([*options, "--teacher_model", as_given], memory, path.stem)
    assert set(run.teachers) == set(folders)


def check(arguments, memory, recipe):
    """The run of a recipe, once it fits a GPU of so many GiB."""
    request, problems = read_request([*arguments, "--gpu_memory", memory])
    assert not problems
    run = request.run
    plan = estimate_memory(run, FakeModels(), run.training.per_device_train_batch_size)
    print(f"{recipe}: {plan.peak / 2**30:.1f} GiB, {plan.peak_phase}, of {request.room / 2**30:.1f}")
    assert 0 < plan.peak <= request.room
    return run
