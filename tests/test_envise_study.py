"""envise's study: numbers that are read out of runs, its figures from planted runs, and the command from nothing."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from envise_parts import envise_config
from tool_runner import ToolRunner

from envise import reproduce, study_figures
from envise.answer_log import AnswerLog
from envise.phases import LEARN
from envise.reproduce import STUDY
from envise.step import Answers
from envise.study_figures import agreement_curve, draw_agreement, draw_focus, draw_scores, draw_separation
from envise.views import SEPARATION, SeparationView, save_view
from scenekd.study import stages
from scenekd.study.rows import Figure, read_table
from scenekd.study.runs import Run
from scenekd.study.scores import ClassMeans, read_parts, score_row

TABLE = read_table(STUDY.folder / "rows.yaml")
ALWAYS = {"WINDOW": 40, "WINDOWS": 1000, "AGREEMENT": 0.6}
SHIFT = {"SHIFTS": ({"AT": 120, "OUTLIER_SHARE": 0.1},)}


def _config(**nodes):
    nodes["STREAM"] = {**SHIFT, **nodes.get("STREAM", {})}
    return envise_config(**nodes)


def _run(folder, name, results, seed=0, **nodes):
    folder = folder / name / f"seed{seed}"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "metrics.json").touch()
    return Run(name, _config(OUTPUT_DIR=str(folder), **nodes), TABLE.row(name))


def test_samples_to_agreement() -> None:
    """Windows of 40, two in a row of 60 % or more: the second ends at 120; from the shift at 120 on they count anew,
    and two end at 240, 120 samples later. What is reached only after the shift is not reached before."""
    cfg = _config(ONLINE=ALWAYS)
    stream = {"agreement_windows": [10.0, 60.0, 70.0, 50.0, 60.0, 65.0]}
    assert reproduce.samples_to_agreement(cfg, stream) == 120
    assert reproduce.samples_after_shift(cfg, stream) == 120
    late = {"agreement_windows": [10.0, 20.0, 70.0, 70.0, 10.0, 70.0]}
    assert math.isnan(reproduce.samples_to_agreement(cfg, late))
    assert math.isnan(reproduce.samples_after_shift(cfg, late))
    trusted = _config(ONLINE={**ALWAYS, "WINDOWS": 2})
    assert reproduce.samples_to_agreement(trusted, late) == 160
    assert math.isnan(reproduce.samples_after_shift(trusted, late))


def test_a_run_that_never_converges_is_shown_as_such(tmp_path) -> None:
    """No number of the cascade, none of the agreement, and 0 % of the seeds converged."""
    nothing = {"start": 120, "agreement": 30.0, "accuracy": None, "share_to_teacher": None, "gie": None}
    results = {"stream": {"agreement_windows": [10.0] * 6, "changes": [], "parts": [nothing]}}
    runs = {0: _run(tmp_path, "c.plain", results, ONLINE={**ALWAYS, "WINDOWS": 2})}
    found = {
        name: by_seed
        for name, by_seed in score_row(runs, STUDY.metrics, ClassMeans(1)).values.items()
        if by_seed
    }
    assert found == {"converged": {0: 0.0}}


def test_the_cascade_is_read_since_the_outliers_came(tmp_path) -> None:
    """90 % against the teacher's 92: 2 points lost."""
    parts = [
        {"start": 0, "accuracy": 50.0, "teacher_accuracy": 99.0, "gie": 1.0},
        {"start": 120, "accuracy": 90.0, "teacher_accuracy": 92.0, "gie": 70.0, "share_to_teacher": 20.0},
    ]
    stream = {"agreement_windows": [70.0, 70.0], "changes": [[79, "calibrate", ""]], "parts": parts}
    runs = {0: _run(tmp_path, "c.plain", {"stream": stream}, ONLINE={**ALWAYS, "WINDOWS": 2})}
    found = score_row(runs, STUDY.metrics, ClassMeans(1)).values
    wanted = {"cascade_accuracy": 90, "accuracy_lost": 2, "GiE": 70, "share_to_teacher": 20, "converged": 100}
    assert {name: found[name][0] for name in wanted} == wanted
    assert found["samples_to_agreement"][0] == 80 and not found["AUROC"]


def test_parts_of_results() -> None:
    """A prefix chooses, and is taken off; a row without parts sees everything."""
    results = {"stream": {"gie": 1}, "outlier_scores": {"knn/auroc": 2, "vim/auroc": 3}}
    assert read_parts(results, ("outlier_scores/vim",)) == {"outlier_scores": {"auroc": 3}}
    assert read_parts(results, ("stream", "attention")) == {"stream": {"gie": 1}, "attention": {}}
    assert read_parts(results, ()) == results


