"""Draw docs/images/data_flow-light.svg and -dark.svg: the way of a rollout through an SRPO step.

python scripts/data_flow.py
"""

from html import escape
from pathlib import Path

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
WIDTH, HEIGHT, LINE = 760, 604, 25  # 20 px letters can be read where the picture is half as wide, on a phone
TITLE = (
    "Rewards route each of the G rollouts of a prompt. Correct ones, and failed ones with nothing to show a teacher, "
    "take the GRPO loss. The other failed ones are scored by the teacher, the same model shown a correct sibling or "
    "feedback, and distilled with a weight for each token. Rollouts without a score have no loss. Both losses share "
    "one denominator and one optimizer step; the teacher is a moving average of the student."
)
PALETTES = {
    "light": {
        "text": "#1f2328",
        "line": "#59636e",
        "plain": ("#f6f8fa", "#818b98"),
        "policy": ("#ddf4ff", "#0969da"),
        "distilled": ("#fff1e5", "#bc4c00"),
    },
    "dark": {
        "text": "#e6edf3",
        "line": "#9198a1",
        "plain": ("#21262d", "#7d8590"),
        "policy": ("#0c2d6b", "#58a6ff"),
        "distilled": ("#4a1e02", "#f0883e"),
    },
}
# left, top, width, height, kind, lines of text
BOXES = (
    (20, 4, 340, 44, "plain", "G rollouts of a prompt"),
    (420, 4, 320, 44, "plain", "rewards, feedback"),
    (20, 88, 720, 44, "plain", "routing: one destination for each rollout"),
    (20, 238, 220, 98, "policy", "GRPO loss"),
    (270, 238, 310, 98, "distilled", "teacher: the same model\nsees a correct sibling\nor feedback"),
    (630, 238, 110, 98, "plain", "no loss"),
    (270, 390, 310, 72, "distilled", "distillation loss,\na weight for each token"),
    (20, 516, 560, 72, "plain", "one denominator,\none optimizer step"),
)
# path, whether it is dashed
ARROWS = (
    ("M360 26H412", False),
    ("M580 48V80", False),
    ("M130 132V230", False),
    ("M425 132V230", False),
    ("M685 132V230", False),
    ("M425 336V382", False),
    ("M130 336V508", False),
    ("M425 462V508", False),
    ("M580 552H606V310H588", True),
)
# left, middle, lines of text
LABELS = (
    (142, 178, "correct, or\nnothing to show"),
    (437, 178, "failed, with\nsomething to show"),
    (697, 178, "no\nscore"),
    (618, 430, "moving\naverage of\nthe weights"),
)


def drawing(scheme: str) -> str:
    """Return the picture in the colors of a scheme."""
    colors = PALETTES[scheme]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'role="img" font-family="system-ui, -apple-system, Segoe UI, Roboto, sans-serif" font-size="20">',
        f"<title>{escape(TITLE)}</title>",
        '<marker id="tip" viewBox="0 0 10 10" refX="5" refY="5" markerWidth="10" markerHeight="10" '
        f'markerUnits="userSpaceOnUse" orient="auto"><path d="M0 0L10 5L0 10z" fill="{colors["line"]}"/></marker>',
    ]
    for path, is_dashed in ARROWS:
        dashes = ' stroke-dasharray="6 5"' if is_dashed else ""
        parts.append(
            f'<path d="{path}" fill="none" stroke="{colors["line"]}" stroke-width="2" marker-end="url(#tip)"{dashes}/>'
        )
    for left, top, width, height, kind, text in BOXES:
        fill, stroke = colors[kind]
        parts.append(
            f'<rect x="{left}" y="{top}" width="{width}" height="{height}" rx="8" fill="{fill}" stroke="{stroke}" '
            'stroke-width="2"/>'
        )
        parts += lines(text, left + width / 2, top + height / 2, "middle", colors["text"])
    for left, middle, text in LABELS:
        parts += lines(text, left, middle, "start", colors["text"])
    return "\n".join([*parts, "</svg>", ""])


def lines(text: str, x: float, middle: float, anchor: str, color: str) -> list[str]:
    """Return the elements of a text of several lines, centered about a height."""
    rows = text.splitlines()
    first = middle - LINE * (len(rows) - 1) / 2 + 7
    return [
        f'<text x="{x:g}" y="{first + LINE * i:g}" text-anchor="{anchor}" fill="{color}">{escape(row)}</text>'
        for i, row in enumerate(rows)
    ]


if __name__ == "__main__":
    for name in PALETTES:
        (IMAGES / f"data_flow-{name}.svg").write_text(drawing(name), encoding="utf-8")
