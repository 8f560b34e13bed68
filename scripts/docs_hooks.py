"""What the pages of docs/ need to become a site: links to files outside docs/ stand as plain text there.

On a code host these links open the file. The site holds the pages alone, and its API page the docstrings.
"""

import re
from typing import Any

# [text](../path) and, in the contributing page, which is the repository's own file, [text](path-outside-docs)
_OUTSIDE = re.compile(r"\[(?P<text>[^\]]+)\]\((?:\.\./|tests/|src/|scripts/|docs/design\.md)[^)]*\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by MkDocs for every page."""
    return _OUTSIDE.sub(lambda link: link["text"], markdown)
