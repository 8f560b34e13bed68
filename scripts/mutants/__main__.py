"""Breaks the package in named ways, one at a time, and shows that a named test fails for each.

    python scripts/mutants [--only NAME ...] [--jobs 2] [--list]

Each mutant is a few replaced lines in a copy of `src/` and `tests/`; the working tree is never touched. Every test
that a mutant names must pass on the unchanged copy and fail on the mutant's. The exit code is 1 where a mutant
survives, breaks more than it means to (the tests cannot even be collected), or is stale: its old text does not occur
exactly once in its file, so it must be rewritten for the present code.
"""

import argparse
import gc
import importlib
import importlib.util
import json
import os
import runpy
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from mutant import Edit, Mutant

REPOSITORY = Path(__file__).resolve().parents[2]
TIMEOUT_SECONDS = 300
AREAS = (
    "normalization",
    "routing",
    "methods",
    "scorers",
    "steps",
    "branches",
    "mathematics",
    "teacher",
    "trainable",
    "context",
    "rows",
    "checkpoints",
    "survival",
    "scores",
    "counting",
    "rewards",
    "probe",
    "trl_files",
    "platforms",
)
MUTANTS: list[Mutant] = [m for area in AREAS for m in importlib.import_module(area).MUTANTS]


# ------------------------------------------------------------------ running them

# A pytest plugin of the copies: refuses to test anything but the copy, and writes down what failed and how.
PLUGIN = """
import json
from pathlib import Path

import pytest
import srpo_trl

COPY = Path(__file__).resolve().parent
failures = {}


def pytest_configure(config):
    found = Path(srpo_trl.__file__).resolve()
    if not found.is_relative_to(COPY):
        raise pytest.UsageError(f"the tests import {found}, not the copy in {COPY}")


def pytest_runtest_logreport(report):
    if report.failed:
        crash = getattr(report.longrepr, "reprcrash", None)
        failures[report.nodeid] = (crash.message.splitlines() or [""])[0] if crash else report.when


def pytest_sessionfinish(session, exitstatus):
    (COPY / "failures.json").write_text(json.dumps(failures))
"""


class StaleMutantError(Exception):
    """The mutant's old text does not occur exactly once."""


class Job(NamedTuple):
    """Tests to run on one copy."""

    name: str
    edits: tuple[Edit, ...]
    tests: tuple[str, ...]


class Result(NamedTuple):
    """What pytest said of a job: its exit code (or why there is none), failures by node id, output, seconds."""

    code: int | str
    failures: dict[str, str]
    output: str
    seconds: float


def make_copy(folder: Path, edits: tuple[Edit, ...] = ()) -> None:
    """Copy the package and its tests to `folder`, with the edits applied.

    Raises:
        StaleMutantError: an old text does not occur exactly once.
    """
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("src", "tests"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=ignore)
    shutil.copy(REPOSITORY / "pyproject.toml", folder)
    (folder / "configs").symlink_to(REPOSITORY / "configs", target_is_directory=True)
    # Tests that start processes put nothing but their own folder on the path: the copy must be found there, too.
    (folder / "tests" / "support" / "srpo_trl").symlink_to(
        folder / "src" / "srpo_trl", target_is_directory=True
    )
    (folder / "mutant_plugin.py").write_text(PLUGIN, encoding="utf-8")
    for file, old, new in edits:
        path = folder / "src" / "srpo_trl" / file
        text = path.read_text(encoding="utf-8")
        if text.count(old) != 1:
            raise StaleMutantError(f"{file} has {text.count(old)} occurrences of {old!r}")
        path.write_text(text.replace(old, new), encoding="utf-8")


def import_once() -> None:
    """Import what all tests need, but nothing of this package: forked from here, a job starts in no time."""
    runpy.run_path(str(REPOSITORY / "tests" / "conftest.py"))  # before torch: offline, one thread
    for module in (
        "pandas",
        "peft",
        "hypothesis",
        "trl.trainer.grpo_trainer",
        "trl.experimental.sdpo.loss_utils",
    ):
        importlib.import_module(module)
    importlib.import_module("transformers.models.qwen3.modeling_qwen3")
    if importlib.util.find_spec("deepspeed"):  # accelerate imports it wherever it is installed
        importlib.import_module("deepspeed")
    assert "srpo_trl" not in sys.modules
    gc.collect()
    gc.freeze()


def fork(job: Job, folder: Path) -> int:
    """Run the job's tests on the copy in a child process; return its id."""
    child = os.fork()
    if child:
        return child
    output = os.open(folder / "output.txt", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.setsid()  # a job that hangs is ended with the processes that it started
    os.chdir(folder)
    sys.path[:0] = [str(folder / "src"), str(folder)]
    sys.dont_write_bytecode = True
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path[:2])
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    code = 3  # pytest's own for an internal error
    try:
        options = [
            "-q",
            "--tb=short",
            "-p",
            "mutant_plugin",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:unraisableexception",
        ]
        code = int(pytest.main([*options, *(f"tests/{test}" for test in job.tests)]))
    finally:
        sys.stdout.flush()
        os._exit(code)


