"""What a study's page advises, from fabricated results."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest

from scenekd.errors import UserError
from scenekd.study import advice
from scenekd.study.advice import Budget, ForecastSpec, forecast_table, foretell, worth_of, worth_table
from scenekd.study.rows import Row
from scenekd.study.scores import RowScores
from scenekd.teachers.fitness import Fitness

BUDGET = Budget("mIoU", "gt", "dense", "oracle")


def row(series, x):
    return Row(f"{series}@{x:g}", "", "g", Path("f.yaml"), series, float(x))


def scores(*values):
    return RowScores({"mIoU": dict(enumerate(values))})


def test_worth_of_two_series():
    # Alone: 20 at 1 %, 30 at 10 %, 40 at 100 %. With the teacher 35 at 10 %: halfway from 10 to 100 in the logarithm.
    rows = [row("gt", 99), row("gt", 90), row("gt", 100), row("dense", 90)]
    known = {"gt@99": scores(20), "gt@90": scores(30), "gt@100": scores(0), "oracle": scores(40)}
    (worth,) = worth_of(BUDGET, rows, {**known, "dense@90": scores(35)})
    assert worth.share == pytest.approx(0.1)
    assert worth.equal == pytest.approx(10**-0.5)
    assert "31.6 %" in str(worth_table(BUDGET, [worth])[0])


def test_only_common_seeds_count():
    rows = [row("gt", 99), row("gt", 90), row("dense", 90)]
    known = {"gt@99": scores(20, 90), "gt@90": scores(30), "dense@90": scores(25, 0)}
    (worth,) = worth_of(BUDGET, rows, known)
    assert worth.score == 25


def test_no_worth_without_two_shares_or_the_teacher():
    rows = [row("gt", 99), row("gt", 90), row("dense", 90)]
    assert worth_of(BUDGET, rows, {"gt@99": scores(20), "dense@90": scores(25)}) == []
    assert worth_of(BUDGET, rows, {"gt@99": scores(20), "gt@90": scores(30)}) == []
    assert worth_table(BUDGET, []) == []


def test_beyond_what_was_run_is_said():
    rows = [row("gt", 99), row("gt", 90), row("dense", 99), row("dense", 90)]
    known = {"gt@99": scores(20), "gt@90": scores(30), "dense@99": scores(10), "dense@90": scores(31)}
    text = str(worth_table(BUDGET, worth_of(BUDGET, rows, known))[0])
    assert "less than was run" in text and "more than all" in text


SPEC = ForecastSpec("mIoU", "gt", ("a", "b", "c", "d", "gone", "unlabelled", "unrun"))
INFORMATION = {"a": -1.0, "b": 0.0, "c": 0.5, "d": 1.0, "unlabelled": None}


@pytest.fixture
def fitness(monkeypatch):
    def of(cfg):
        if cfg == "gone":
            raise UserError("no such cache")
        value = INFORMATION[cfg]
        return None if value is None else Fitness(value, 0.9, 1.0, 1.0, 10, 1)

    monkeypatch.setattr(advice, "target_fitness", of)


def test_gain_is_foretold(fitness):
    # Gains 2 · information over a reference of 10 and 12: a line, so that each row is told exactly by the others.
    names = ("a", "b", "c", "d", "gone", "unlabelled")
    known = {name: scores(*(base + 2 * (INFORMATION.get(name) or 0) for base in (10, 12))) for name in names}
    finished = {name: {0: SimpleNamespace(cfg=name)} for name in names}
    found = foretell(SPEC, {**known, "gt": scores(10, 12)}, finished)
    assert found.names == ("a", "b", "c", "d")
    assert found.gains == pytest.approx((-2, 0, 1, 2))
    assert found.forecast.slope == pytest.approx(2)
    assert found.forecast.error == pytest.approx(0, abs=1e-9)
    text = "".join(map(str, forecast_table(SPEC, found)))
    assert "-2.00" in text and "% of 4 rows" in text


def test_too_few_rows_are_no_forecast(fitness):
    known = {"gt": scores(10), "a": scores(9), "b": scores(10)}
    found = foretell(SPEC, known, {name: {0: SimpleNamespace(cfg=name)} for name in ("a", "b")})
    assert found.names == ("a", "b") and found.forecast is None
    text = "".join(map(str, forecast_table(SPEC, found)))
    assert "no forecast" in text
    assert forecast_table(SPEC, foretell(SPEC, {}, {})) == []
    assert math.isclose(found.gains[0], -1)
