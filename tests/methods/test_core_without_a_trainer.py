"""Everything between grading and the loss works on values: no trainer is imported, and the oracle agrees."""

import os
import subprocess
import sys
from pathlib import Path

from method_names import PAPER

SCRIPT = Path(__file__).parents[1] / "support" / "core_run.py"
BLOCKED = ("trl.trainer.grpo_trainer", "transformers.trainer", "srpo_trl.seams.trl")  # their import fails
RUN = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({BLOCKED!r}))
runpy.run_path({str(SCRIPT)!r}, run_name="__main__")
"""


def test_routes_prompts_and_loss_from_values_alone():
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    run = subprocess.run(
        [sys.executable, "-c", RUN], capture_output=True, text=True, env=environment, timeout=300
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.split() == list(PAPER)
