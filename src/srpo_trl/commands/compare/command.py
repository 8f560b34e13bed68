"""The command: its options, its order of work, its exit status."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

EXIT_RUNS_MISSING = 1

DESCRIPTION = """\
Train variants from one start and tabulate the best score of each within each budget, mean and standard error over
seeds. Each CONFIG is a recipe or a YAML file, as for `srpo-trl train --config`. What is finished is not repeated: the
same command again resumes where it stopped, with more seeds or larger budgets too."""
EPILOG = """\
Options of `srpo-trl train` for every run follow after `--`:
  srpo-trl compare qwen3_0.6b --variants all -- --data_dir DIR --eval_strategy steps"""


def compare(argv: Sequence[str] | None = None) -> int:
    """Plan, run and report; return 0, 1 where runs are missing, or 2 for wrong arguments."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    options = _parser().parse_args(arguments[:cut])
    console = Console()
    with console.status("Loading torch, transformers and trl"):
        from srpo_trl.commands.compare.jobs import make_comparison
        from srpo_trl.commands.options import EXIT_WRONG_ARGUMENTS, exit_with_errors
    from srpo_trl.commands.compare.processes import run_all
    from srpo_trl.commands.compare.table import report_comparison

    comparison, problems = make_comparison(options, training_options=arguments[cut + 1 :])
    if comparison is None:
        return exit_with_errors("srpo-trl compare", problems)
    missing = {} if options.table_only else run_all(comparison, console)
    try:
        report_comparison(comparison, missing, console)
    except ValueError as error:  # which metrics there are is known once a run has logged them
        print(f"srpo-trl compare: {error}", file=sys.stderr)
        return EXIT_WRONG_ARGUMENTS
    return EXIT_RUNS_MISSING if missing else 0


def _parser() -> argparse.ArgumentParser:
    """Return the parser. Values stay text: `make_comparison` checks all of them and reports every problem at once."""
    parser = argparse.ArgumentParser(
        prog="srpo-trl compare",
        usage="srpo-trl compare CONFIG [CONFIG ...] [options] [-- options of srpo-trl train]",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("configs", nargs="+", metavar="CONFIG", type=Path)
    parser.add_argument(
        "--variants",
        nargs="+",
        default=[],
        metavar="NAME",
        help="make these variants or methods of each CONFIG; 'all': the paper's seven and two controls "
        "(default: each CONFIG is one variant)",
    )
    parser.add_argument(
        "--seeds", default="3", metavar="N", help="runs of each variant (default: %(default)s)"
    )
    parser.add_argument(
        "--budget",
        default="1h,5h,10h",
        metavar="LIST",
        help="training times such as 90s,30m,10h, evaluation left out, or steps such as 100steps; the largest time "
        "ends a run (default: %(default)s)",
    )
    parser.add_argument(
        "--metric",
        metavar="NAME",
        help="the score, larger is better, by its name in the evaluation's log (default: eval_avg@N where it is "
        "logged, else eval_reward)",
    )
    parser.add_argument(
        "--jobs",
        default="1",
        metavar="N",
        help="runs at a time; they share the hardware (default: %(default)s)",
    )
    parser.add_argument(
        "--launch",
        metavar="COMMAND",
        help="what runs srpo_trl.cli, such as 'torchrun --nproc_per_node 8 -m srpo_trl.cli' (default: this Python; "
        "--num_processes and --accelerate_config can follow `--`)",
    )
    parser.add_argument(
        "--table_only",
        action="store_true",
        help="start nothing: table and picture of what has been run so far",
    )
    parser.add_argument(
        "--output_dir", default=Path("outputs/compare"), type=Path, metavar="DIR", help="default: %(default)s"
    )
    return parser
