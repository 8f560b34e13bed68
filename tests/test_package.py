"""The installed package: its version, what an import costs, and that the command answers without torch."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

import srpo_trl

REPOSITORY = Path(__file__).resolve().parents[1]
HEAVY_MODULES = ("torch", "transformers", "trl", "datasets", "accelerate", "peft", "matplotlib")


def loaded_after(code: str) -> str:
    """What `code` prints in a fresh interpreter, and then the heavy modules that it has loaded."""
    report = f"\nimport sys; print('LOADED', *(m for m in {HEAVY_MODULES!r} if m in sys.modules))"
    return subprocess.run(
        [sys.executable, "-c", code + report], check=True, capture_output=True, text=True
    ).stdout


def test_version_is_the_installed_one() -> None:
    assert srpo_trl.__version__ == importlib.metadata.version("srpo-trl")


def test_changelog_names_the_version() -> None:
    assert f"## {srpo_trl.__version__}" in (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")


def test_import_is_light() -> None:
    assert loaded_after("import srpo_trl").strip() == "LOADED"


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_help_and_version_are_light(argument: str) -> None:
    code = (
        "from srpo_trl.cli import main\n"
        f"try:\n    main([{argument!r}])\nexcept SystemExit as stop:\n    assert stop.code == 0"
    )
    printed = loaded_after(code)
    assert "srpo-trl" in printed
    assert printed.splitlines()[-1].strip() == "LOADED"


def test_trainer_and_config_are_exported() -> None:
    from trl import GRPOConfig, GRPOTrainer

    assert issubclass(srpo_trl.SRPOTrainer, GRPOTrainer)
    assert issubclass(srpo_trl.SRPOConfig, GRPOConfig)
    assert set(srpo_trl.__all__) == {"SRPOConfig", "SRPOTrainer", "__version__"}


def test_unknown_attribute_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="SRPOTrainr"):
        srpo_trl.SRPOTrainr  # noqa: B018


def test_constraints_pin_every_declared_dependency() -> None:
    from packaging.requirements import Requirement

    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = [Requirement(line) for line in lines if line and not line.startswith("#")]
    versions = {requirement.name: next(iter(requirement.specifier)).version for requirement in pinned}
    declared = [Requirement(text) for text in importlib.metadata.requires("srpo-trl") or ()]
    assert declared
    for requirement in declared:
        if requirement.name != "vllm":  # needs an older transformers than the tested stack
            assert requirement.specifier.contains(versions[requirement.name]), requirement
