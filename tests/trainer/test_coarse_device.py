"""A device without float64, as Apple's MPS is: a stand-in refuses that type, and tensors of two devices."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from srpo_trl.loss.float64 import has_float64

SCRIPT = Path(__file__).parents[1] / "support" / "coarse_device.py"
NOT_NUMBERS_OF_TRAINING = ("seconds", "memory", "step_time", "train_")


# Weights of the divergence; none; rows by token; a pull.
@pytest.mark.parametrize(
    "methods", [("srpo",), pytest.param(("sdpo", "gtpo", "eksft"), marks=pytest.mark.slow)]
)
def test_every_number_is_that_of_the_cpu(methods):
    # In a process of its own: torch cannot forget a device.
    done = subprocess.run([sys.executable, SCRIPT, *methods], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    logs = json.loads(done.stdout)
    for method in methods:
        on_cpu, on_device = logs[method]
        assert len(on_cpu) == len(on_device) == 4
        for of_cpu, of_device in zip(on_cpu, on_device, strict=True):
            assert of_device.keys() == of_cpu.keys()
            for name, number in of_cpu.items():
                if not any(part in name for part in NOT_NUMBERS_OF_TRAINING):
                    expected = number and pytest.approx(number, rel=1e-4, abs=1e-6)  # None: there was none
                    assert of_device[name] == expected, (method, name)


def test_mps_is_such_a_device():
    assert [has_float64(torch.device(name)) for name in ("mps", "cpu", "cuda")] == [False, True, True]
