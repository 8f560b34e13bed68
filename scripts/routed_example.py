"""Draws a failed answer as both branches see it: docs/images/routed_example-light.svg and -dark.svg.

    python scripts/routed_example.py [outputs/quickstart/srpo] [--output docs/images]

Takes the clearest of the failed answers that the quickstart's run has logged. Text is set in fixed columns, so that it
looks the same with every font; a token's corrections are also written in words.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from srpo_trl.commands.quickstart.answer import FailedAnswer, clearest, correction_texts, read_answers
from srpo_trl.commands.quickstart.task import solution_pieces
from srpo_trl.runs.read import read_runs

WIDTH, HEIGHT, MARGIN, COLUMN = 770, 252, 22, 9.2  # COLUMN: of one character
ROWS = (14, 92, 170)  # top of each row's label
WORDS_FONT = "system-ui, 'Segoe UI', Helvetica, Arial, sans-serif"
TOKENS_FONT = "ui-monospace, 'SFMono-Regular', Menlo, Consolas, 'DejaVu Sans Mono', monospace"


class Look(NamedTuple):
    """Colors of one theme."""

    page: str
    text: str
    faint: str
    shown: str
    uniform: str
    strong: tuple[int, int, int]  # of the most corrected token

    def mixed(self, depth: float) -> str:
        """Return the color of a token by how strongly it is corrected, from 0 (none) to 1."""
        page = [int(self.page[i : i + 2], 16) for i in (1, 3, 5)]
        share = 0.25 + 0.75 * depth
        return (
            "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in zip(page, self.strong, strict=True))
            if depth
            else ""
        )


LOOKS = {
    "light": Look("#ffffff", "#1f2328", "#59636e", "#dff3e4", "#d6e4f2", (250, 150, 70)),
    "dark": Look("#0d1117", "#e6edf3", "#9198a1", "#12361f", "#1d3a57", (165, 75, 10)),
}


def main() -> int:
    """Write both pictures and return 0."""
    parser = argparse.ArgumentParser(description="See the file.")
    parser.add_argument("run", type=Path, nargs="?", default=Path("outputs/quickstart/srpo"))
    parser.add_argument("--output", type=Path, default=Path("docs/images"))
    options = parser.parse_args()
    (history,) = read_runs([options.run])
    answers = read_answers(history.examples)
    if not answers:
        sys.exit(
            f"{options.run} has no failed answers in examples.jsonl. Give the folder of the quickstart's run."
        )
    for name, look in LOOKS.items():
        path = options.output / f"routed_example-{name}.svg"
        path.write_text(picture(clearest(answers), look), encoding="utf-8")
        print(f"Wrote {path}.")
    return 0


def picture(answer: FailedAnswer, look: Look) -> str:
    """Return the SVG of one answer in one look."""
    texts, shown = [token.text for token in answer.tokens[:-1]], solution_pieces(answer.shown)
    depths = [answer.depth(i) for i in range(len(texts))]
    rows = (
        (
            f"{answer.question} = ?",
            "a correct answer, shown to the teacher alone",
            shown,
            [look.shown] * len(shown),
        ),
        (
            "A failed answer, as GRPO sees it",
            "the same penalty for every token",
            texts,
            [look.uniform] * len(texts),
        ),
        (
            "The same answer, as SRPO sees it",
            "the teacher's correction, token by token",
            texts,
            [look.mixed(depth) for depth in depths],
        ),
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'role="img" aria-label="{escape(_spoken(answer))}">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="{look.page}"/>',
        f'<g font-family="{WORDS_FONT}" font-size="14" fill="{look.text}">',
    ]
    for top, (title, note, pieces, backs) in zip(ROWS, rows, strict=True):
        parts.append(_label(MARGIN, top + 14, title, look.text, 'font-weight="600"'))
        parts.append(_label(WIDTH - MARGIN, top + 14, note, look.faint, 'text-anchor="end"'))
        parts.append(f'<g font-family="{TOKENS_FONT}" font-size="15">')
        parts += [*_tokens(pieces, backs, top + 24), "</g>"]
    for position in answer.strongest():
        choice = answer.tokens[position].choice
        middle = _left(texts, position) + COLUMN * len(texts[position].strip()) / 2
        words = f"{texts[position].strip()} → {choice[0].strip() if choice else ''}"
        more = 'text-anchor="middle" font-weight="600"'
        parts.append(_label(middle, ROWS[-1] + 68, words, look.text, more))
    return "\n".join([*parts, "</g>", "</svg>", ""])


def _left(pieces: Sequence[str], position: int) -> float:
    """Return where a token begins; every character has one width, and columns of the sum lie apart."""
    return MARGIN + COLUMN * sum(len(piece) + (piece == ";") for piece in pieces[:position])


def _tokens(pieces: Sequence[str], backs: Sequence[str], top: float) -> Iterator[str]:
    for position, (piece, back) in enumerate(zip(pieces, backs, strict=True)):
        start, text = _left(pieces, position), piece.strip()
        width = COLUMN * len(text)
        if back:
            yield f'<rect x="{start + 0.5:.1f}" y="{top}" width="{width - 1:.1f}" height="24" rx="3" fill="{back}"/>'
        yield (
            f'<text x="{start:.1f}" y="{top + 17}" textLength="{width:.1f}" lengthAdjust="spacingAndGlyphs">'
            f"{escape(text)}</text>"
        )


def _label(x: float, y: float, text: str, color: str, more: str) -> str:
    return f'<text x="{x:.1f}" y="{y}" fill="{color}" {more}>{escape(text)}</text>'


def _spoken(answer: FailedAnswer) -> str:
    """Return the picture in words."""
    return (
        f"A failed answer to {answer.question}. GRPO gives every token the same penalty; SRPO's teacher, "
        f"shown a correct answer, corrects {', '.join(correction_texts(answer))}."
    )


if __name__ == "__main__":
    sys.exit(main())