def test_agreement_over_the_stream(tmp_path) -> None:
    """240 samples in 40 parts of 6; both agree from sample 120 on."""
    runs = {}
    for seed in range(2):
        run = _run(tmp_path, "k.binary", {}, seed, ONLINE=ALWAYS)
        position, yes, zero = np.arange(240), np.ones(240, bool), np.zeros(240, int)
        said = (position < 120).astype(int)
        log = AnswerLog(run.folder)
        log.begin(0)
        log.add(Answers(LEARN, position, zero, yes, yes, said, zero, np.full(240, np.nan)))
        runs[seed] = run
    middles, share = agreement_curve(runs[0])
    assert middles[[0, -1]].tolist() == [3, 237]
    assert share.tolist() == [0.0] * 20 + [100.0] * 20
    figure = Figure("title", "agreement", ("k.binary", "k.real"), ())
    png = draw_agreement(figure, TABLE, {"k.binary": runs})
    assert png is not None and png.startswith(b"\x89PNG")
    assert draw_agreement(figure, TABLE, {}) is None


def test_bars_are_means_over_seeds(tmp_path, monkeypatch) -> None:
    """Two seeds of 60 and 80 %, with the triplet loss one of 90; a score that was not run is left out."""
    plain = [
        _run(tmp_path, "s.knn.plain", {"outlier_scores": {"knn/auroc": v}}, s) for s, v in enumerate((60, 80))
    ]
    triplet = _run(tmp_path, "s.knn", {"outlier_scores": {"knn/auroc": 90, "vim/auroc": 1}})
    finished = {"s.knn.plain": dict(enumerate(plain)), "s.knn": {0: triplet}}
    drawn = []
    monkeypatch.setattr(study_figures, "_bars", lambda axis, places, values, *rest: drawn.append(values))
    figure = Figure("title", "scores", ("s.knn.plain", "s.knn", "s.vim.plain", "s.vim"), ("auroc",))
    assert draw_scores(figure, TABLE, finished) and drawn == [[[60.0, 80.0]], [[90.0]]]
    assert draw_scores(figure, TABLE, {}) is None


def test_focus_has_teacher_and_flat_map_beside_the_students(tmp_path, monkeypatch) -> None:
    """Rows without masks are left out."""
    look = {
        "energy_uniform": 20,
        "energy_teacher": 50,
        "energy_student": 40,
        "pointing_teacher": 90,
        "pointing_student": 80,
    }
    finished = {
        "m.plain": {0: _run(tmp_path, "m.plain", {"attention": look})},
        "m.triplet": {0: _run(tmp_path, "m.triplet", {"attention": {"distance": 0.1}})},
    }
    drawn = []
    monkeypatch.setattr(study_figures, "_bars", lambda axis, places, values, *rest: drawn.append(values))
    figure = Figure("title", "focus", ("m.plain", "m.triplet"), ())
    assert draw_focus(figure, TABLE, finished)
    assert drawn == [[[20.0], [50.0], [40.0]], [[20.0], [90.0], [80.0]]]
    assert draw_focus(figure, TABLE, {}) is None


def test_pictures_of_the_first_seed_that_has_them(tmp_path) -> None:
    """A run that answered nothing has left none: the next seed is drawn; none, nothing."""
    runs = {seed: _run(tmp_path, "m.plain", {}, seed) for seed in range(2)}
    figure = Figure("title", "separation", ("m.plain",), ())
    assert draw_separation(figure, TABLE, {"m.plain": runs}) is None
    points = np.arange(8, dtype=np.float32).reshape(4, 2)
    view = SeparationView(
        points, np.array([False, False, True, True]), np.array([0, 1, 2, 2]), ("a", "b", "c")
    )
    save_view(runs[1].folder / SEPARATION, view)
    assert draw_separation(figure, TABLE, {"m.plain": runs})
    assert draw_separation(figure, TABLE, {}) is None


def test_the_study_knows_its_kinds() -> None:
    """Every figure of the table is of a kind that is drawn."""
    assert {figure.kind for figure in TABLE.figures} == {"bars", *STUDY.drawers}


@pytest.mark.slow
def test_rows_from_nothing(tmp_path, monkeypatch) -> None:
    """Scenes, their crops, a teacher, convergence and a score: a score's training is the cascade's."""
    draw = stages.generate_scenes
    few = {"teacher": 20, "train": 60, "hold": 2, "val": 10}
    monkeypatch.setattr(
        stages, "generate_scenes", lambda folder, **_: draw(folder, splits=few, progress=False)
    )
    tool = ToolRunner("reproduce", monkeypatch)
    asked = ("envise", "--preset", "smoke", "--output", tmp_path, "--seeds", 1, "--jobs", 2)
    rows = ("--only", "teacher", "k.binary", "s.energy.plain")
    assert tool(*asked, *rows) == 0
    found = {row["id"]: row for row in json.loads((tmp_path / "reproduce.json").read_text())["rows"]}
    assert found["s.energy.plain"]["run"] == "c.plain" and found["k.binary"]["images"] == 320
    assert found["c.plain"]["here"]["converged"]["0"] == 100
    assert 0 <= found["s.energy.plain"]["here"]["share_gated"]["0"] <= 100
    assert (tmp_path / "reproduce.html").read_text().count("<img") >= 2
