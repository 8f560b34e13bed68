"""The graders of the paper's runs, restated from their description, and the published rows.

Imports nothing from the package.
"""

import json
import os
import re
from collections import Counter
from pathlib import Path

import pytest

DATA_DIR = Path(os.environ.get("SRPO_DATA_DIR") or Path(__file__).parents[3] / "shared" / "data")


def official_science_score(text, key):
    """1.0 if the text after the last opening tag (all of it without one), up to a closing tag, is the key."""
    opening, closing = "<answer>", "</answer>"
    start = text.rfind(opening)
    tail = text if start < 0 else text[start + len(opening) :]
    end = tail.find(closing)
    return float((tail if end < 0 else tail[:end]).strip() == key)


def official_tool_use(text, reference):
    """(score, feedback): names are word characters, a block ends at its first brace, bad ones are dropped."""
    calls = json.loads(reference)
    expected_names = [call["Action"] for call in calls]
    expected_input = {}
    for call in calls:
        expected_input |= _flat(call["Action_Input"])
    names = re.findall(r"Action:\s*(\w+)", text)
    merged = {}
    for block in re.findall(r"Action Input:\s*(\{[^}]*\})", text):
        merged |= _flat(block)
    faults = []
    if Counter(names) != Counter(expected_names):
        faults.append(f"Actions mismatch: predicted {names}, expected {expected_names}")
    if merged != expected_input:
        faults.append(f"Action inputs mismatch: predicted {merged}, expected {expected_input}")
    return float(not faults), "; ".join(faults)


def _flat(text):
    try:
        return json.loads(text)
    except ValueError:
        return {}


def real_rows(folder):
    paths = sorted((DATA_DIR / folder).glob("*.json"))
    if not paths:
        pytest.skip(
            f"no published rows in {DATA_DIR / folder}; set SRPO_DATA_DIR to the folder that holds {folder}"
        )
    return [json.loads(line) for path in paths for line in path.read_text("utf-8").split("\n") if line]


def score(reward, text, answer):
    """(reward, feedback) of one plain completion."""
    extra = {}
    values = reward(completions=[text], answer=[answer], log_extra=extra.__setitem__)
    return values[0], extra["feedback"][0]
