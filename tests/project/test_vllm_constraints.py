"""constraints-vllm.txt: its versions are in the package's ranges, and an installer finds a set with them."""

import runpy
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "constraints-vllm.txt"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def pins(file: Path) -> dict[str, str]:
    lines = file.read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def test_versions_are_in_the_packages_ranges() -> None:
    pinned = pins(FILE)
    texts = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["vllm"]]
    for requirement in map(Requirement, texts):
        assert requirement.specifier.contains(pinned[requirement.name]), requirement


def test_core_tests_run_with_them() -> None:
    """In an environment of `make test-all`."""
    tested = runpy.run_path(str(ROOT / "scripts" / "version_matrix.py"))["versions"]("transformers-5.17")
    assert {name: tested.get(name, version) for name, version in pins(FILE).items()} == pins(FILE)
    assert "vllm" not in tested  # which has no build for CPUs


@pytest.mark.slow
@pytest.mark.parametrize("python", ["3.11", "3.13"])
def test_an_installer_finds_a_set_with_them(tmp_path: Path, python: str) -> None:
    """uv reads what packages need from the index and downloads none of them: vLLM and CUDA have gigabytes."""
    command = [shutil.which("uv") or ""]
    if not command[0]:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(tmp_path / "uv"), "uv"]
        if subprocess.run(pip, check=False).returncode:
            pytest.skip("uv cannot be installed: the package index is not reachable")
        command = [str(tmp_path / "uv" / "bin" / "uv")]
    command += ["pip", "compile", "pyproject.toml", "--extra", "vllm", "--constraint", str(FILE)]
    command += ["--python-version", python, "--no-python-downloads", "--only-binary", ":all:"]
    command += ["--python-platform", "x86_64-manylinux_2_31", "--cache-dir", str(tmp_path / "cache")]
    done = subprocess.run(
        [*command, "--no-config", "--no-annotate", "--no-header", "--output-file", str(tmp_path / "set.txt")],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = pins(tmp_path / "set.txt")
    assert {name: found[name] for name in pins(FILE)} == pins(FILE)
