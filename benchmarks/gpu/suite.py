"""f: the tests that are marked `gpu`, file by file; with `--device cpu` those of them that run on a CPU, too."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.sections import Part, Row, Setting

TESTS = Path(__file__).resolve().parents[2] / "tests"
_MOST_OF_A_REASON = 160  # characters


def parts(setting: Setting) -> list[Part]:
    """One part a file."""
    found = [p for p in TESTS.rglob("test_*.py") if p.parent.name == "gpu" or _is_marked(p, "gpu")]
    files = sorted(found, key=_order)
    if setting.device == "cpu":
        files = [path for path in files if path.parent.name == "gpu"]
    if setting.tiny:
        files = files[:1]
    marks = "gpu" if setting.device == "cuda" else "not gpu and not slow"
    return [Part(path.stem, "Tests", lambda path=path: run_tests(path, marks)) for path in files]


def _order(path: Path) -> tuple[bool, bool, str]:
    """The tests of a device first; those of them that compile, which is slow, last of all."""
    is_of_device = path.parent.name == "gpu"
    return is_of_device and _is_marked(path, "slow"), not is_of_device, path.name


def _is_marked(path: Path, mark: str) -> bool:
    text = path.read_text(encoding="utf-8")
    return re.search(rf"^@pytest\.mark\.{mark}$", text, re.MULTILINE) is not None


def run_tests(path: Path, marks: str) -> Iterator[Row]:
    """One row a test.

    Raises:
        RuntimeError: pytest itself failed, as where a file cannot be imported.
    """
    outcomes = Outcomes()
    arguments = ["-q", "-p", "no:cacheprovider", "-m", marks, "--rootdir", str(TESTS.parent), str(path)]
    status = pytest.main(arguments, plugins=[outcomes])
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED):
        raise RuntimeError(f"pytest ended with {status!r}: {outcomes.trouble}")
    yield from outcomes.rows.values()


class Outcomes:
    """What became of each test; a plugin of pytest."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        self.trouble = ""

    def pytest_collectreport(self, report: Any) -> None:
        """Keep why a file could not be collected."""
        if report.failed:
            self.trouble = _end_of(report.longreprtext)

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Take the call's outcome, or that of the set-up or the end where these fail or skip."""
        if report.when == "call" or not report.passed:
            why = (
                report.longrepr[2]
                if report.skipped
                else _end_of(report.longreprtext)
                if report.failed
                else ""
            )
            self.rows[report.nodeid] = {
                "test": report.nodeid.rpartition("/")[2],
                "outcome": report.outcome,
                "seconds": report.duration,
                "why": why.replace("|", "/"),
            }


def _end_of(text: str) -> str:
    """The last line that says what went wrong."""
    lines = [line for line in text.splitlines() if line.startswith("E ")] or text.splitlines() or [""]
    return lines[-1].removeprefix("E ").strip()[:_MOST_OF_A_REASON]
