"""The site in Chromium: what it asks other hosts for, names that are broken, pages that are too wide, search from disk.

Pictures of the pages are left in build/screenshots, to be looked at.
"""

import functools
import html
import http.server
import json
import re
import shutil
import subprocess
import threading

import pytest

from site_pages import ROOT, built_site

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PAGES = ("index", "concepts", "maths", "options", "api", "recipes")
WIDTHS = (1300, 420)
SCREENSHOTS = ROOT / "build" / "screenshots"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="there is no Chromium: pages are not looked at"),
]

# Written beside the pages. A window of Chromium is at least 500 pixels wide, a frame in it is not.
FRAME = """<body style="margin:0"><iframe src="{page}.html" style="border:0;width:{width}px;height:2000px"></iframe>
<script>
addEventListener("load", () => setTimeout(() => {{
  const inner = document.querySelector("iframe").contentWindow, page = inner.document;
  const names = [...page.querySelectorAll("td code")].filter((code) => /^[\\w./-]+$/.test(code.textContent));
  document.body.dataset.found = JSON.stringify({{
    broken: names.filter((code) => !code.querySelector("wbr") && code.getClientRects().length > 1)
      .map((code) => code.textContent),
    overflow: page.documentElement.scrollWidth - inner.innerWidth,
    loaded: inner.performance.getEntriesByType("resource").map((entry) => entry.name),
    scheme: page.body.dataset.mdColorScheme,
  }});
}}, 1000));
</script></body>"""
SEARCH = """<script>
addEventListener("load", () => {
  setTimeout(() => {
    const query = document.querySelector(".md-search__input");
    query.focus();
    query.value = "entropy";
    query.dispatchEvent(new Event("keyup", { bubbles: true }));
  }, 500);
  setTimeout(() => {
    document.body.dataset.found = document.querySelectorAll(".md-search-result__item").length;
  }, 4000);
});
</script></body>"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return built_site(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def address(site):
    quiet = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def browse(address, profile, *options):
    command = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [f"--user-data-dir={profile}", "--virtual-time-budget=8000", *options, address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def found_in(page):
    return json.loads(html.unescape(re.search(r'data-found="([^"]*)"', page)[1]))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("page", PAGES)
def test_a_page_fits_its_width_breaks_no_name_and_asks_no_other_host(site, address, tmp_path, page, width):
    (site / "frame.html").write_text(FRAME.format(page=page, width=width), encoding="utf-8")
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    for number, scheme in enumerate(("dark", "light")):
        look = f"--blink-settings=preferredColorScheme={number}", "--window-size=1300,2000"
        profile = tmp_path / scheme
        found = found_in(browse(f"{address}/frame.html", profile, *look, "--dump-dom"))
        assert found["broken"] == []
        assert found["overflow"] <= 0
        assert found["loaded"]
        assert [name for name in found["loaded"] if not name.startswith(address)] == []
        assert found["scheme"] == {"dark": "slate", "light": "default"}[scheme]
        picture = SCREENSHOTS / f"{page}-{width}-{scheme}.png"
        browse(f"{address}/frame.html", profile, *look, f"--screenshot={picture}")
        assert picture.stat().st_size > 20_000


def test_search_finds_from_disk(site, tmp_path):
    page = site / "searched.html"
    page.write_text(
        (site / "concepts.html").read_text(encoding="utf-8").replace("</body>", SEARCH), encoding="utf-8"
    )
    assert found_in(browse(page.as_uri(), tmp_path / "profile", "--dump-dom")) > 3
