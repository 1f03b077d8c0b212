"""The numbers beside a chart's axes are those of its values."""

from __future__ import annotations

import re

import pytest

from softlabels.report.charts import Series, lines


def ticks(values: list[float], **options: object) -> list[float]:
    """The numbers along y of a line through `values`."""
    points = [(float(x), y) for x, y in enumerate(values)]
    drawn = lines([Series("a", "g1", points)], x_name="x", y_name="y", label="l", **options)
    return [
        float(x.replace(",", ""))
        for x in re.findall(r'text-anchor="end"[^>]*>([-\d.,e+]+)<', str(drawn))
    ]


@pytest.mark.parametrize(
    "values", [[0.01, 0.15], [0.5, 1.0], [2.2, 3.9], [3.0, 12.0], [40.0, 900.0]]
)
def test_an_axis_says_the_values_that_it_carries(values):
    low, high = values
    room = 0.1 * (high - low)
    found = ticks(values)
    assert len(found) >= 2
    assert all(low - room <= x <= high + room for x in found), found
    powers = ticks([low, high * 10], log_y=True)
    assert powers
    assert all(low / 2 <= x <= high * 20 for x in powers), powers


def test_small_powers_are_written_as_powers():
    assert 1e-5 in ticks([2e-6, 1e-2], log_y=True)
