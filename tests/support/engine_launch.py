"""Launches the scenarios of `engine_processes` under an engine, with two processes."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from engine_options import ENGINES
from harness import relative_error

HERE = Path(__file__).parent


def launch(engine, folder, *names, num_processes=2):
    if engine.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed")
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *("--nproc_per_node", str(num_processes)),
        *(str(HERE / "engine_processes.py"), engine, str(folder), *names),
    ]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(command, env=environment, capture_output=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr.decode()[-6000:]
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(num_processes)]


def assert_same(found, expected, engine, num_processes=2):
    name, is_sharded = ENGINES[engine]
    assert (found["engine"], found["num_processes"]) == (name, num_processes)
    held = pytest.approx(0.5, abs=0.01) if is_sharded else 1.0
    assert found["held"] == found["teacher_held"] == held
    assert found["update_messages"] == 0
    assert relative_error(found["update"], expected["update"]) < 1e-5
    assert relative_error(found["teacher"], expected["teacher"]) < 1e-7
    # its move is 1/1000 of its float32 values, whose rounding it carries
    assert relative_error(found["teacher_moved"], expected["teacher_moved"]) < 1e-4
    assert found["num_updates"] == expected["num_updates"] > 0
    assert found["routes"] == expected["routes"]
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-4, abs=1e-5)
    assert found["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4)
    assert found["distance"] == pytest.approx(expected["distance"], rel=1e-4)
