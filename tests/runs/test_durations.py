"""Durations: each has its unit, in every tool that reads one."""

import pytest

from srpo_trl.runs.durations import axis_unit, format_duration, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds", "written"),
    [
        ("90s", 90, "90 s"),
        ("1m", 60, "1 min"),
        ("2min", 120, "2 min"),
        ("2.5min", 150, "2.5 min"),
        ("1.5h", 5400, "90 min"),
        ("5h", 18000, "5 h"),
        (" 1 h ", 3600, "1 h"),
        ("0.5s", 0.5, "0.5 s"),
        (".5s", 0.5, "0.5 s"),
        ("100m", 6000, "100 min"),
    ],
)
def test_durations(text, seconds, written):
    assert parse_duration(text) == seconds
    assert format_duration(seconds) == written


@pytest.mark.parametrize(
    "text",
    [
        *("", "5", "12.5", "h", "1d", "5d", "-1h", "0s", "nan", "nans", "inf", "infs", "one", "1h30m", "m5"),
        5,
        0.5,
    ],
)
def test_anything_else_is_refused(text):
    with pytest.raises(
        ValueError, match=r"is not a duration\. Give a number above 0 with its unit: 90s, 30m or 1\.5h"
    ):
        parse_duration(text)


def test_time_axes_have_a_fitting_unit():
    assert [axis_unit(seconds) for seconds in (100, 1000, 20_000)] == ["s", "min", "h"]
