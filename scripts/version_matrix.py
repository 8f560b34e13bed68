"""Runs the core tests with other versions of the stack than constraints.txt's, each in an environment of its own.

    python scripts/version_matrix.py [NAME ...] [--keep FOLDER]

Without a NAME: those with older versions. `newest` is what pip chooses today from the ranges of pyproject.toml.

Each environment is made anew and removed afterwards, about 3 GB on disk at a time (more where pip finds no CPU build
of its torch). torch is installed first and by itself, so that a CPU wheel is taken where pip is pointed at one. The
exit status is 1 where an environment cannot be made or a test fails in it.
"""

import argparse
import subprocess
import sys
import tempfile
import time
import tomllib
import venv
from collections.abc import Sequence
from pathlib import Path

from packaging.requirements import Requirement

REPOSITORY = Path(__file__).resolve().parents[1]
CORE_TESTS = ("objective", "trainer", "resume", "seams", "teacher", "split_invariance", "grpo_identity")
TESTS = {
    "transformers-5.17": (*CORE_TESTS, "passes", "vllm", "adapters"),
    "oldest": (*CORE_TESTS, "passes", "vllm", "adapters", "ops"),
    "newest": (*CORE_TESTS, "passes", "ops"),
}
BY_DEFAULT = ("transformers-5.17", "oldest")  # `newest` is another one every day


def requirements(path: str = "pyproject.toml") -> list[Requirement]:
    """The package's own requirements, without extras."""
    project = tomllib.loads((REPOSITORY / path).read_text(encoding="utf-8"))["project"]
    return [Requirement(text) for text in project["dependencies"]]


def constraints(path: str = "constraints.txt") -> dict[str, str]:
    lines = (REPOSITORY / path).read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def oldest(requirement: Requirement) -> str:
    return next(s.version for s in requirement.specifier if s.operator == ">=")


def with_floor() -> list[Requirement]:
    """The requirements that say from which version on; the others come with these."""
    return [requirement for requirement in requirements() if requirement.specifier]


def versions(name: str) -> dict[str, str]:
    """Package versions of an environment; what is not named is left to pip."""
    if name == "newest":
        return {}
    pinned = constraints()
    if name == "transformers-5.17":  # what vLLM needs
        pinned |= constraints("constraints-vllm.txt")
        del pinned["vllm"]  # has no build for CPUs
        return pinned
    del pinned["huggingface-hub"]  # transformers < 5.18 need one below 2
    # The packages below the core stay at their pins: left free, pip tries them for a long time.
    return pinned | {requirement.name: oldest(requirement) for requirement in with_floor()}


def path_of(test: str) -> str:
    """Return where below tests/ the file of a test is."""
    return str(next((REPOSITORY / "tests").rglob(f"test_{test}.py")))


def run(name: str, folder: Path) -> bool:
    """Make the environment, run its tests, and say what was tested."""
    started = time.monotonic()
    chosen = versions(name)
    venv.create(folder, with_pip=True)
    python = str(folder / "bin" / "python")
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    pins = folder / "constraints.txt"
    pins.write_text(
        "".join(f"{package}=={version}\n" for package, version in chosen.items()), encoding="utf-8"
    )
    extras = ["bitsandbytes"] if "adapters" in TESTS[name] else []  # QLoRA
    tools = ["pytest", "pytest-xdist", "hypothesis", "pandas", "liger-kernel", *extras]
    commands = [
        [*pip, f"torch=={chosen['torch']}" if chosen else "torch"],
        [*pip, "--constraint", str(pins), "--editable", str(REPOSITORY), *tools],
        [python, "-m", "pip", "list", "--disable-pip-version-check"],
        [python, "-m", "pytest", "-q", "-n", "2", *map(path_of, TESTS[name])],
    ]
    print(
        f"[{name}] {', '.join(f'{r.name} {chosen.get(r.name, r.specifier)}' for r in requirements())}",
        flush=True,
    )
    passed = all(subprocess.run(command, cwd=REPOSITORY, check=False).returncode == 0 for command in commands)
    print(f"[{name}] {'passed' if passed else 'FAILED'} in {time.monotonic() - started:.0f} s", flush=True)
    return passed


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"of {', '.join(TESTS)}; the first two by default",
    )
    parser.add_argument("--keep", type=Path, help="folder to leave the environments in")
    options = parser.parse_args(argv)
    unknown = set(options.names) - set(TESTS)
    if unknown:
        parser.error(f"no environment is called {', '.join(sorted(unknown))}; there are {', '.join(TESTS)}")
    results = []
    for name in options.names or BY_DEFAULT:
        with tempfile.TemporaryDirectory(prefix="srpo-versions-") as temporary:
            results.append(run(name, (options.keep or Path(temporary)) / name))
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
