"""What the repository's files need to become a site: pages from files outside docs/, links, formulas, descriptions.

On a code host the files are read as they are. A link leads from file to file there; on the site it leads to the page
that the file has become, or to the repository's address where it has become none.
"""

import dataclasses
import html
import inspect
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
BRANCH = "main"
PAGES = {  # files outside docs/ that are pages, too
    "configs/README.md": "recipes.md",
    "notebooks/README.md": "notebooks.md",
    "benchmarks/LEARNING.md": "learning.md",
    "benchmarks/RESULTS.md": "results.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}
SOURCES = {page: source for source, page in PAGES.items()}
FOLDERS = {posixpath.dirname(source): page for source, page in PAGES.items() if source.endswith("/README.md")}
FENCE = re.compile(r"(^ *```.*?^ *```$)", re.DOTALL | re.MULTILINE)
ADDRESS = re.compile(r'(\]\(|\b(?:href|src|srcset)=")([^)"\s]+)')
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
FUNCTION = re.compile(r"(<mi>(?:log|exp|min|max|tanh|softmax)</mi>)(?!<mo)")


def on_files(files: Files, config: Any) -> Files:
    """Called by MkDocs once: adds the pages that are made from other files of the repository."""
    for source, page in PAGES.items():
        if (ROOT / source).exists():
            files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Called by MkDocs for every page."""
    source = SOURCES.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    page.edit_url = f"{config.repo_url}/edit/{BRANCH}/{source}"
    markdown = re.sub(r"^<!-- table: (\w+) -->$", lambda name: TABLES[name[1]](), markdown, flags=re.MULTILINE)
    parts = FENCE.split(markdown)  # every second one is a block of code
    parts[::2] = [
        ADDRESS.sub(lambda link: link[1] + address(link[2], source, config.repo_url), part) for part in parts[::2]
    ]
    return "".join(parts)


def on_page_content(content: str, page: Any, **_: Any) -> str:
    """Called by MkDocs for every page: makes formulas MathML, which browsers draw without a script."""
    first = re.search(r"<p>(.*?)</p>", content, re.DOTALL)
    if first:
        text = " ".join(html.unescape(re.sub(r"<[^>]+>", "", first[1])).split())
        page.meta.setdefault("description", re.split(r"(?<=[.:]) (?=[A-Z])", text)[0].rstrip(":"))
    return FORMULA.sub(formula, content)


def address(target: str, source: str, repository: str) -> str:
    """Return where a link of the file `source` leads on the site."""
    path, mark, anchor = target.partition("#")
    if not path or re.match(r"\w+:", path):
        return target
    file = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    page = PAGES.get(file) or FOLDERS.get(file)
    if page and (ROOT / SOURCES[page]).exists():
        return page + mark + anchor
    if file.startswith("docs/"):
        return file.removeprefix("docs/") + mark + anchor
    kind = "tree" if (ROOT / file).is_dir() else "blob"
    return f"{repository}/{kind}/{BRANCH}/{file}{mark}{anchor}"


def formula(match: re.Match[str]) -> str:
    """Return MathML of a formula; names of functions have a space after them, as in print."""
    display = "block" if match[1] == "div" else "inline"
    made = convert(html.unescape(match[2]).strip(), display=display)
    made = FUNCTION.sub(r'\1<mspace width="0.167em"/>', made)
    return f'<div class="formula">{made}</div>' if display == "block" else made


def options_table() -> str:
    """Return a table of the options that `SRPOConfig` adds, from its fields."""
    from trl import GRPOConfig

    from srpo_trl import SRPOConfig

    def rows() -> Iterator[str]:
        types = SRPOConfig.__annotations__
        for field in dataclasses.fields(SRPOConfig):
            if field.name not in GRPOConfig.__dataclass_fields__:
                default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
                cells = f"`{field.name}`", f"`{_type(types[field.name])}`", f"`{default!r}`", field.metadata["help"]
                yield "| " + " | ".join(cell.replace("|", "\\|").replace("\n", "\\n") for cell in cells) + " |"

    return "\n".join(["| option | type | default | meaning |", "|---|---|---|---|", *rows()])


TABLES = {"options": options_table}
