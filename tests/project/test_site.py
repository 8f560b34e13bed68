"""The documentation builds as a site, warnings as errors, and every page is in its menu."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install 'srpo-trl[docs]'")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def test_every_page_is_built_and_in_the_menu(site):
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")} - {"index"}
    menu = (site / "index.html").read_text(encoding="utf-8")
    for page in pages:
        assert (site / page / "index.html").is_file()
        assert f'href="{page}/"' in menu, page


def test_no_page_links_outside_the_site(site):
    for page in site.rglob("index.html"):
        text = page.read_text(encoding="utf-8")
        assert "../src/" not in text, page
        assert "../tests/" not in text, page


def test_the_api_page_has_docstrings(site):
    text = (site / "api" / "index.html").read_text(encoding="utf-8")
    for name in ("SRPOTrainer", "SRPOConfig", "distillation_loss", "load_benchmark", "GuardCallback"):
        assert f".{name}" in text, name
    assert "The weighted sum of the tokens" in text
