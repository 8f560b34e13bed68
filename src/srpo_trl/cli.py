"""The `srpo-trl` command; also `accelerate launch -m srpo_trl.cli train --config ...`.

Torch, transformers and trl are imported by the command that needs them: `srpo-trl --help` answers at once.
"""

import argparse
import sys
from collections.abc import Callable, Sequence

from srpo_trl.version import __version__


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: `sys.argv[1:]`) and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="srpo-trl",
        description="Sample-Routed Policy Optimization: GRPO for correct rollouts, self-distillation for the "
        "failed ones.",
        epilog="srpo-trl COMMAND --help lists the options of a command.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument(
        "command",
        choices=list(COMMANDS),
        metavar="COMMAND",
        help="train: train a model as a YAML file says; quickstart: watch a tiny model learn, in minutes on "
        "a CPU; plan: memory of a training run, from its configs alone; bench: time the distillation loss on this "
        "machine",
    )
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="options of the command")
    options = parser.parse_args(argv)
    return COMMANDS[options.command](options.arguments)


def _train(argv: Sequence[str]) -> int:
    from srpo_trl.training_script import train

    return train(argv)


def _quickstart(argv: Sequence[str]) -> int:
    from srpo_trl.quickstart import main as quickstart

    return quickstart(argv)


def _plan(argv: Sequence[str]) -> int:
    from srpo_trl.memory_plan import main as plan

    return plan(argv)


def _bench(argv: Sequence[str]) -> int:
    from srpo_trl.bench import main as bench

    return bench(argv)


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "train": _train,
    "quickstart": _quickstart,
    "plan": _plan,
    "bench": _bench,
}


if __name__ == "__main__":
    sys.exit(main())
