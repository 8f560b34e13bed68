"""A Slurm cluster of loopback addresses: `scontrol`, `srun`, `sbatch` and `vllm` for the PATH of a test.

Run as one of them, by its first argument. `srun` starts a task for each of its nodes, with the number of the node
within the step in SLURM_NODEID, as Slurm has it; in the batch script the variable is 0.
"""

import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

NODES = ("127.0.0.1", "127.0.0.2", "127.0.0.3")
JOB = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[1-3]", "SLURM_NODEID": "0"}
_POLL_SECONDS = 0.1


def install(folder: Path) -> Path:
    """Write the programs to `folder` and return it."""
    folder.mkdir()
    for name in ("scontrol", "srun", "sbatch", "vllm"):
        program = folder / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" {name} "$@"\n', encoding="utf-8")
        program.chmod(0o755)
    return folder


def scontrol(words: list[str]) -> int:
    """Print the nodes of the job."""
    assert words == ["show", "hostnames", JOB["SLURM_JOB_NODELIST"]]
    print("\n".join(NODES))
    return 0


def sbatch(words: list[str]) -> int:
    """Keep the script."""
    Path(os.environ["SUBMITTED"]).write_text(sys.stdin.read(), encoding="utf-8")
    return 0


def srun(words: list[str]) -> int:
    """Run the command once on each node; a TERM, or a task that fails, ends the others."""
    options = {}
    while words[0].startswith("--"):
        name, _, options_value = words.pop(0).partition("=")
        options[name] = options_value
    nodes = options["--nodelist"].split(",")
    assert len(nodes) == int(options["--nodes"]) == int(options["--ntasks"])
    tasks = [
        subprocess.Popen(
            words, env=os.environ | {"SLURM_NODEID": str(number), "SLURMD_NODENAME": node}, process_group=0
        )
        for number, node in enumerate(nodes)
    ]

    def end(*_: object) -> None:
        for task in tasks:
            if task.poll() is None:
                os.killpg(task.pid, signal.SIGTERM)

    signal.signal(signal.SIGTERM, end)
    while any(task.poll() is None for task in tasks):
        if "--kill-on-bad-exit" in options and any(task.poll() for task in tasks):
            end()
        time.sleep(_POLL_SECONDS)
    return max(task.returncode if task.returncode >= 0 else 128 - task.returncode for task in tasks)


class _Health(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()


def vllm(words: list[str]) -> int:
    """Answer /health on the port that is asked for, after a moment."""
    assert os.environ["VLLM_SERVER_DEV_MODE"] == "1"
    with open(os.environ["SERVER_STARTS"], "a", encoding="utf-8") as file:
        file.write(" ".join(words) + "\n")
    if "absent" in words:
        print("no such model")
        return 1
    time.sleep(0.5)
    HTTPServer(("0.0.0.0", int(words[words.index("--port") + 1])), _Health).serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit({"scontrol": scontrol, "srun": srun, "sbatch": sbatch, "vllm": vllm}[sys.argv[1]](sys.argv[2:]))
