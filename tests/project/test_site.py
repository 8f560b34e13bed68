"""The documentation as a site: it builds without a warning, loads nothing from elsewhere, links to what is there."""

import ast
import dataclasses
import inspect
import re
from collections import defaultdict
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from trl import GRPOConfig

from site_pages import NAV, ROOT, built_site
from srpo_trl import SRPOConfig, SRPOTrainer

LOADED = {"script": "src", "img": "src", "source": "srcset", "iframe": "src", "video": "src"}
# A fence of mathematics, and mathematics in a line, as GitHub reads them.
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"\$(?=\S)[^$\n]+(?<=\S)\$")


class Page(HTMLParser):
    """What a page loads, links to and can be linked at."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loads, self.links, self.anchors, self.meta = [], [], set(), {}
        self.count = defaultdict(int)
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.count[tag] += 1
        self.anchors |= {given[name] for name in ("id", "name") if given.get(name)}
        if tag in LOADED and given.get(LOADED[tag]):
            self.loads.append(given[LOADED[tag]])
        if tag == "link" and given.get("rel") not in ("canonical", "prev", "next"):
            self.loads.append(given["href"])
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        if tag == "meta" and "name" in given:
            self.meta[given["name"]] = given["content"]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return built_site(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def pages(site):
    return {path.name: Page(path) for path in site.glob("*.html") if path.name != "404.html"}


def test_every_page_is_in_the_menu_and_can_be_read_from_disk(site, pages):
    assert set(pages) == {Path(page).with_suffix(".html").name for page in NAV}
    for page in pages.values():
        assert set(pages) <= {unquote(urlsplit(link).path) for link in page.links}
    assert "var __index" in (site / "search" / "search_index.js").read_text(encoding="utf-8")


def test_nothing_is_loaded_from_elsewhere(site, pages):
    for name, page in pages.items():
        for address in page.loads:
            assert not urlsplit(address).netloc, (name, address)
            assert (site / urlsplit(address).path).is_file(), (name, address)
        assert "data-md-component=source" not in (site / name).read_text(encoding="utf-8").replace('"', "")
    for sheet in site.rglob("*.css"):
        for address in re.findall(r"(?:url\(|@import\s+)[\"']?([^\"')]+)", sheet.read_text(encoding="utf-8")):
            assert address.startswith("data:") or not urlsplit(address).netloc, (sheet, address)


def test_links_within_the_site_lead_somewhere_and_others_are_secure(site, pages):
    repository = yaml.safe_load(re.search(r"^repo_url: .*", _settings(), re.MULTILINE)[0])["repo_url"]
    for name, page in pages.items():
        for link in page.links:
            target = urlsplit(link)
            if target.scheme or target.netloc:
                assert target.scheme == "https", (name, link)
                path = re.match(rf"{re.escape(repository)}/(?:blob|tree|edit)/main/(.*)", link)
                assert path is None or (ROOT / unquote(urlsplit(path[1]).path)).exists(), (name, link)
                continue
            file = unquote(target.path) or name
            assert (site / file).exists(), (name, link)
            if target.fragment and file in pages:
                assert unquote(target.fragment) in pages[file].anchors | {"__search", "__drawer"}, (
                    name,
                    link,
                )


def test_every_formula_is_drawn(site, pages):
    drawn = 0
    for path in (ROOT / "docs").glob("*.md"):
        text = path.read_text(encoding="utf-8")
        fences = [body for language, body in FENCE.findall(text) if language == "math"]
        prose = re.sub(r"`[^`\n]+`", "", FENCE.sub("", text))
        num_formulas = len(fences) + len(INLINE.findall(prose))
        page = site / path.with_suffix(".html").name
        assert pages[page.name].count["math"] == num_formulas, page
        drawn += num_formulas
    assert drawn > 50
    for path in site.glob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert "arithmatex" not in text, path
        assert "<merror" not in text, path
        assert "mermaid" not in text.replace("site_mermaid", ""), path


def test_every_page_has_a_title_and_a_description_of_its_own(site, pages):
    for kind in ("title", "description"):
        texts = [
            page.meta["description"]
            if kind == "description"
            else re.search(r"<title>(.*?)</title>", (site / name).read_text(encoding="utf-8"))[1]
            for name, page in pages.items()
        ]
        assert len(set(texts)) == len(texts), sorted(texts)
        assert all(len(text) > 10 for text in texts)
    assert "<title>SRPO as a TRL trainer - srpo-trl</title>" in (site / "index.html").read_text(
        encoding="utf-8"
    )


def test_no_name_in_a_table_may_break():
    rules = (ROOT / "docs" / "stylesheets" / "site.css").read_text(encoding="utf-8")
    (code,) = re.findall(r"^\.md-typeset table:not\(\[class\]\) code \{([^}]+)\}", rules, re.MULTILINE)
    assert {"overflow-wrap: normal", "word-break: normal"} <= {rule.strip() for rule in code.split(";")}
    assert "anywhere" not in rules


def test_pages_for_users_name_no_tests_and_one_page_has_them_all(site):
    text = {
        name: (site / f"{name}.html").read_text(encoding="utf-8") for name in ("tested", "options", "methods")
    }
    assert "test_evaluation_does_not_change_training" not in text["options"] + text["methods"]
    for page in ("options", "methods", "reliability"):
        source = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
        for name in set(re.findall(r"\[`(test_\w+)`\]", source)):
            assert name in text["tested"].replace("<wbr>", ""), name
    assert "<th>test</th>" not in (site / "reliability.html").read_text(encoding="utf-8")


def test_the_api_page_has_every_parameter_and_option(site):
    source = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    table = re.search(r"^\| parameter \|.*?\n\n", source, re.DOTALL | re.MULTILINE)[0]
    rows = re.findall(r"^\| `(\w+)` \| (?:`([^`]+)` )?\|", table, re.MULTILINE)
    parameters = inspect.signature(SRPOTrainer).parameters.values()
    assert rows == [(p.name, "" if p.default is p.empty else repr(p.default)) for p in parameters]
    text = (site / "api.html").read_text(encoding="utf-8")
    for field in dataclasses.fields(SRPOConfig):
        if field.name not in GRPOConfig.__dataclass_fields__:
            assert f"<td><code>{field.name}</code></td>" in text, field.name
    for name in ("Method", "distillation_loss", "load_benchmark", "GuardCallback"):
        assert f".{name}" in text, name
    assert "The weighted sum of the tokens" in text


def test_the_picture_of_the_data_flow_is_what_its_script_draws():
    script = ROOT / "scripts" / "data_flow.py"
    names: dict = {"__name__": "data_flow", "__file__": str(script)}
    exec(compile(ast.parse(script.read_text(encoding="utf-8")), str(script), "exec"), names)
    for scheme in names["PALETTES"]:
        drawn = (ROOT / "docs" / "images" / f"data_flow-{scheme}.svg").read_text(encoding="utf-8")
        assert drawn == names["drawing"](scheme)


def test_the_front_pages_program_calls_what_there_is(monkeypatch):
    page = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    (program,) = [body for language, body in FENCE.findall(page) if language == "python"]
    calls = []
    monkeypatch.setattr("srpo_trl.data.load_gsm8k", lambda split: [split])
    monkeypatch.setattr(SRPOTrainer, "__init__", lambda self, *given, **named: calls.append((given, named)))
    monkeypatch.setattr(SRPOTrainer, "train", lambda self: calls.append("train"))
    exec(compile(program, "index.md", "exec"), {})
    (given, named), trained = calls
    assert trained == "train"
    assert given == ("Qwen/Qwen2.5-0.5B-Instruct",)
    assert set(named) == {"reward_funcs", "train_dataset"}


def _settings() -> str:
    return (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
