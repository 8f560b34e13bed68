"""All benchmarks, one after another: `python -m benchmarks [--device cpu] [--quick] [--before COMMIT] [--json F]`."""

import sys
from collections.abc import Sequence

from benchmarks import accuracy, loss, step, teacher_pass
from benchmarks.common import run


def main(argv: Sequence[str] | None = None) -> int:
    return run(
        "All benchmarks of srpo_trl.",
        (loss.tables, accuracy.tables, step.tables, teacher_pass.tables),
        argv,
    )


if __name__ == "__main__":
    sys.exit(main())
