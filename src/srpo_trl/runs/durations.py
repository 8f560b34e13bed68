"""Durations as people write them: `90s`, `30m`, `2min`, `1.5h`. A number without a unit is refused."""

import re

UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0}
_WRITTEN = re.compile(r"\s*(\d+\.?\d*|\.\d+)\s*(s|min|m|h)\s*")
_LONGEST_IN_SECONDS, _LONGEST_IN_MINUTES = 180.0, 3 * 3600.0


def parse_duration(text: object) -> float:
    """Return a duration in seconds.

    Raises:
        ValueError: it is no number above 0 with one of the units s, m, min, h.
    """
    written = _WRITTEN.fullmatch(str(text))
    seconds = float(written[1]) * (UNITS | {"m": 60.0})[written[2]] if written else 0.0
    if not 0 < seconds < float("inf"):
        raise ValueError(
            f"{text!r} is not a duration. Give a number above 0 with its unit: 90s, 30m or 1.5h."
        )
    return seconds


def format_duration(seconds: float) -> str:
    """Return a duration in its largest fitting unit, such as `90 s`, `1 min`, `12.5 min` or `5 h`."""
    fitting = [
        unit
        for unit, size in UNITS.items()
        if seconds >= 2 * size or (seconds >= size and seconds % size == 0)
    ]
    unit = fitting[-1] if fitting else "s"
    return f"{seconds / UNITS[unit]:.3g} {unit}"


def axis_unit(longest: float) -> str:
    """Return the unit of a time axis that ends at `longest` seconds."""
    return "s" if longest <= _LONGEST_IN_SECONDS else "min" if longest <= _LONGEST_IN_MINUTES else "h"
