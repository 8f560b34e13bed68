"""One section in this process: waits for a line on standard input, then measures part by part.

    python -m benchmarks.gpu.child PARENT NAME MODULE OUT DEVICE TINY MODEL

What it imports is imported before the line comes, while another section is still measured; the device is touched
afterwards. The line is JSON: the seconds that the section has, and the call that it belongs to. Started by
`benchmarks.gpu.runner`, as the leader of a process group, which ends with the process that started it, PARENT: by its
number, since it can be gone before this process has one line behind it.
"""

import importlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from benchmarks.children import end_with
from benchmarks.gpu.record import DONE, FAILED, RUNNING, Record
from benchmarks.gpu.sections import Part, Setting

NO_DEVICE, BROKEN = 3, 4  # exit statuses
_MOST_OF_A_REASON = 300  # characters


def main(arguments: Sequence[str]) -> int:
    """Measure what is missing in the section's record; return 0, `NO_DEVICE` or `BROKEN`."""
    parent, name, module, out, device, tiny, model = arguments
    end_with(int(parent), _end_group)
    import torch

    from benchmarks.tables import commit, environment

    section = importlib.import_module(module)
    line = sys.stdin.readline()
    if not line:
        return 0  # nobody needs it any more
    if device == "cuda" and not torch.cuda.is_available():
        return NO_DEVICE
    given = json.loads(line)
    setting = Setting(device, tiny == "1", Path(model) if model else None, given["seconds"], Path(out))
    record = Record(Path(out), name)
    where = environment(torch.device(device)) | {"commit": commit()}
    for part in record.announce(section.parts(setting), where, given["call"]):
        _measure(part, record, given["call"])
        if device == "cuda" and (what := _broken(torch.device(device))):
            print(f"the device answers no more: {what}", flush=True)
            return BROKEN
    return 0


def _measure(part: Part, record: Record, call: str) -> None:
    record.note_part(part.name, RUNNING, call=call)
    start = time.monotonic()
    try:
        rows = list(part.rows())
    except Exception as error:
        traceback.print_exc()
        reason = f"{type(error).__name__}: {error}"[:_MOST_OF_A_REASON].replace("\n", " ")
        record.note_part(part.name, FAILED, reason=reason, seconds=round(time.monotonic() - start, 2))
    else:
        record.note_part(part.name, DONE, rows=rows, seconds=round(time.monotonic() - start, 2))
    sys.stdout.flush()


def _broken(device: "torch.device") -> str:  # noqa: F821
    """Return what is wrong with the device, after which no part of this process can be measured."""
    from benchmarks.measure import free_memory, synchronize

    try:
        free_memory(device)
        synchronize(device)
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return ""


def _end_group() -> None:
    """End this process and all that it started."""
    os.killpg(os.getpgid(0), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
