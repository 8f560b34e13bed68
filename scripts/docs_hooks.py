"""What the repository's files need to become a site: pages from files outside docs/, links, formulas, descriptions.

On a code host the files are read as they are. A link leads from file to file there; on the site it leads to the page
that the file has become, or to the repository's address where it has become none.
"""

import dataclasses
import html
import posixpath
import re
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
    "benchmarks/METHODS.md": "methods_compared.md",
    "benchmarks/REAL_MODEL.md": "real_model.md",
    "benchmarks/RESULTS.md": "results.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}
SOURCES = {page: source for source, page in PAGES.items()}
FOLDERS = {posixpath.dirname(source): page for source, page in PAGES.items() if source.endswith("/README.md")}
OPTIONS = "<!-- the options of SRPOConfig -->"  # where the table of them is to stand
FENCE = re.compile(r"(^ *```.*?^ *```$)", re.DOTALL | re.MULTILINE)
ADDRESS = re.compile(r'(\]\(|\b(?:href|src|srcset)=")([^)"\s]+)')
PICTURE = re.compile(r'<picture>\s*<source [^>]*srcset="([^"]+)">\s*<img src="([^"]+)"([^>]*)>\s*</picture>')
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
CODE_LINK = re.compile(r'(<a href="[^"]*\.py"><code>)([^<]*)(</code>)')
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
    page.edit_url = f"{config.repo_url}/edit/{BRANCH}/{source}" if (ROOT / source).exists() else None
    if OPTIONS in markdown:
        markdown = markdown.replace(OPTIONS, options_table())
    parts = FENCE.split(markdown)  # every second one is a block of code
    parts[::2] = [
        ADDRESS.sub(lambda link: link[1] + address(link[2], source, config.repo_url), part)
        for part in parts[::2]
    ]
    # On the site the reader chooses the colors; a code host has the system's.
    return PICTURE.sub(r'<img src="\2#only-light"\3><img src="\1#only-dark"\3>', "".join(parts))


def on_page_content(content: str, page: Any, **_: Any) -> str:
    """Called by MkDocs for every page: makes formulas MathML, which browsers draw without a script.

    The long names of functions and tests that are links to their files may go on in another line after a dot or an
    underscore, so that a table of them fits its page.
    """
    page.meta.setdefault("description", description(page.title, content))
    content = CODE_LINK.sub(
        lambda link: link[1] + re.sub(r"([._])(?=\w)", r"\1<wbr>", link[2]) + link[3], content
    )
    return FORMULA.sub(formula, content)


def description(title: str, content: str) -> str:
    """Return a page's title and the sentences that it begins with, as the value of an attribute."""
    paragraphs = (
        html.unescape(re.sub(r"<[^>]+>", "", text)) for text in re.findall(r"(?s)<p>(.*?)</p>", content)
    )
    text = next((" ".join(text.split()) for text in paragraphs if len(text) > 40), "")
    sentences = re.split(r"(?<=\.) (?=[A-Z])", text)
    while len(sentences) > 1 and sum(map(len, sentences)) > 160:
        sentences.pop()
    return html.escape(f"{title}: {' '.join(sentences)}")


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
    """Return a table of the options that `SRPOConfig` adds, and the names of those that it inherits."""
    from transformers import TrainingArguments
    from trl import GRPOConfig

    from srpo_trl import SRPOConfig
    from srpo_trl.methods import WEIGHTED

    theirs, transformers = GRPOConfig.__dataclass_fields__, TrainingArguments.__dataclass_fields__
    rows = ["| option | type, default | meaning |", "|---|---|---|"]
    for field in dataclasses.fields(SRPOConfig):
        if field.name in theirs:
            continue
        default = field.default_factory() if field.default is dataclasses.MISSING else field.default
        meaning = field.metadata["help"].replace("<", "&lt;").replace("|", "\\|")
        if field.name == "method":
            meaning = "Name of one of the [methods](methods.md#the-methods), or your own as `module:factory`."
        if field.metadata.get("range"):
            meaning += f" A value is {field.metadata['range']}."
        type_ = (
            field.type.__name__ if isinstance(field.type, type) else str(field.type).replace("typing.", "")
        )
        value = repr(WEIGHTED.get(field.name, default))
        shown = f"`{value}`" if len(value) < 40 else "[a text](options.md#teacher)"
        rows.append(
            f"| `{field.name}` | {type_.replace(' | ', ' or ')}, {shown} | {meaning} |".replace("\n", " ")
        )
    names = ", ".join(f"`{name}`" for name in theirs if name not in transformers)
    return "\n".join(
        [*rows, "", f"Inherited from `GRPOConfig`: {names}; and the options of `TrainingArguments`."]
    )
