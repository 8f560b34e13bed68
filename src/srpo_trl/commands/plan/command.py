"""`srpo-trl plan`: memory of a training run from its configs alone, and the largest micro-batch that fits.

    config.json, training YAML, accelerate YAML -> passes on tensors without data + formulas -> components by moment

Checked against what CPUs measure (docs/memory.md); no GPU's peak has been compared.
"""

import json
import sys
import warnings
from collections.abc import Sequence

from rich.console import Console

from srpo_trl.commands.options import exit_with_errors
from srpo_trl.commands.plan.arguments import Request, read_request
from srpo_trl.commands.plan.fitting import Findings, judge
from srpo_trl.commands.plan.moments import plan_memory
from srpo_trl.commands.plan.passes import Passes
from srpo_trl.commands.plan.table import as_json, headline, table, verdict

_WIDTH = 118  # of the table, where the output is no terminal


def main(argv: Sequence[str] | None = None) -> int:
    """Print the plan that the command line asks for, and return the exit status."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # transformers renames options that TRL and PEFT use
        request, problems = read_request(sys.argv[1:] if argv is None else argv)
        if request is None:
            return exit_with_errors("srpo-trl plan", problems)
        _plan(request)
    return 0


def _plan(request: Request) -> None:
    run, passes = request.run, Passes()
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH)
    text = headline(run, passes.shape(run))
    console.print(text, soft_wrap=True)
    plan = plan_memory(run, passes, run.training.per_device_train_batch_size)
    console.print(table(plan, run))
    findings = Findings() if run.memory is None else judge(run, passes, request.room)
    for line in verdict(plan, findings, run, request.room):
        console.print(line, soft_wrap=True)
    if request.json_path is not None:
        content = as_json(text, plan, findings, run)
        request.json_path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
