"""Tables of figures, with the machine and the versions they were measured on."""

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch

_VERSIONS_OF = ("srpo-trl", "torch", "triton", "trl", "transformers", "liger-kernel")
DOES_NOT_FIT = "does not fit"


class Table(NamedTuple):
    """Rows with the same keys, which are the columns."""

    title: str
    rows: list[dict[str, Any]]
    note: str = ""


def gigabytes(num_bytes: int | None) -> str:
    """Return the number as text in 10^9 bytes; None is what did not fit."""
    return DOES_NOT_FIT if num_bytes is None else f"{num_bytes / 1e9:.3f}"


def markdown(table: Table) -> str:
    """Return the table as Markdown, its title above and its note below."""
    columns = list(table.rows[0])
    lines = [f"### {table.title}", "", "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(_text(row[column]) for column in columns) + " |" for row in table.rows]
    return "\n".join(lines + (["", table.note] if table.note else [])) + "\n"


def _text(value: Any) -> str:
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def write_whole(path: Path, text: str) -> None:
    """Replace the file by one with this text, or leave it as it was."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def environment(device: torch.device) -> dict[str, str]:
    """Return when, on what and with which versions something is measured."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        hardware = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
    else:
        num_threads = torch.get_num_threads()
        clock = "1 thread, seconds of the process" if num_threads == 1 else f"{num_threads} threads"
        hardware = f"{os.cpu_count()} CPU cores, {_processor()}; {clock}"
    versions = {}
    for name in _VERSIONS_OF:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": hardware,
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items())
        + f", Python {platform.python_version()}",
    }


def commit() -> str:
    """Return the checkout's commit, and whether files differ from it."""
    root = Path(__file__).resolve().parents[1]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        try:
            return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
        except OSError:  # no git here
            return ""

    revision = git("rev-parse", "--short", "HEAD") or "unknown"
    return f"{revision} and uncommitted changes" if git("status", "--porcelain") else revision


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"{platform.machine()} {model}".strip()


def parser(description: str, prog: str | None = None) -> argparse.ArgumentParser:
    """Return a parser with the options that all benchmarks have."""
    options = argparse.ArgumentParser(prog=prog, description=description)
    default = "cuda" if torch.cuda.is_available() else "cpu"
    options.add_argument("--device", type=torch.device, default=torch.device(default), help=default)
    options.add_argument("--quick", action="store_true", help="tiny sizes: whether it runs, not how fast")
    options.add_argument("--json", type=Path, help="write the figures to this file, too")
    return options


def report(tables: Iterable[Table], header: Mapping[str, str], json_path: Path | None) -> None:
    """Print header and tables as Markdown, each as soon as it is made; with `json_path`, keep both there, too."""
    print("\n".join(f"{name}: {value}  " for name, value in header.items()), end="\n\n", flush=True)
    made: list[dict[str, Any]] = []
    for table in tables:
        print(markdown(table), flush=True)
        made.append(table._asdict())
        if json_path is not None:
            content = {"environment": dict(header), "tables": made}
            json_path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
