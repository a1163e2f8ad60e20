"""blindnet's study: the figures of the paper drawn again, and the command from nothing to its page."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from blindnet_parts import blind_config
from PIL import Image
from tool_runner import ToolRunner

from blindnet import study_figures
from blindnet.reproduce import STUDY
from blindnet.study_figures import draw_classes, draw_inputs, draw_top_n
from scenekd.study import stages
from scenekd.study.figures import draw_figure
from scenekd.study.rows import Figure, read_table
from scenekd.study.runs import Run
from scenekd.study.scores import ClassMeans

TABLE = read_table(STUDY.folder / "rows.yaml")
ROWS = {"context": (), "m.circle": ("MODEL.BLINDNET.MASK.SHAPES", ("circle",))}


@pytest.fixture
def finished(scenes: Path, tmp_path: Path):
    """Two seeds of two rows, with curves that are told: seed 0 straight, seed 1 ideal."""
    found: dict[str, dict[int, Run]] = {}
    straight = [10.0 * n for n in range(1, 11)]
    for name, keys in ROWS.items():
        for seed, curve in enumerate((straight, [100.0] * 10)):
            folder = tmp_path / name / f"seed{seed}"
            folder.mkdir(parents=True)
            content = {"hidden_object": {"top_n": curve}, "class_prior": {"top_n": straight}}
            (folder / "results.json").write_text(json.dumps(content))
            cfg = blind_config("DATASETS.ROOT", scenes, "OUTPUT_DIR", folder, *keys)
            found.setdefault(name, {})[seed] = Run(f"runs/{name}/seed{seed}", cfg, TABLE.row(name))
    return found


def _figure(kind: str) -> Figure:
    return Figure("title", kind, (*ROWS, "ffc"), ())


def _pixels(png: bytes | None) -> np.ndarray:
    assert png is not None
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def test_curves_are_means_over_seeds(finished, monkeypatch) -> None:
    """Of 10 n % and 100 %: 50 + 5 n %; the prior stands beside, once; rows that were not run are left out."""
    drawn = {}
    monkeypatch.setattr(study_figures, "top_n_chart", lambda curves: drawn.update(curves) or b"")
    draw_top_n(_figure("top_n"), TABLE, finished)
    assert list(drawn) == ["context", "m.circle", "class prior"]
    assert drawn["m.circle"] == pytest.approx([50 + 5 * n for n in range(1, 11)])
    assert drawn["class prior"][0] == 10
    assert draw_top_n(_figure("top_n"), TABLE, {}) is None


def test_what_networks_see(finished) -> None:
    """One line a row that was run, the hole white on black: a square of the box, and a circle."""
    figure = Figure("title", "inputs", ("context",), ())
    one, two = (_pixels(draw_inputs(f, TABLE, finished)) for f in (figure, _figure("inputs")))
    assert two.shape[1] == one.shape[1] and 1.5 < two.shape[0] / one.shape[0] < 2.1
    picture, shown = study_figures._case(finished["m.circle"][0].cfg)
    hole = shown[..., 3] == 255
    assert picture.shape[2] == 3 and hole.any() and not shown[hole][:, :3].any()
    assert draw_inputs(figure, TABLE, {}) is None


def test_class_shares(finished, monkeypatch) -> None:
    """Shares sum to one; what is hidden in validation is counted by its cases."""
    told = {}
    monkeypatch.setattr(study_figures, "_class_chart", lambda shares, classes: told.update(shares) or b"")
    draw_classes(_figure("classes"), TABLE, finished)
    assert list(told) == ["training objects", "validation objects", "hidden in validation"]
    assert [pytest.approx(1)] * 3 == [values.sum() for values in told.values()]
    monkeypatch.undo()
    assert _pixels(draw_classes(_figure("classes"), TABLE, finished)).shape[1] > 600


def test_data_that_are_gone_leave_their_figure_out(finished, scenes, tmp_path) -> None:
    """A page is written again long after its runs."""
    for runs in finished.values():
        for seed, run in runs.items():
            runs[seed] = Run(run.name, blind_config("DATASETS.ROOT", tmp_path / "gone"), run.row)
    assert draw_inputs(_figure("inputs"), TABLE, finished) is None
    assert draw_classes(_figure("classes"), TABLE, finished) is None


def test_the_study_knows_its_kinds(finished) -> None:
    """Every figure of the table is of a kind that is drawn."""
    kinds = {figure.kind for figure in TABLE.figures}
    assert kinds == {"points", "steps", "bars", *STUDY.drawers}
    png = draw_figure(_figure("top_n"), TABLE, STUDY, {}, finished, ClassMeans(1))
    assert _pixels(png).shape[1] > 600


@pytest.mark.slow
def test_rows_from_nothing(tmp_path, monkeypatch) -> None:
    """Scenes, a row of hidden objects and one of transfer; asked again, nothing is run."""
    draw = stages.generate_scenes
    few = {"train": 6, "transfer": 6, "hold": 3, "val": 4}
    monkeypatch.setattr(
        stages, "generate_scenes", lambda folder, **_: draw(folder, splits=few, progress=False)
    )
    tool = ToolRunner("reproduce", monkeypatch)
    asked = ("blindnet", "--preset", "smoke", "--output", tmp_path, "--seeds", 1, "--jobs", 2)
    keys = ("SOLVER.MAX_ITER", 2, "TEST.EVAL_PERIOD", 1, "SOLVER.IMS_PER_BATCH", 2)
    rows = ("--only", "mask_only", "t.fine.random@100", *keys)
    assert tool(*asked, *rows) == 0
    found = {row["id"]: row["here"] for row in json.loads((tmp_path / "reproduce.json").read_text())["rows"]}
    assert found["m.cap.hole@50"] == found["mask_only"] and found["mask_only"]["log_loss"]["0"] > 0
    assert found["t.fine.random@100"]["mAP"]["0"] > 0
    page = (tmp_path / "reproduce.html").read_text()
    assert "less is better of mean_rank, log_loss, ECE" in page and page.count("<img") >= 3
    monkeypatch.setattr(stages, "run_together", None)
    assert tool(*asked, *rows) == 0
