"""Durations as people write them: `90s`, `30m`, `1h`; a bare number is hours."""

import math

UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0}
_SUFFIXES = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "": 3600.0}
_LONGEST_IN_SECONDS, _LONGEST_IN_MINUTES = 180.0, 3 * 3600.0


def parse_duration(text: str) -> float:
    """Return a duration in seconds.

    Raises:
        ValueError: the text is no positive number with one of the units s, m, min, h.
    """
    number = text.strip().rstrip("hmins ")
    suffix = text.strip()[len(number) :].strip()
    try:
        seconds = float(number) * _SUFFIXES[suffix]
    except (ValueError, KeyError):
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise ValueError(f"{text!r} is no duration. Write a number above 0 and a unit: 90s, 30m or 5h.")
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