def run(jobs: Sequence[Job], num_parallel: int) -> Iterator[tuple[Job, Result]]:
    """Run each job on a copy of its own, and yield the results as they come."""
    waiting, running = list(jobs), {}
    with tempfile.TemporaryDirectory(prefix="mutants-") as root:
        while waiting or running:
            while waiting and len(running) < num_parallel:
                job = waiting.pop(0)
                folder = Path(root) / job.name
                folder.mkdir(parents=True)
                try:
                    make_copy(folder, job.edits)
                except StaleMutantError as error:
                    yield job, Result("STALE", {}, str(error), 0.0)
                    continue
                running[fork(job, folder)] = job, folder, time.monotonic()
            time.sleep(0.1)
            for child, (job, folder, start) in list(running.items()):
                ended, status = os.waitpid(child, os.WNOHANG)
                seconds = time.monotonic() - start
                if not ended and seconds < TIMEOUT_SECONDS:
                    continue
                if not ended:
                    os.killpg(child, signal.SIGKILL)
                    os.waitpid(child, 0)
                del running[child]
                written = folder / "failures.json"
                failures = json.loads(written.read_text(encoding="utf-8")) if written.is_file() else {}
                output = (folder / "output.txt").read_text(encoding="utf-8", errors="replace")
                code = os.waitstatus_to_exitcode(status) if ended else "HANGS"
                shutil.rmtree(folder)
                yield job, Result(code, failures, output, seconds)


def failure_of(test: str, failures: dict[str, str]) -> str | None:
    """Return the first line of a test's failure, of any of its cases where no parameters are named."""
    node = f"tests/{test}"
    return next(
        (text for name, text in failures.items() if name == node or name.startswith(f"{node}[")), None
    )


def judge(job: Job, result: Result) -> tuple[str, list[str]]:
    """Return the verdict on a mutant, "killed" or another, and lines that explain it."""
    if isinstance(result.code, str):
        return result.code, result.output.splitlines()[-5:]
    if result.code not in (0, 1):
        return "BROKEN", result.output.splitlines()[-20:]
    passed = [test for test in job.tests if failure_of(test, result.failures) is None]
    if passed:
        return "SURVIVED", [f"passes all the same: {test}" for test in passed]
    return "killed", [f"{test}: {failure_of(test, result.failures)}" for test in job.tests]


def check_unmutated(tests: Sequence[str], num_parallel: int) -> bool:
    """Run all named tests once on unchanged copies, one for each file; return whether every one passes."""
    by_file: dict[str, list[str]] = {}
    for test in tests:
        by_file.setdefault(test.split("::")[0], []).append(test)
    jobs = [Job(f"unchanged-{file}", (), tuple(those)) for file, those in by_file.items()]
    all_pass = True
    for _job, result in run(jobs, num_parallel):
        if result.code != 0:
            print(result.output)
            all_pass = False
    return all_pass


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="run these mutants alone")
    parser.add_argument("--jobs", type=int, default=2, help="mutants at a time (default 2)")
    parser.add_argument("--list", action="store_true", help="print the mutants and stop")
    parser.add_argument("--verbose", action="store_true", help="show how each test failed")
    arguments = parser.parse_args()
    names = [m.name for m in MUTANTS]
    assert len(set(names)) == len(names)
    unknown = sorted(set(arguments.only or ()) - set(names))
    if unknown:
        parser.error(f"no mutants named {', '.join(unknown)}; --list shows all")
    return arguments


def main() -> int:
    arguments = parse_arguments()
    mutants = [m for m in MUTANTS if not arguments.only or m.name in arguments.only]
    if arguments.list:
        for m in mutants:
            print(f"{m.name}: {m.meaning}", *m.tests, sep="\n    ")
        return 0
    start = time.monotonic()
    tests = sorted({test for m in mutants for test in m.tests})
    print(f"{len(mutants)} mutants; first their {len(tests)} tests on the unchanged code", flush=True)
    import_once()
    if not check_unmutated(tests, arguments.jobs):
        print("The tests above must pass before they can tell a mutant.")
        return 1
    print(f"all pass ({time.monotonic() - start:.0f} s)", flush=True)

    by_name = {m.name: m for m in mutants}
    verdicts: dict[str, str] = {}
    for job, result in run([Job(m.name, m.edits, m.tests) for m in mutants], arguments.jobs):
        verdict, details = judge(job, result)
        verdicts[job.name] = verdict
        progress = f"[{len(verdicts):{len(str(len(mutants)))}}/{len(mutants)}]"
        meaning = by_name[job.name].meaning
        print(f"{progress} {verdict:8} {job.name} ({result.seconds:.0f} s): {meaning}", flush=True)
        if verdict != "killed" or arguments.verbose:
            print(*(f"      {line}" for line in details), sep="\n", flush=True)
    gc.unfreeze()
    alive = [name for name, verdict in verdicts.items() if verdict != "killed"]
    print(f"{len(mutants) - len(alive)} of {len(mutants)} mutants killed in {time.monotonic() - start:.0f} s")
    if alive:
        print("not killed:", ", ".join(alive))
    return 1 if alive else 0


if __name__ == "__main__":
    sys.exit(main())
