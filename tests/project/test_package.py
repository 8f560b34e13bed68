"""The installed package: its version, what an import costs, and that the command answers without torch."""

import importlib.metadata
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.version import Version

import srpo_trl
from srpo_trl.seams.trl import SUPPORTED_TRL

REPOSITORY = Path(__file__).resolve().parents[2]
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


def test_trl_range_is_what_is_tested() -> None:
    """Its oldest and newest release are in constraints.txt, or in an environment of scripts/version_matrix.py."""
    matrix = runpy.run_path(str(REPOSITORY / "scripts" / "version_matrix.py"))
    declared = {requirement.name: requirement for requirement in matrix["requirements"]()}
    low, high = map(Version, SUPPORTED_TRL)
    assert str(declared["trl"].specifier) == f"<{high.major}.{high.minor},>={low}"
    tested = {matrix["versions"](name)["trl"] for name in matrix["BY_DEFAULT"]} | {
        matrix["constraints"]()["trl"]
    }
    assert str(low) in tested
    assert any((Version(v).major, Version(v).minor + 1) == (high.major, high.minor) for v in tested)


def test_version_matrix_has_the_floors_and_what_vllm_needs() -> None:
    matrix = runpy.run_path(str(REPOSITORY / "scripts" / "version_matrix.py"))
    assert matrix["versions"]("transformers-5.17")["transformers"] == "5.17.0"
    oldest = matrix["versions"]("oldest")
    for requirement in matrix["with_floor"]():
        assert f">={oldest[requirement.name]}" in str(requirement.specifier)
    files = {path.stem.removeprefix("test_") for path in (REPOSITORY / "tests").rglob("test_*.py")}
    assert matrix["versions"]("newest") == {}  # pip chooses
    assert matrix["TESTS"].keys() == {*matrix["BY_DEFAULT"], "newest"}
    assert files >= {test for tests in matrix["TESTS"].values() for test in tests}


NO_POSIX = """
import builtins
plain_import = builtins.__import__

def without_posix(name, globals=None, *args, **kwargs):
    if name in ("fcntl", "resource") and str((globals or {}).get("__name__")).startswith("srpo_trl"):
        raise ImportError(name)
    return plain_import(name, globals, *args, **kwargs)

builtins.__import__ = without_posix
from srpo_trl import SRPOTrainer
"""


def test_the_trainer_is_imported_where_there_are_no_posix_modules() -> None:
    subprocess.run([sys.executable, "-c", NO_POSIX], check=True, timeout=300)
