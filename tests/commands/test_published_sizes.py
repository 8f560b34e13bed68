"""Sizes that `srpo-trl plan` knows, for a machine without the hub."""

import re
from pathlib import Path

import pytest
from trl import ModelConfig

from srpo_trl.commands.config_file import read_config_file
from srpo_trl.commands.plan.model import build_without_memory, load_config
from srpo_trl.commands.plan.published import SIZES, PublishedSizes

CONFIGS = Path(__file__).parents[2] / "configs"
PARAMETERS = {  # as published, tied weights counted once
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-1.7B": 1_720_574_976,
    "Qwen/Qwen3-4B": 4_022_468_096,
    "Qwen/Qwen3-8B": 8_190_735_360,
}


@pytest.mark.parametrize("name", SIZES)
def test_parameters_are_as_many_as_published(name):
    config = load_config(ModelConfig(name))  # there is no hub in tests
    assert isinstance(config, PublishedSizes)
    model = build_without_memory(config, ModelConfig(name))
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]


def test_a_model_of_other_sizes_needs_its_config():
    with pytest.raises(OSError):
        load_config(ModelConfig("Qwen/Qwen3-14B"))


def test_every_published_model_of_the_recipes_is_known():
    recipes = [
        read_config_file(str(path)) for path in CONFIGS.rglob("*.yaml") if path.parent.name != "accelerate"
    ]
    named = {name for recipe in recipes for name in re.findall(r"Qwen/[\w.-]+", str(recipe))}
    assert named
    assert named <= SIZES.keys()
