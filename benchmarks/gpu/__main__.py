"""Everything on a GPU: `python -m benchmarks.gpu --minutes 8 --out DIR`; again to go on with what is missing."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu import runner, sections


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status says whether all is measured (0), not all (1) or nothing was begun (2)."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the figures; may hold earlier ones"
    )
    parser.add_argument(
        "--minutes", type=float, default=sections.FULL_MINUTES, help="at most, all sections together [8]"
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="[cuda]")
    parser.add_argument("--tiny", action="store_true", help="smallest sizes: whether it runs, not how fast")
    parser.add_argument(
        "--model", type=Path, help="folder with a model of real weights, for the last section"
    )
    parser.add_argument(
        "--sections", default="", help="letters of the sections to run, such as abf [all of them]"
    )
    given = parser.parse_args(argv)
    if not 0 < given.minutes < float("inf"):
        parser.error(f"--minutes {given.minutes:g} must be a number above 0")
    if given.model is not None and not (given.model / "config.json").is_file():
        parser.error(f"--model {given.model} is no folder with a config.json")
    chosen = [s for s in sections.SECTIONS if not given.sections or s.name[0] in given.sections]
    if unknown := set(given.sections) - {section.name[0] for section in sections.SECTIONS}:
        parser.error(f"--sections: there is no section {', '.join(sorted(unknown))}")
    model = None if given.model is None else given.model.resolve()
    return runner.run(
        chosen, runner.Options(given.out.resolve(), given.minutes, given.device, given.tiny, model)
    )


if __name__ == "__main__":
    sys.exit(main())
