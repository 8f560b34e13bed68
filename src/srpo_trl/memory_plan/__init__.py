"""`srpo-trl plan`: memory of a training run from its configs alone, and the largest micro-batch that fits.

    config.json, training YAML, accelerate YAML -> passes on tensors without data + formulas -> components by moment

Checked against what CPUs measure (docs/memory.md); no GPU's peak has been compared.
"""

import json
import sys
from collections.abc import Sequence

from rich.console import Console

from srpo_trl.memory_plan.arguments import Request, read_request
from srpo_trl.memory_plan.fitting import Remedy, largest_micro_batch, remedies
from srpo_trl.memory_plan.moments import Plan, plan_memory
from srpo_trl.memory_plan.passes import Passes
from srpo_trl.memory_plan.report import as_json, gibibytes, headline, table

EXIT_WRONG_ARGUMENTS = 2  # argparse's own status for the same thing
_WIDTH = 118  # of the table, where the output is no terminal


def main(argv: Sequence[str] | None = None) -> int:
    """Print the plan that the command line asks for, and return the exit status."""
    try:
        request = read_request(sys.argv[1:] if argv is None else argv)
    except ValueError as error:
        items = ["- " + problem for problem in str(error).split("\n")]
        print("\n".join(["srpo-trl plan: nothing was planned, because", *items]), file=sys.stderr)
        return EXIT_WRONG_ARGUMENTS
    console = Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=_WIDTH)
    run, passes = request.run, Passes()
    plan = plan_memory(run, passes, run.training.per_device_train_batch_size)
    console.print(headline(run, passes.shape(run)), soft_wrap=True)
    console.print(table(plan, run))
    found = _Findings(plan)
    if run.memory is None:
        console.print(
            f"Give --gpu_memory to see what fits. Largest: {gibibytes(plan.peak)} at {plan.peak_moment}."
        )
    else:
        _judge(request, passes, found, console)
    if request.json_path is not None:
        content = {
            "headline": headline(run, passes.shape(run)),
            "memory_bytes": run.memory,
            **found.as_json(),
        }
        request.json_path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0


class _Findings:
    """The plan of the run as it is, and what was found beside it."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.largest: Plan | None = None
        self.remedies: list[Remedy] = []

    def as_json(self) -> dict[str, object]:
        return {
            "plan": as_json(self.plan),
            "largest_micro_batch": self.largest and as_json(self.largest),
            "remedies": [{"change": r.change, "peak_bytes": r.plan.peak} for r in self.remedies],
        }


def _judge(request: Request, passes: Passes, found: _Findings, console: Console) -> None:
    """Print whether the run fits, the largest micro-batch that does, and what to change where none does."""
    run, plan = request.run, found.plan
    assert run.memory is not None
    room = int(run.memory * (1 - request.margin))
    limit = f"{gibibytes(room)} ({gibibytes(run.memory)} less {request.margin:.0%})"
    verdict = "fits in" if plan.peak <= room else "does not fit in"
    console.print(f"Largest: {gibibytes(plan.peak)} at {plan.peak_moment}. It {verdict} {limit}.")
    found.largest = largest_micro_batch(run, passes, room)
    if found.largest is not None:
        console.print(
            f"Largest micro-batch that fits: per_device_train_batch_size: {found.largest.micro_batch} with "
            f"gradient_accumulation_steps: {found.largest.accumulation} ({gibibytes(found.largest.peak)})."
        )
        return
    console.print("Not even a micro-batch of 1 fits. What helps, each with those before it:")
    for remedy in remedies(run, passes, room):
        found.remedies.append(remedy)
        fits = ", which fits" if remedy.plan.peak <= room else ""
        console.print(
            f"- {remedy.change}: {gibibytes(remedy.plan.peak)} at {remedy.plan.peak_moment}{fits}",
            soft_wrap=True,
        )
    if not found.remedies or found.remedies[-1].plan.peak > room:
        console.print("That is not enough: take more or larger GPUs, shorter lengths, or a smaller model.")
