"""What a section has measured, as a JSON file and a Markdown file, each replaced as a whole.

A file is written under a temporary name, brought to the disk and renamed: whoever is killed while writing leaves the
file as it was before.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.gpu.sections import Part
from benchmarks.tables import Table, markdown, write_whole

# Of a part and, but for RUNNING, of a section. A part that is RUNNING although no process runs it was cut off.
DONE, FAILED, CUT_OFF, SKIPPED, RUNNING, MISSING = (
    "done",
    "failed",
    "cut off",
    "skipped",
    "running",
    "not yet",
)


def read(path: Path) -> dict[str, Any] | None:
    """Return the content of a section's JSON file; None where it is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None
    is_section = isinstance(content, dict) and {"section", "status", "reason", "parts"} <= content.keys()
    return content if is_section else None


class Record:
    """The figures of one section in a folder.

    Args:
        folder: exists.
        name: of the section.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self.path = folder / f"{name}.json"
        self.content: dict[str, Any] = {
            "section": name,
            "status": MISSING,
            "reason": "",
            "environment": {},
            "parts": {},
        }
        if self.path.exists():
            held = read(self.path)
            if held is None:  # by another program, or a disk that was full: kept, and measured anew
                self.path.replace(self.path.with_suffix(".json.damaged"))
            else:
                self.content = held

    @property
    def status(self) -> str:
        """Of the section."""
        return str(self.content["status"])

    @property
    def reason(self) -> str:
        """Why the section is not done, for people."""
        return str(self.content["reason"])

    @property
    def parts(self) -> dict[str, dict[str, Any]]:
        """By name: status, reason, seconds, the call that tried it, table, note, rows."""
        parts: dict[str, dict[str, Any]] = self.content["parts"]
        return parts

    def with_status(self, *statuses: str) -> list[str]:
        """Return the names of the parts that have one of these."""
        return [name for name, part in self.parts.items() if part["status"] in statuses]

    def announce(self, parts: list[Part], environment: Mapping[str, str], call: str) -> list[Part]:
        """Take up the section's parts, and return those to measure: what was never tried first.

        A part that went wrong before may do so again, and must not stand in the way of the others; in one call none is
        tried twice.
        """
        known = self.parts
        self.content["environment"] = dict(environment)
        self.content["parts"] = {
            part.name: known.get(part.name)
            or {"status": MISSING, "reason": "", "seconds": 0.0, "call": "", "table": part.table}
            | {"note": part.note, "rows": []}
            for part in parts
        }
        self.write()
        left = self.left(call)
        return [
            part
            for status in (MISSING, CUT_OFF, RUNNING, FAILED)
            for part in parts
            if part.name in left and self.parts[part.name]["status"] == status
        ]

    def left(self, call: str) -> set[str]:
        """Return the parts that are not done and were not tried in this call."""
        return {n for n, part in self.parts.items() if part["status"] != DONE and part["call"] != call}

    def note_part(self, name: str, status: str, **facts: Any) -> None:
        """Write what became of a part; facts are its `reason`, `seconds`, `call` and `rows`.

        Without rows it keeps those it has.
        """
        self.parts[name].update({"status": status, "reason": "", **facts})
        self.write()

    def note_section(self, status: str, reason: str = "") -> None:
        """Write what became of the section."""
        self.content |= {"status": status, "reason": reason}
        self.write()

    def write(self) -> None:
        """Write both files."""
        write_whole(self.path, json.dumps(self.content, indent=1, default=str) + "\n")
        write_whole(self.path.with_suffix(".md"), self.markdown())

    def markdown(self) -> str:
        """Return the tables so far, with where they were measured above and what is not done below."""
        heading = self.name.replace("_", " ")
        lines = [f"## {heading}: {self.status}" + (f" ({self.reason})" if self.reason else ""), ""]
        lines += [f"{name}: {value}  " for name, value in self.content["environment"].items()]
        texts = ["\n".join(lines) + "\n", *map(markdown, self._tables())]
        problems = [
            f"- {name}: {part['status']}" + (f", {part['reason']}" if part["reason"] else "")
            for name, part in self.parts.items()
            if part["status"] != DONE
        ]
        return "\n".join(texts + (["Not measured:\n\n" + "\n".join(problems) + "\n"] if problems else []))

    def _tables(self) -> list[Table]:
        """Each title once, with the rows of all its parts and every column that any of them has."""
        tables: dict[str, Table] = {}
        for part in self.parts.values():
            if part["rows"]:
                table = tables.setdefault(part["table"], Table(part["table"], [], part["note"]))
                table.rows.extend(part["rows"])
        for table in tables.values():
            columns = dict.fromkeys(column for row in table.rows for column in row)
            table.rows[:] = [{column: row.get(column, "") for column in columns} for row in table.rows]
        return list(tables.values())
