"""The first run: a tiny model that learns 4-digit addition with GRPO, SDPO and SRPO in minutes on a CPU."""

from collections.abc import Sequence

__all__ = ["METHODS", "main"]

METHODS = ("grpo", "sdpo", "srpo")  # values of `SRPOConfig.routing`


def main(argv: Sequence[str] | None = None) -> int:
    """Run the quickstart with the command line `argv` (default: `sys.argv[1:]`); return the exit status."""
    from srpo_trl.quickstart.run import main as run_main

    return run_main(argv)
