"""A section of `benchmarks.gpu` that fails, hangs or dies where it is told to: by the environment's FAKE.

FAKE_LOG is a file that gets a line for every part that is begun. As a program it runs such sections:

    python gpu_parts.py OUT NAME=FAKE ...
"""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.gpu.sections import Part, Section

LIMIT = 12.0  # seconds: time enough to import torch on a busy machine


def parts(setting):
    return [Part(name, "Figures", partial(rows, name), "A note.") for name in ("first", "second", "third")]


def rows(name):
    with Path(os.environ["FAKE_LOG"]).open("a", encoding="utf-8") as log:
        log.write(f"{name}\n")
    if name == "second":
        FAKES[os.environ["FAKE"]]()
    yield {"part": name, "value": len(name)}


def fail():
    raise ValueError("the second part\nwent wrong")


def hang():
    sleeper = subprocess.Popen(["sleep", "1000"])
    Path(os.environ["FAKE_LOG"]).with_suffix(".pid").write_text(f"{os.getpid()} {sleeper.pid}")
    time.sleep(1000)


def die():
    os.kill(os.getpid(), signal.SIGSEGV)


FAKES = {"good": lambda: None, "fails": fail, "hangs": hang, "dies": die}


def section(name, fake, limit=LIMIT):
    return Section(name, "gpu_parts", limit, on_cpu={"FAKE": fake})


if __name__ == "__main__":
    from benchmarks.gpu.runner import Options, run

    folder, *named = sys.argv[1:]
    made = [section(*text.split("=")) for text in named]
    sys.exit(run(made, Options(Path(folder), 8.0, "cpu", True, None)))
