"""Builds every causal language model of transformers tiny, trains each for a step and says which are right.

    python scripts/architectures [--write] [--only MODEL_TYPE ...] [--jobs 2]

`--write` puts the table, or these rows of it, into docs/architectures.md. The exit code is 1 where an architecture
trains on wrong numbers, or where the table does not say what is seen.
"""

import argparse
import contextlib
import os
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

os.environ.update(
    HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", TRL_EXPERIMENTAL_SILENCE="1", WANDB_MODE="disabled"
)

import torch
import transformers
import trl
from examine import EXACT, NOT_BUILT, REFUSED, TRL_FAILS, WRONG, Finding, examine
from tiny import MODEL_TYPES

PAGE = Path(__file__).resolve().parents[2] / "docs" / "architectures.md"
TIMEOUT_SECONDS = 120  # for one architecture, on a busy machine
MARK = "<!-- written by python scripts/architectures --write -->\n"


def run(model_types: Sequence[str], num_parallel: int) -> Iterator[Finding]:
    """Yield what becomes of each, every one in a process of its own that may take `TIMEOUT_SECONDS`."""
    waiting, running = list(model_types), {}
    while waiting or running:
        while waiting and len(running) < num_parallel:
            model_type = waiting.pop(0)
            read, write = os.pipe()
            child = os.fork()
            if not child:
                _examine_and_exit(model_type, write)
            os.close(write)
            running[child] = model_type, read, time.monotonic()
        time.sleep(0.05)
        for child, (model_type, read, start) in list(running.items()):
            ended, _ = os.waitpid(child, os.WNOHANG)
            if not ended and time.monotonic() - start < TIMEOUT_SECONDS:
                continue
            if not ended:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
            del running[child]
            with os.fdopen(read) as pipe:
                fields = pipe.read().split("\t")
            why = "ends its process" if ended else f"takes over {TIMEOUT_SECONDS} seconds"
            yield (
                Finding(*fields)
                if len(fields) == len(Finding._fields)
                else Finding(model_type, "", WRONG, why)
            )


def _examine_and_exit(model_type: str, write: int) -> None:
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    torch.set_num_threads(1)
    with contextlib.suppress(BaseException):  # a process without a result is a finding, too
        os.write(write, "\t".join(field.replace("\t", " ") for field in examine(model_type)).encode())
    os._exit(0)


def table(findings: Sequence[Finding]) -> str:
    """Return the page's table, with counts and versions above it."""
    counts = Counter(finding.outcome for finding in findings)
    order = (EXACT, REFUSED, TRL_FAILS, NOT_BUILT, WRONG)
    lines = [
        f"transformers {transformers.__version__}, TRL {trl.__version__}, torch {torch.__version__.split('+')[0]}: "
        + ", ".join(f"{counts[outcome]} {outcome}" for outcome in order if counts[outcome])
        + ".",
        "",
        "| model type | class | outcome | remark |",
        "|---|---|---|---|",
    ]
    for finding in sorted(findings):
        remark = re.sub(r"([|<>])", r"\\\1", finding.remark)
        lines.append(f"| `{finding.model_type}` | {finding.class_name} | {finding.outcome} | {remark} |")
    return "\n".join(lines) + "\n"


def findings_on_page(text: str) -> list[Finding]:
    """Return the rows of the page's table."""
    rows = re.findall(r"^\| `([^`]+)` \| (.*?) \| (.*?) \| (.*?) \|$", text, flags=re.MULTILINE)
    return [Finding(*fields, re.sub(r"\\([|<>])", r"\1", remark)) for *fields, remark in rows]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write the table into docs/architectures.md")
    parser.add_argument("--only", nargs="+", metavar="MODEL_TYPE", choices=MODEL_TYPES, help="only these")
    parser.add_argument("--jobs", type=int, default=2, help="architectures at a time (default 2)")
    arguments = parser.parse_args()
    findings = []
    for finding in run(arguments.only or MODEL_TYPES, arguments.jobs):
        print(*finding, sep=" | ", flush=True)
        findings.append(finding)
    page = PAGE.read_text(encoding="utf-8")
    if arguments.write:
        seen = {finding.model_type for finding in findings}
        findings += [finding for finding in findings_on_page(page) if finding.model_type not in seen]
        PAGE.write_text(page.split(MARK)[0] + MARK + "\n" + table(findings), encoding="utf-8")
    stated = {row.model_type: row.outcome for row in findings_on_page(PAGE.read_text(encoding="utf-8"))}
    others = [finding for finding in findings if stated.get(finding.model_type) != finding.outcome]
    for finding in others:
        print(
            f"{PAGE.name} says {stated.get(finding.model_type)!r} of {finding.model_type}, seen: {finding.outcome!r}"
        )
    return 1 if others or any(finding.outcome == WRONG for finding in findings) else 0


if __name__ == "__main__":
    sys.exit(main())
