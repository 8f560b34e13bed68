"""Windows, taken from what it lacks: nothing here has run on a Windows machine."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "support" / "like_windows.py"
NOT_UTF_8 = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C", "PYTHONIOENCODING": "cp1252"}


def test_a_run_is_saved_resumed_and_reported(tmp_path):
    done = subprocess.run(
        [sys.executable, SCRIPT, tmp_path], capture_output=True, env=os.environ | NOT_UTF_8, check=False
    )
    assert done.returncode == 0, done.stderr.decode("cp1252", errors="replace")[-3000:]
    assert (tmp_path / "checkpoint-3").is_dir()
    assert (tmp_path / "report.html").is_file()
