"""The table of envise's study: loadable under every preset, paired in what it compares, one training for many rows."""

from __future__ import annotations

import pytest

from envise.reproduce import STUDY
from scenekd.report_tables import flatten_keys
from scenekd.study.presets import read_preset
from scenekd.study.rows import read_table
from scenekd.study.runs import Runs
from scenekd.study.sweep import settings

TABLE = read_table(STUDY.folder / "rows.yaml")


@pytest.fixture(params=("paper", "small", "scenes", "smoke"), scope="module")
def runs(request, tmp_path_factory) -> Runs:
    """The study under each preset, with data that need not exist."""
    output = tmp_path_factory.mktemp(request.param)
    return Runs(
        STUDY, TABLE, read_preset(STUDY.folder, request.param, output=output, data="somewhere"), output
    )


def _rows(runs: Runs):
    return [row for row in TABLE.rows if not runs.preset.why_unavailable(row)]


def test_every_row_loads(runs) -> None:
    """Nothing is published; what the study counts as images seen are the samples of the stream."""
    for row in _rows(runs):
        cfg = runs.config(row, 3, "x")
        assert (3, str(runs.output / "x")) == (cfg.SEED, cfg.OUTPUT_DIR) and not row.published
        if cfg.SYSTEM == "envise":
            assert cfg.SOLVER.MAX_ITER * cfg.SOLVER.IMS_PER_BATCH == cfg.STREAM.SAMPLES
            assert cfg.SOLVER.IMS_PER_BATCH == cfg.ONLINE.BATCH_SIZE
            if row.group == "rare" and "unseen" not in row.roles:
                assert cfg.STREAM.OUTLIER_SHARE == 0.1 and not cfg.STREAM.SHIFTS
                continue
            (shift,) = cfg.STREAM.SHIFTS
            assert 0 < shift["AT"] < cfg.STREAM.SAMPLES and shift["AT"] % cfg.ONLINE.WINDOW == 0


def test_rates_are_chosen_apart(runs) -> None:
    """On other images than those that are reported, as often for either network; real images leave none over."""
    assert [sweep.row for sweep in TABLE.sweeps] == ["k.binary", "k.real"]
    assert len({str(sweep.grid) for sweep in TABLE.sweeps}) == 1
    for sweep in TABLE.sweeps if runs.preset.name in ("smoke", "scenes") else ():
        for setting in settings(sweep, TABLE):
            apart, own = (runs.config(setting.row, 0, validation=v).DATASETS.TRAIN for v in (True, False))
            assert not set(apart) & {*own, "voc_seg_teacher"}


def test_the_teacher_that_is_scored_is_the_one_that_is_asked(runs) -> None:
    """It is trained by a stage, from nothing, on other images than the stream's and those it is scored on."""
    for name, stream in (("teacher", "c.plain"), ("teacher.tiny", "p.home_zoo")):
        if runs.preset.why_unavailable(TABLE.row(name)):
            continue
        own, asked = (runs.config(TABLE.row(row), 0) for row in (name, stream))
        assert own.MODEL.WEIGHTS == asked.TEACHER.CLASSIFICATION.WEIGHTS
        stage = runs.preset.stages[own.MODEL.WEIGHTS.split("/")[-2]]
        assert stage["keys"] == {"MODEL": {"WEIGHTS": ""}} and set(stage["roles"]) == set(
            TABLE.row(name).roles
        )
        assert not set(own.DATASETS.TRAIN) & {*own.DATASETS.TEST, *asked.DATASETS.TRAIN}


def test_pairs_differ_in_what_they_state(runs) -> None:
    """The triplet loss alone, or the network alone."""
    loss, network = {"ONLINE.ATTENTION.WEIGHT"}, {"MODEL.ENVISE.NETWORK"}
    for one, other, keys in (("k.binary", "k.real", network), ("k.plain.binary", "k.plain.real", network),
                             ("k.binary", "k.plain.binary", loss), ("c.triplet", "c.plain", loss),
                             ("c.real.plain", "c.plain", network), ("m.triplet", "m.plain", loss)):  # fmt: skip
        a, b = (dict(flatten_keys(runs.config(TABLE.row(name), 0))) for name in (one, other))
        assert {key for key in a if a[key] != b[key]} == keys, (one, other)


def test_one_training_serves_every_score_and_the_attention(runs) -> None:
    """Scores and attention are measured on the students of the cascade, and so is the preset's first pair."""
    owners = {row.id: runs.owner(row) for row in _rows(runs)}
    for row in _rows(runs):
        if row.group in ("scores.online", "scores.seen"):
            score = row.id.removeprefix("s.").removesuffix(".plain")
            assert row.parts == (f"outlier_scores/{score}",)
            assert score in runs.config(row, 0).ONLINE.COMPARE_SCORES
            assert owners[row.id] == ("c.plain" if row.id.endswith(".plain") else "c.triplet")
    assert owners["m.plain"], owners["m.real.triplet"] == ("c.plain", "c.real.triplet")
    first = runs.config(TABLE.row("c.plain"), 0).STREAM.PAIR
    assert owners[f"p.{first}"], owners[f"p.{first}.plain"] == ("c.triplet", "c.plain")


def test_a_students_training_is_never_that_of_another(runs) -> None:
    """Rows of other pairs, networks or losses have runs of their own."""
    names = [row.id for row in _rows(runs) if row.group.startswith(("convergence", "pairs"))]
    assert len({runs.owner(TABLE.row(name)) for name in names}) == len(names)
