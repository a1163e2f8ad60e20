"""Gain in efficiency against its formula, worked out by hand."""

import pytest

from scenekd.evaluation.efficiency import gain_in_efficiency


@pytest.mark.parametrize(
    ("student", "teacher", "total", "handed_on", "expected"),
    [
        (1, 10, 100, 0, 0.9),  # 1 − 100 / 1000
        (1, 10, 100, 100, -0.1),  # 1 − (100 + 1000) / 1000
        (2, 8, 1000, 250, 0.5),  # 1 − (2000 + 2000) / 8000
        (0, 5, 10, 0, 1.0),  # a student that costs nothing and asks for nothing
    ],
)
def test_closed_form(student, teacher, total, handed_on, expected):
    assert gain_in_efficiency(student, teacher, total, handed_on) == pytest.approx(expected)


@pytest.mark.parametrize(
    "arguments",
    [
        (-1, 10, 100, 0),
        (1, 0, 100, 0),
        (1, -10, 100, 0),
        (1, 10, 0, 0),
        (1, 10, 100, 101),
        (1, 10, 100, -1),
        (float("nan"), 10, 100, 1),
        (1, float("inf"), 100, 1),
        (1, 10, 100, float("nan")),
    ],
)
def test_refuses(arguments):
    with pytest.raises(ValueError):
        gain_in_efficiency(*arguments)
