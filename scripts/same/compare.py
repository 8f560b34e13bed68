"""How two recordings of a row differ: in which keys, in which numbers, in which texts."""

import difflib
import hashlib
import re
import struct
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from renamed import new_keys
from torch import Tensor

NUM_SHOWN = 6


class Difference(NamedTuple):
    """What differs; all empty where two recordings are equal.

    Attributes:
        gone, added: keys of one recording alone, places in a sequence written as `*`.
        numbers: key to what is different about a number or a tensor.
        texts: key to the lines that differ, as a unified diff.
    """

    gone: list[str]
    added: list[str]
    numbers: dict[str, str]
    texts: dict[str, list[str]]

    def summary(self) -> str:
        """Return one line: `equal`, or each kind of difference with its first few keys."""
        if not any(self):
            return "equal"
        parts = [_count("number", self.numbers, [f"{key} ({how})" for key, how in self.numbers.items()])]
        if self.texts:
            parts.append(_count("text", self.texts, [f"{k} ({_size(d)})" for k, d in self.texts.items()]))
        if self.gone or self.added:
            keys = [f"-{key}" for key in self.gone] + [f"+{key}" for key in self.added]
            parts.append(f"keys: {_shown(keys, ' ')}")
        return "; ".join(parts)

    def details(self) -> list[str]:
        """Return a line for everything that differs."""
        lines = [f"{key}: {how}" for key, how in self.numbers.items()]
        for key, diff in self.texts.items():
            lines += [f"{key}:", *(f"    {line}" for line in diff)]
        return [*lines, *(f"-{key}" for key in self.gone), *(f"+{key}" for key in self.added)]


def compare(reference: Mapping[str, Any], found: Mapping[str, Any]) -> Difference:
    """Compare two recordings to the bit, both under the new names."""
    old, new = new_keys(reference), new_keys(found)
    gone = sorted({_placeless(key) for key in old.keys() - new.keys()})
    added = sorted({_placeless(key) for key in new.keys() - old.keys()})
    numbers, texts = {}, {}
    for key in (key for key in old if key in new):
        one, other = old[key], new[key]
        if isinstance(one, str) and isinstance(other, str):
            if one != other:
                texts[key] = _diff(one, other)
        elif bits(one) != bits(other):
            numbers[key] = _how(one, other)
    return Difference(gone, added, numbers, texts)


def bits(value: Any) -> tuple[str, bytes]:
    """Return a value's kind and its bytes, which tell 0.0 from -0.0 and compare NaN with NaN."""
    if isinstance(value, Tensor):
        kind = f"{value.dtype} {tuple(value.shape)}"
        return kind, value.contiguous().flatten().view(torch.uint8).numpy().tobytes()
    if isinstance(value, float):
        return "float", struct.pack("<d", value)
    return type(value).__name__, str(value).encode()


def digest(values: Mapping[str, Any]) -> str:
    """Return a short hash of a recording."""
    found = hashlib.sha256()
    for key in sorted(values):
        kind, content = bits(values[key])
        found.update(f"{key}\0{kind}\0".encode() + content + b"\0")
    return found.hexdigest()[:12]


def _how(one: Any, other: Any) -> str:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        if one.dtype != other.dtype or one.shape != other.shape:
            return f"{bits(one)[0]} -> {bits(other)[0]}"
        difference = (one.double() - other.double()).abs()
        return f"{int((difference != 0).sum())} of {one.numel()} elements, by up to {difference.max():.3g}"
    if type(one) is type(other) is float:
        return f"{one!r} -> {other!r}, by {abs(one - other):.3g}"
    return f"{one!r} -> {other!r}"


def _diff(one: str, other: str) -> list[str]:
    return list(difflib.unified_diff(one.splitlines(), other.splitlines(), lineterm="", n=0))[2:]


def _size(diff: Sequence[str]) -> str:
    removed, added = (sum(line.startswith(sign) for line in diff) for sign in "-+")
    return f"-{removed} +{added} lines"


def _placeless(key: str) -> str:
    return re.sub(r"(?<=/)\d+(?=/|$)", "*", key)


def _count(noun: str, found: Mapping[str, Any], described: Sequence[str]) -> str:
    if not found:
        return f"{noun}s equal"
    return f"{len(found)} {noun}{'s' * (len(found) > 1)} differ{'s' * (len(found) == 1)}: {_shown(described, ', ')}"


def _shown(items: Sequence[str], separator: str) -> str:
    more = f"{separator}and {len(items) - NUM_SHOWN} more" if len(items) > NUM_SHOWN else ""
    return separator.join(items[:NUM_SHOWN]) + more
