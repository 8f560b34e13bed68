"""Correct answers of earlier steps by prompt, for groups that fail as a whole and have no correct sibling.

Every process holds the same: what is remembered is gathered first.
"""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

EARLIER_ANSWERS_FILE = "srpo_earlier_answers.json"


class SolvedPrompt(NamedTuple):
    """A correct answer to a prompt and the optimizer step at which it was sampled."""

    text: str
    step: int


def prompt_key(prompt: Any) -> str:
    """Return a key under which a prompt, a string or messages, is found again; images count by their content."""
    written = json.dumps(prompt, sort_keys=True, ensure_ascii=False, default=_written_content)
    return hashlib.blake2b(written.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _written_content(value: Any) -> Any:
    """Return a value that JSON does not know as one that it does; an image's repr differs every time it is read."""
    if not isinstance(value, Image.Image):
        return repr(value)
    pixels = hashlib.blake2b(value.tobytes(), digest_size=16).hexdigest()
    return [value.mode, value.size, value.getpalette(), pixels]


class SolvedPrompts:
    """The newest correct answer to each of the `capacity` prompts that were solved last.

    Args:
        capacity: prompts at most; the one solved longest ago makes room.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._answers: OrderedDict[str, SolvedPrompt] = OrderedDict()

    def __len__(self) -> int:
        return len(self._answers)

    def remember(self, solved: Iterable[tuple[str, str]], step: int) -> None:
        """Take (prompt key, correct answer) pairs of one rollout batch, of all processes in one order."""
        for key, text in solved:
            self._answers[key] = SolvedPrompt(text, step)
            self._answers.move_to_end(key)
        while len(self._answers) > self._capacity:
            self._answers.popitem(last=False)

    def recall(self, key: str) -> SolvedPrompt | None:
        """Return the answer to a prompt, or None."""
        return self._answers.get(key)

    def save(self, folder: Path, writes: bool = True) -> None:
        """Write everything to `EARLIER_ANSWERS_FILE` in an existing folder, on the ranks that write."""
        rows = [[key, *answer] for key, answer in self._answers.items()]
        if writes:
            (folder / EARLIER_ANSWERS_FILE).write_text(json.dumps(rows), encoding="utf-8")

    def load(self, folder: Path) -> None:
        """Restore what `save` wrote; a checkpoint of a run without this source has none."""
        path = folder / EARLIER_ANSWERS_FILE
        self._answers.clear()
        if path.is_file():
            for key, text, step in json.loads(path.read_text(encoding="utf-8")):
                self.remember([(key, text)], step)
