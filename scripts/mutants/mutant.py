"""What a mutant is: replaced lines of the package, and the tests that fail for them."""

from typing import NamedTuple


class Edit(NamedTuple):
    """One replacement; `old` occurs exactly once in `file`, a path below src/srpo_trl."""

    file: str
    old: str
    new: str


class Mutant(NamedTuple):
    """A wrong package; each of `tests`, node ids below tests/, must fail on it.

    A node id without parameters stands for all of the test's cases, one of which must fail.
    """

    name: str
    meaning: str
    edits: tuple[Edit, ...]
    tests: tuple[str, ...]


def mutant(name: str, meaning: str, *edits: tuple[str, str, str], tests: tuple[str, ...]) -> Mutant:
    return Mutant(name, meaning, tuple(Edit(*edit) for edit in edits), tests)
