"""`srpo-trl plan` says of every recipe for one GPU that it fits there, with the margin left free."""

import json
from pathlib import Path

import pytest

from srpo_trl.commands.plan.arguments import read_request
from srpo_trl.commands.plan.phases import estimate_memory
from srpo_trl.commands.plan.step import FakeModels

SMALL = Path(__file__).parents[2] / "configs" / "small"
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
}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_fits_its_gpu(recipe, tmp_path):
    _, size, _, memory = recipe.split("_")
    (tmp_path / "config.json").write_text(json.dumps(QWEN3 | SIZES[size]))
    config = ["--config", str(SMALL / f"{recipe}.yaml"), "--model", str(tmp_path)]
    request, problems = read_request([*config, "--gpu_memory", memory.removesuffix("gb")])
    assert not problems
    run = request.run
    plan = estimate_memory(run, FakeModels(), run.training.per_device_train_batch_size)
    print(f"{recipe}: {plan.peak / 2**30:.1f} GiB, {plan.peak_phase}, of {request.room / 2**30:.1f}")
    assert 0 < plan.peak <= request.room
