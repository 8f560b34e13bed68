"""`srpo-trl report`: one HTML file about one or several runs, from their logs alone. No torch is imported here."""

from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Write the report that the command line `argv` (default: `sys.argv[1:]`) asks for; return the exit status."""
    from srpo_trl.report.command import main as command_main

    return command_main(argv)
