"""The notebooks: their cells by id, executed ones, and the outputs that are stored in those that need no GPU.

`python tests/support/notebooks.py` executes these and stores what they print.
"""

import os
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
BY_HAND, SIDE_BY_SIDE, OWN_TASK = NAMES = ("1_srpo_by_hand", "2_grpo_and_srpo", "3_your_own_task")
STORED = (BY_HAND,)  # the others need a GPU


def read(name: str) -> Any:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def sources(name: str) -> dict[str, str]:
    """The text of each cell, by id."""
    return {cell.id: cell.source for cell in read(name).cells}


def execute(notebook: Any, folder: Path) -> Any:
    """The notebook with its outputs; every cell runs on a CPU, with a tiny model in place of a real one."""
    os.environ["SRPO_STAND_IN"] = "1"
    client = NotebookClient(notebook, timeout=600, kernel_name="python3", record_timing=False)
    return client.execute(cwd=str(folder))


def printed(notebook: Any) -> dict[str, str]:
    """What each cell printed; what went to stderr, such as warnings and progress, is left out."""
    return {
        cell.id: "".join(out.text for out in cell.outputs if out.get("name") == "stdout")
        for cell in notebook.cells
        if cell.cell_type == "code"
    }


def store(name: str, folder: Path) -> None:
    notebook = read(name)
    for cell_id, text in printed(execute(read(name), folder)).items():
        cell = next(cell for cell in notebook.cells if cell.id == cell_id)
        cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text=text)] if text else []
    for count, cell in enumerate((c for c in notebook.cells if c.cell_type == "code"), start=1):
        cell.execution_count = count
    nbformat.write(notebook, FOLDER / f"{name}.ipynb")


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as temporary:
        for stored in STORED:
            store(stored, Path(temporary))
