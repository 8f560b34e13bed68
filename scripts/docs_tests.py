"""On the site the names of tests stand on one page, not between the sentences of those who use the package.

In the repository a page names the test beside what it shows. Here each such reference is taken out of its page and
collected in "What is tested", with the sentence, or the row of a table, that it belongs to.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

DOCS = Path(__file__).resolve().parents[1] / "docs"
KEPT = {"maths.md", "design.md", "decisions.md"}  # pages for those who check or change the code
TEST = r"\[`test_\w+`\]\([^)]*\)"
ASIDE = re.compile(rf"\s*\(\s*{TEST}(?:(?:,|;| and)?\s+{TEST})*\s*\)")
LIST = re.compile(r"^Tests(?: of [^:]+)?: .*", re.DOTALL)
HEAD = """# What is tested

Statements of the other pages, each with the tests that show it. `make test` runs the fast ones, `make test-all` all of
them. Each formula has its test on the page [maths](maths.md).
"""


def on_files(files: Files, config: Any) -> Files:
    """Called by MkDocs once: adds the page."""
    parts = [HEAD]
    for path in sorted(DOCS.glob("*.md")):
        blocks = path.read_text(encoding="utf-8").split("\n\n")
        rows = [row for row in statements(blocks) if path.name not in KEPT]
        if rows:
            title = blocks[0].removeprefix("# ").splitlines()[0]
            parts += [f"## [{title}]({path.name})\n\n| what | tests |\n|---|---|\n" + "\n".join(rows) + "\n"]
    files.append(File.generated(config, "tested.md", content="\n".join(parts)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Called by MkDocs for every page."""
    if page.file.src_uri in KEPT or not (DOCS / page.file.src_uri).exists():
        return markdown
    blocks = (without_tests(block) for block in markdown.split("\n\n"))
    return "\n\n".join(block for block in blocks if block)


def statements(blocks: list[str]) -> Iterator[str]:
    """Yield rows of the table, in the order of a page."""
    heading = ""
    for block in blocks:
        if block.startswith("#"):
            heading = block.splitlines()[0].lstrip("# ")
        elif LIST.match(block):
            yield _row(heading, block)
        elif block.startswith("|"):
            for row in block.splitlines():
                if re.search(TEST, row):
                    yield _row(_cells(row)[0], row)
        else:
            for found in ASIDE.finditer(block):
                before = " ".join(block[: found.start()].split())
                yield _row(
                    re.split(r"(?<=[.:;]) (?=[A-Z`\[])", ASIDE.sub("", before))[-1].lstrip("- "), found[0]
                )


def without_tests(block: str) -> str:
    """Return a paragraph or table without references to tests; empty where nothing else is in it."""
    lines = block.splitlines()
    if lines and lines[0].startswith("|") and _cells(lines[0])[-1] == "test":
        lines = [line[: line.rindex("|", 0, -1) + 1] for line in lines]
        return "\n".join(lines)
    return "" if LIST.match(block) else ASIDE.sub("", block)


def _row(what: str, text: str) -> str:
    return f"| {what} | {', '.join(re.findall(TEST, text))} |"


def _cells(row: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", row[1:-1])]
