"""`srpo-trl plan`: memory of a training run from its configs alone, and the largest micro-batch that fits.

    config.json, training YAML, accelerate YAML -> passes on fake tensors + formulas -> components by phase

Checked against what CPUs measure (docs/memory.md); no GPU's peak has been compared.
"""

import json
import sys
import warnings
from collections.abc import Sequence

from rich.console import Console

from srpo_trl.commands.options import exit_with_errors
from srpo_trl.commands.plan.arguments import read_request
from srpo_trl.commands.plan.fitting import Fit, find_fit
from srpo_trl.commands.plan.phases import estimate_memory
from srpo_trl.commands.plan.step import FakeModels
from srpo_trl.commands.plan.table import headline, memory_table, plan_as_json, verdict

_WIDTH = 118  # of the table, where the output is no terminal


def plan(argv: Sequence[str] | None = None) -> int:
    """Print the plan that the command line asks for, and return the exit status."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH)
    with warnings.catch_warnings(), console.status("Reading the configuration") as status:
        warnings.simplefilter("ignore", FutureWarning)  # transformers renames options that TRL and PEFT use
        request, problems = read_request(sys.argv[1:] if argv is None else argv)
        if request is None:
            return exit_with_errors("srpo-trl plan", problems)
        run, models = request.run, FakeModels()
        text = headline(run, models.of(run).shape)
        console.print(text, soft_wrap=True)
        status.update("Estimating the run as it is")
        estimate = estimate_memory(run, models, run.training.per_device_train_batch_size)
        console.print(memory_table(estimate, run))
        fit = Fit() if run.memory is None else find_fit(run, models, request.room, status.update)
        for line in verdict(estimate, fit, run, request.room):
            console.print(line, soft_wrap=True)
        if request.json_path is not None:
            content = json.dumps(plan_as_json(text, estimate, fit, run.memory), indent=1)
            request.json_path.write_text(content + "\n", encoding="utf-8")
    return 0
