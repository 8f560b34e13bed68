"""The `srpo-trl` command; also `accelerate launch -m srpo_trl.cli train --config ...`.

Torch, transformers and trl are imported by the command that needs them: `srpo-trl --help` answers at once.
"""

import argparse
import importlib
import io
import sys
from collections.abc import Sequence
from difflib import get_close_matches

from srpo_trl.version import __version__

COMMANDS = {  # where its function of the command line is, and what it does
    "train": ("srpo_trl.commands.train:train", "train a model as a YAML file says"),
    "recipes": (
        "srpo_trl.commands.recipes:show_recipes",
        "list the recipes that --config takes by name, print or copy one",
    ),
    "methods": ("srpo_trl.commands.methods:show_methods", "list the methods, or one of them in full"),
    "eval": ("srpo_trl.commands.evaluate:evaluate", "sample a model's answers and score them"),
    "plan": ("srpo_trl.commands.plan.command:plan", "memory of a training run, from its configs alone"),
    "slurm": (
        "srpo_trl.commands.slurm:slurm",
        "train on several nodes of a Slurm cluster, with vLLM on another",
    ),
    "compare": (
        "srpo_trl.commands.compare.command:compare",
        "train variants from one start and tabulate their scores",
    ),
    "report": ("srpo_trl.commands.report.command:make_report", "one HTML file about one or several runs"),
    "quickstart": (
        "srpo_trl.commands.quickstart.run:quickstart",
        "watch a tiny model learn, in minutes on a CPU",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: `sys.argv[1:]`) and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="srpo-trl",
        description="Sample-Routed Policy Optimization: GRPO for correct rollouts, self-distillation for the "
        "failed ones.",
        epilog="\n".join(
            ["commands:"]
            + [f"  {name:<12}{summary}" for name, (_, summary) in COMMANDS.items()]
            + ["", "srpo-trl COMMAND --help lists the options of a command."]
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument("command", nargs="?", metavar="COMMAND", help="one of those below")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="options of the command")
    options = parser.parse_args(argv)
    if options.command is None:
        parser.print_help()
        return 0
    if options.command not in COMMANDS:
        close = get_close_matches(options.command, COMMANDS, n=1)
        hint = f"Did you mean {close[0]}?" if close else f"Give one of {', '.join(COMMANDS)}."
        parser.error(f"{options.command} is not a command. {hint}")
    module, function = COMMANDS[options.command][0].split(":")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(
                errors="replace"
            )  # a console without the character, as on Windows, ends no run
    status: int = getattr(importlib.import_module(module), function)(options.arguments)
    return status


if __name__ == "__main__":
    sys.exit(main())
