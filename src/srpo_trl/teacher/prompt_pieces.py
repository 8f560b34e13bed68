"""Prompts put together from text that is trusted and text that is not, and their tokens.

The dataset's own text and the templates are trusted: the teacher reads their markers (`<|im_end|>` and the like) as the
student does. In text that a model or a grader wrote a marker stays text, also one that only its neighbors complete.
"""

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from srpo_trl.seams.messages import whole_characters

Span = tuple[int, int]


class Piece(NamedTuple):
    """A part of a prompt, and whether markers in it count."""

    text: str
    is_trusted: bool = True


def filled(template: str, **values: Sequence[Piece]) -> list[Piece]:
    """Return the template's pieces with each `{name}` replaced once; braces inside the values are never interpreted."""
    parts = re.split(r"\{(\w+)\}", template)  # text and names in turn
    pieces: list[Piece] = []
    for i, part in enumerate(parts):
        pieces += [Piece(part)] if i % 2 == 0 else values.get(part, [Piece(f"{{{part}}}")])
    return [piece for piece in pieces if piece.text]


def distrusted(pieces: Sequence[Piece], texts: Sequence[str]) -> list[Piece]:
    """Return the pieces with each occurrence of these texts a piece of its own that is not trusted."""
    if not texts:
        return list(pieces)
    pattern = re.compile(f"({'|'.join(map(re.escape, texts))})")
    parts = [(piece, pattern.split(piece.text)) for piece in pieces]  # every other one is such a text
    return [
        Piece(text, is_trusted=piece.is_trusted and i % 2 == 0)
        for piece, texts_of_piece in parts
        for i, text in enumerate(texts_of_piece)
        if text
    ]


def stripped(pieces: Sequence[Piece], *, at_start: bool, at_end: bool) -> list[Piece]:
    """Return the pieces without white space at the start or the end of the whole."""
    left = list(pieces)
    while at_start and left and left[0].text != (text := left[0].text.lstrip()):
        left = [left[0]._replace(text=text), *left[1:]] if text else left[1:]
    while at_end and left and left[-1].text != (text := left[-1].text.rstrip()):
        left = [*left[:-1], left[-1]._replace(text=text)] if text else left[:-1]
    return left


def marker_tokens(tokenizer: PreTrainedTokenizerBase, template_texts: Iterable[str] = ()) -> dict[int, str]:
    """Return the tokens that untrusted text must not become, by id: special ones, and added ones of the chat template.

    Some tokenizers mark turns with added tokens that they do not call special. The token for unknown text is text.
    """
    written = "".join(template_texts)
    added = getattr(tokenizer, "added_tokens_decoder", {})
    markers = {
        token: str(of.content) for token, of in added.items() if of.special or (of.content.strip() in written)
    }
    markers |= dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
    markers.pop(tokenizer.unk_token_id, None)
    return markers


def encode_pieces(
    tokenizer: PreTrainedTokenizerBase,
    pieces: Sequence[Piece],
    markers: dict[int, str],
    *,
    adds_special: bool = False,
) -> list[int]:
    """Return the tokens of the pieces' joined text, which are the tokenizer's own where nothing untrusted is a marker.

    Every marker with a character of an untrusted piece is encoded in two halves, and so on until none is left; a single
    character that is a marker is left out.

    Args:
        tokenizer: the student's.
        pieces: in their order.
        markers: from `marker_tokens`.
        adds_special: add what the tokenizer puts around every text.
    """
    pieces = [piece._replace(text=whole_characters(piece.text)) for piece in pieces]
    text, untrusted = _joined(pieces)
    pending: list[Span] = [(0, len(text))]
    done: list[tuple[Span, list[int]]] = []
    while pending:
        adds_now = adds_special and pending == [(0, len(text))]
        encoded = _encode(tokenizer, [text[start:end] for start, end in pending], markers, adds_now)
        left: list[Span] = []
        for (start, end), (ids, spans) in zip(pending, encoded, strict=True):
            found = [(start + a, start + b) for a, b in spans]
            hostile = [span for span in found if _is_within_reach(span, untrusted)]
            if not hostile:
                done.append(((start, end), ids))
            elif end - start > 1:
                left += _halved((start, end), hostile)
        if adds_now and not left:
            return done[0][1] if done else []
        pending = left
    ids = [token for _, ids in sorted(done) for token in ids]
    if not adds_special:
        return ids
    before, after = _special_tokens_around(tokenizer)
    return [*before, *ids, *after]


def _joined(pieces: Sequence[Piece]) -> tuple[str, list[Span]]:
    """Return the whole text and where it is untrusted."""
    untrusted, length = [], 0
    for piece in pieces:
        if not piece.is_trusted and piece.text:
            untrusted.append((length, length + len(piece.text)))
        length += len(piece.text)
    return "".join(piece.text for piece in pieces), untrusted


def _is_within_reach(span: Span, untrusted: Sequence[Span]) -> bool:
    return any(span[0] < end and start < span[1] for start, end in untrusted)


def _halved(chunk: Span, hostile: Sequence[Span]) -> list[Span]:
    """Return the chunk cut inside each of these spans, and around those of one character."""
    cuts = {chunk[0], chunk[1]}
    for start, end in hostile:
        cuts |= {(start + end) // 2} if end - start > 1 else {start, end}
    places = sorted(cuts)
    return list(pairwise(places))


def _encode(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], markers: dict[int, str], adds_special: bool
) -> list[tuple[list[int], list[Span]]]:
    """Return each text's tokens, and where its markers stand."""
    if not tokenizer.is_fast:  # it tells no offsets
        by_length = sorted(set(markers.values()), key=len, reverse=True)
        pattern = re.compile("|".join(map(re.escape, by_length)))
        all_ids = tokenizer(texts, add_special_tokens=adds_special)["input_ids"]
        return [
            (ids, [match.span() for match in pattern.finditer(text)] if by_length else [])
            for text, ids in zip(texts, all_ids, strict=True)
        ]
    encoded = tokenizer(texts, add_special_tokens=adds_special, return_offsets_mapping=True)
    return [
        (ids, [(start, end) for token, (start, end) in zip(ids, offsets, strict=True) if token in markers])
        for ids, offsets in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    ]


def _special_tokens_around(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Return the tokens that the tokenizer puts before and after every text."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a", add_special_tokens=True)["input_ids"]
    num_before = next(
        (i for i in range(len(whole) - len(bare) + 1) if whole[i : i + len(bare)] == bare), len(whole)
    )
    return whole[:num_before], whole[num_before + len(bare) :]
