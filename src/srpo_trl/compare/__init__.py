"""`srpo-trl compare`: several variants from one start, their best scores within budgets, mean and error over seeds.

configs and options -> plan -> runs (`srpo-trl train`, one process each) -> scores -> table, picture, JSON
"""

from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Compare as the command line `argv` (default: `sys.argv[1:]`) says; return the exit status."""
    from srpo_trl.compare.command import main as compare

    return compare(argv)
