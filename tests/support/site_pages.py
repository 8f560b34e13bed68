"""The documentation built as a site, and the pages of its menu."""

import re
from pathlib import Path

import pytest

pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install 'srpo-trl[docs]'")

from mkdocs.commands.build import build
from mkdocs.config import load_config

ROOT = Path(__file__).resolve().parents[2]
NAV = re.findall(
    r"^ +- (?:[^:\n]+: )?(\w+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE
)


def built_site(folder: Path) -> Path:
    """Build the site into the folder; a warning is an error."""
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True))
    return folder
