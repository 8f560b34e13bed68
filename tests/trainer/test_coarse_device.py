"""A device without float64, as Apple's MPS is: a stand-in refuses that type, and tensors of two devices."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "support" / "coarse_device.py"
# Weights of the divergence; none; rows by token; a pull.
METHODS = ("srpo", "sdpo", "gtpo", "eksft")
NOT_NUMBERS_OF_TRAINING = ("seconds", "memory", "step_time", "train_")


@pytest.fixture(scope="module")
def logs():
    """Logs of each method, on the CPU and on the device; in a process of its own, which torch knows the device in."""
    done = subprocess.run([sys.executable, SCRIPT, *METHODS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("method", METHODS)
def test_every_number_is_that_of_the_cpu(logs, method):
    on_cpu, on_device = logs[method]
    assert len(on_cpu) == len(on_device) == 4
    for of_cpu, of_device in zip(on_cpu, on_device, strict=True):
        assert of_device.keys() == of_cpu.keys()
        numbers = [name for name in of_cpu if not any(part in name for part in NOT_NUMBERS_OF_TRAINING)]
        for name in numbers:
            expected = of_cpu[name] and pytest.approx(
                of_cpu[name], rel=1e-4, abs=1e-6
            )  # None: there was none
            assert of_device[name] == expected, name
