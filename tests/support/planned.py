"""Plans of `srpo-trl plan`, for models whose shape is the published one."""

import json

from srpo_trl.commands.plan.arguments import read_request
from srpo_trl.commands.plan.phases import estimate_memory
from srpo_trl.commands.plan.step import FakeModels

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


def saved(folder, size):
    """A folder with the config.json of a published model."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(QWEN3 | {"dtype": "bfloat16"} | SIZES[size]))
    return str(folder)


def fitting_plan(arguments, memory, name):
    """A run and its plan, once it fits a GPU of so many GiB."""
    request, problems = read_request([*arguments, "--gpu_memory", memory])
    assert not problems
    run = request.run
    plan = estimate_memory(run, FakeModels(), run.training.per_device_train_batch_size)
    print(f"{name}: {plan.peak / 2**30:.1f} GiB, {plan.peak_phase}, of {request.room / 2**30:.1f}")
    assert 0 < plan.peak <= request.room
    return run, plan
