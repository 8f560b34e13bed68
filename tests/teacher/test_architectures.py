"""The table of docs/architectures.md: its form, and (slow) that it says what is seen."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
import trl
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "architectures.md"
if not PAGE.is_file():
    pytest.skip("docs/ is not beside tests/", allow_module_level=True)
TEXT = PAGE.read_text(encoding="utf-8")
VERSIONS = re.search(r"^transformers (\S+), TRL (\S+), torch (\S+):", TEXT, flags=re.MULTILINE).groups()
INSTALLED = (transformers.__version__, trl.__version__, torch.__version__.split("+")[0])
ROWS = dict(re.findall(r"^\| `([^`]+)` \| [^|]* \| ([^|]+) \|", TEXT, flags=re.MULTILINE))
same_versions = pytest.mark.skipif(
    INSTALLED != VERSIONS,
    reason=f"the table is of {VERSIONS}; python scripts/architectures --write makes another",
)


def test_none_trains_on_wrong_numbers():
    assert set(ROWS.values()) == {"exact", "refused", "fails in TRL itself", "not built"}
    counts = re.search(r"torch \S+: (.*)\.$", TEXT, flags=re.MULTILINE)[1]
    for number, outcome in re.findall(r"(\d+) ([^,]+)", counts):
        assert int(number) == sum(found == outcome for found in ROWS.values())


@same_versions
def test_every_architecture_is_there():
    assert set(ROWS) == set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


@pytest.mark.slow
@same_versions
def test_table_says_what_is_seen():
    command = [sys.executable, str(ROOT / "scripts" / "architectures"), "--jobs", "2"]
    seen = subprocess.run(command, capture_output=True, text=True, timeout=3600)
    assert seen.returncode == 0, "\n".join(seen.stdout.splitlines()[-20:]) + seen.stderr[-2000:]
